"""A model -> a folder that other runtimes load unchanged, in the layout of optimum's ORTDiffusionPipeline."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from koala.errors import UserError
from koala.export import manifest, quantise, to_onnx
from koala.export.estimate import Clock, Estimate, Progress, estimate, part_bytes, stage_seconds
from koala.export.islands import PROMPT, activations, float_islands, islands
from koala.export.shape_profile import usual
from koala.export.targets import DTYPES, Target, target_of
from koala.export.wrappers import WRAPPERS
from koala.files.fields import Fields
from koala.files.hashing import digest
from koala.files.outputs import new_folder
from koala.files.reading import read_object
from koala.files.tensorfiles import check_values
from koala.finite import is_finite
from koala.hardware.cuda import cards
from koala.lora.moving import layers_for
from koala.models.cards import ModelCard
from koala.models.checkpoints import open_located
from koala.models.export_manifest import Component, Exported
from koala.models.from_torch import load_part, load_unet
from koala.models.layout import TOKENIZERS
from koala.models.library import Library
from koala.models.locate import Location, locate
from koala.models.lora_drawing import with_lora
from koala.models.reading import complete_tokenizer
from koala.models.registry import find
from koala.request import GenerationRequest
from koala.sampling.adapters import fuse
from koala.unet.config import from_config
from koala.unet.costs import parameters
from koala.unet.specs import UNetSpec

# ONNX component -> the part of the model that it is made of.
COMPONENTS = {
    "unet": "unet",
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "vae_decoder": "vae",
    "vae_encoder": "vae",
}
LARGE = 200_000_000  # parameters of a U-Net: above, on a CPU, a denoising run takes many minutes
CENSUS, CENSUS_SECONDS = "measure activations", 6.0
PARAMETERS = "parameters.json"  # next to the U-Net's graph: how torch's weights are stored in it


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A LoRA to be fused into the U-Net."""

    file: Path
    strength: float = 1.0

    def entry(self) -> dict[str, object]:
        """File name, SHA-256 and strength, as stored in the export."""
        return {"name": self.file.name, "sha256": digest(self.file), "strength": self.strength}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to export."""

    card: ModelCard
    location: Location
    spec: UNetSpec
    target: Target
    dtype: str  # of U-Net and text encoders: float16 or float32
    components: tuple[str, ...]
    lora: Lora | None
    lora_layers: str | None = None  # which of the LoRA's layers are used, and what in its file is not
    islands: tuple[str, ...] = ()  # modules of the U-Net that stay in fp32

    @property
    def large(self) -> bool:
        """Whether a whole denoising run would take too long here."""
        return parameters(self.spec) > LARGE and not cards().available()

    @property
    def estimate(self) -> Estimate:
        """What the job takes, predicted from the sizes of its components in its dtype."""
        return estimate(self.spec, self.components, self.dtype)


def plan(
    model: str,
    *,
    target: str = "universal",
    dtype: str | None = None,
    components: str = "all",
    lora: Lora | None = None,
) -> Job:
    """The job of a command: `dtype` is fp16 or fp32, `components` all or unet."""
    chosen, short = target_of(target, dtype)
    if components not in ("all", "unet"):
        raise UserError(f"components are all or unet, not {components!r}")
    card = find(model)
    location = locate(card)
    file = location.folder / "unet" / "config.json"
    spec = card.spec or from_config(read_object(file), card.name, str(file))
    return Job(
        card=with_lora(card, lora.file, lora.strength) if lora else card,
        location=location,
        spec=spec,
        target=chosen,
        dtype=DTYPES[short],
        components=tuple(COMPONENTS) if components == "all" else ("unet",),
        lora=lora,
        lora_layers=layers_for(lora.file, spec)[1].summary if lora else None,
    )


def export(
    job: Job,
    out: Path,
    *,
    check: Callable[[Path], dict[str, object]] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Exported:
    """Write the folder `out`, whole or not at all.

    `check` gets the finished folder before it is renamed; it raises if the export must not be used, and returns
    the figures to store in the files.
    """
    job.estimate.check(out)
    stored = open_located(job.card.name, job.location)
    for part in {COMPONENTS[name] for name in job.components}:
        check_values((stored if part == "unet" else stored.parts[part]).tensors.values())
    sizes = part_bytes(job.spec, job.components, job.dtype)
    lengths = {
        f"{stage} {name}": seconds
        for name in job.components
        for stage, seconds in stage_seconds(job.spec, name, sizes[name]).items()
    }
    measured = job.dtype == "float16" and not job.large
    clock = Clock({CENSUS: CENSUS_SECONDS} | lengths if measured else lengths, on_progress)
    if measured:
        clock.begin(CENSUS)
        job = replace(job, islands=islands(census(job)))
    with new_folder(out, job.estimate.disk) as folder:
        exported = _manifest(job)
        components = {name: _component(job, name, folder, exported, clock) for name in job.components}
        _settings(job, folder)
        exported = replace(exported, components=components)
        exported.write(folder)
        if check:
            exported = replace(exported, parity=check(folder))
            unet = folder / "unet" / "model.onnx"
            manifest.add_metadata(unet, {"koala.parity": json.dumps(exported.parity)})
            files = components["unet"].files | {"unet/model.onnx": digest(unet)}
            exported = replace(exported, components=components | {"unet": replace(components["unet"], files=files)})
            exported.write(folder)
    return exported


def source_hashes(job: Job) -> dict[str, str]:
    """Weights of the model -> SHA-256, by their place in a pipeline's folder."""
    return job.location.hashes(COMPONENTS[name] for name in job.components)


def _manifest(job: Job) -> Exported:
    card = job.card
    return Exported(
        model=card.name if card.on_hub or card.embedded else Path(card.source).name,
        title=card.title,
        revision=job.location.revision,
        licence=card.licence,
        spec=job.spec.name,
        target=job.target.name,
        dtype=job.target.weights or job.dtype,
        stored_dtype=job.dtype,
        components={},
        source=source_hashes(job),
        defaults=manifest.defaults(card),
        profile=usual(job.spec, manifest.defaults(card)),
        versions=manifest.versions(),
        islands=job.islands,
        lora=job.lora and job.lora.entry(),
    )


def load(job: Job, part: str) -> torch.nn.Module:
    """A part of the model in the precision in which it is exported; the VAE in fp32, for SDXL's overflows fp16."""
    if part == "unet":
        unet = load_unet(job.location, getattr(torch, job.dtype))
        unet = _fused(unet, job) if job.lora else unet
        if job.islands:
            float_islands(unet, job.islands)
        return unet
    dtype = torch.float32 if part == "vae" else getattr(torch, job.dtype)
    return load_part(part, job.location, dtype)


def census(job: Job) -> dict[str, float]:
    """The U-Net's largest activations by module, on one run of the model in fp32; see `islands.activations`."""
    lora = {"lora": str(job.lora.file), "lora_strength": job.lora.strength} if job.lora else {}
    model = Library("cuda" if cards().available() else "cpu", dtype="float32").get(job.card.name)
    return activations(model, GenerationRequest(model=job.card.name, prompt=PROMPT, **lora))


def _fused(unet: torch.nn.Module, job: Job) -> torch.nn.Module:
    """The U-Net with the LoRA fused into its weights."""
    fuse(unet, job.lora.file, job.spec, job.lora.strength)
    return unet.requires_grad_(False)


def _check_range(job: Job, part: str, module: torch.nn.Module) -> None:
    """UserError for a weight that became infinite: its file's weights were checked before."""
    name = next((name for name, weight in module.named_parameters() if not is_finite(weight)), None)
    if name is None:
        return
    remedies = ["export it in float32: --dtype fp32"] if job.dtype == "float16" else []
    remedies += [f"lower --lora-strength, now {job.lora.strength:g}"] if job.lora and part == "unet" else []
    raise UserError(f"the weight {name} of the {part} is beyond {job.dtype}'s largest number; {', or '.join(remedies)}")


def _component(job: Job, name: str, folder: Path, exported: Exported, clock: Clock) -> Component:
    """Trace, convert and write one component."""
    clock.begin(f"trace {name}")
    module = load(job, COMPONENTS[name])
    _check_range(job, COMPONENTS[name], module)
    program = to_onnx.trace(WRAPPERS[name](module))
    clock.begin(f"convert {name}")
    graph = to_onnx.convert(program, job.target.opset)
    dtype = str(module.dtype).removeprefix("torch.")
    if name == "unet" and job.target.weights:
        quantise.QUANTISERS[job.target.weights](graph.model)
        dtype = job.target.weights
    clock.begin(f"write {name}")
    files = to_onnx.save(graph.model, folder / name / "model.onnx", manifest.metadata(exported, name, dtype))
    if name == "unet":
        (folder / name / PARAMETERS).write_text(json.dumps(graph.weights, indent=1) + "\n")
    module.save_config(folder / name) if hasattr(module, "save_config") else module.config.save_pretrained(
        folder / name
    )
    count = sum(math.prod(weight["shape"]) for weight in graph.weights.values())
    return manifest.component(folder, files, dtype, count)


def _settings(job: Job, folder: Path) -> None:
    """The files around the graphs: the pipeline's index, and with all components its tokenizers and scheduler."""
    index = read_object(job.location.folder / "model_index.json")
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    if len(job.components) == 1:
        return
    for name in ("scheduler", *TOKENIZERS):
        shutil.copytree(job.location.folder / name, folder / name, ignore=_only_settings)
    for name in TOKENIZERS:
        complete_tokenizer(folder / name)
    if not all((folder / name / "vocab.json").is_file() for name in TOKENIZERS):
        for name in TOKENIZERS:  # older transformers, optimum's among them, read these two alone
            _spell_out(folder / name)


def _only_settings(folder: str, names: Sequence[str]) -> list[str]:
    return [n for n in names if not n.endswith((".json", ".txt"))]


def _spell_out(folder: Path) -> None:
    """vocab.json and merges.txt out of tokenizer.json."""
    file = folder / "tokenizer.json"
    model = Fields(values=read_object(file), file=str(file)).object("model")
    vocabulary, merges = model.object("vocab").values, model.values.get("merges")
    if not isinstance(merges, list) or not all(isinstance(m, str) or _are_words(m) for m in merges):
        raise model.wrong("merges", "a list of pairs of words")
    merges = [m if isinstance(m, str) else " ".join(m) for m in merges]
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


def _are_words(pair: object) -> bool:
    return isinstance(pair, list) and all(isinstance(word, str) for word in pair)
