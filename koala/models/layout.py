"""What the files of a model are called in diffusers' layout, and which of them are needed."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from koala.errors import UserError
from koala.files.fields import Fields, shown
from koala.files.reading import read_object
from koala.models.semantics import INDEX, check_config

# The stem of each component's weights in diffusers' layout.
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
CONFIGS = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{part}/config.json" for part in STEMS),
)
TOKENIZERS = ("tokenizer", "tokenizer_2")
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # transformers 5 saves the first, older ones both
SURGERY = "surgery.json"  # ours, in a student's folder: what `koala.compress.surgery.compress` cut it out of
DRAWING = "koala.json"  # ours: the model's recommended settings (`koala.models.sampling_defaults`)
_TOKENIZER = re.compile(r"tokenizer(_2)?/[^/]+\.(json|txt)")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
SAVE_AGAIN = "Save it again with pipeline.save_pretrained(folder, safe_serialization=True), or copy what is missing"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The safetensors of one component: one file, or every shard and the index that lists them."""

    variant: str | None  # "fp16", or None for what diffusers calls no variant
    files: tuple[str, ...]
    index: str | None = None


def weights(names: Collection[str], stem: str) -> Weights | None:
    """The best weights of a stem ("unet/diffusion_pytorch_model") among file names: half precision, one file."""
    for variant in ("fp16", None):
        whole = f"{stem}.{variant}" if variant else stem
        if f"{whole}.safetensors" in names:
            return Weights(variant=variant, files=(f"{whole}.safetensors",))
        indexes = [f"{stem}.safetensors.index.{variant}.json", f"{whole}.safetensors.index.json"]  # new and old
        index = next((n for n in (indexes if variant else indexes[1:]) if n in names), None)
        shards = _shards(names, stem, variant)
        if index and shards and not _absent_shard(shards):
            return Weights(variant=variant, files=tuple(shards), index=index)
    return None


def _shards(names: Iterable[str], stem: str, variant: str | None) -> list[str]:
    """The files of a component in several: `stem.fp16-00001-of-00002`, and `stem-00001-of-00002.fp16` of old."""
    new, old = (rf"\.{variant}", rf"\.{variant}") if variant else ("", "")
    number = r"-\d{5}-of-\d{5}"
    shape = rf"{re.escape(stem)}({new}{number}|{number}{old})\.safetensors"
    return sorted(n for n in names if re.fullmatch(shape, n))


def _absent_shard(shards: list[str]) -> str | None:
    """The first file that shards lack of what their own names count; None where all are there."""
    count = int(re.search(r"-of-(\d{5})", shards[0])[1])
    every = [re.sub(r"-\d{5}-of", f"-{k + 1:05}-of", shards[0]) for k in range(min(count, 10_000))]
    return next((name for name in every if name not in shards), None)


def choose(names: Collection[str], parts: Iterable[str], owner: str, remedy: str = SAVE_AGAIN) -> dict[str, Weights]:
    """Component -> its weights, for the components that are asked for, out of a folder's or a repository's files.

    Raises UserError with the name of what is missing, and a remedy.
    """
    if not any(n == "model_index.json" or n.startswith("unet/") for n in names):
        raise UserError(f"{owner} is not a diffusers pipeline: it has neither model_index.json nor unet/. {remedy}")
    parts = list(parts)
    chosen = {part: weights(names, f"{part}/{STEMS[part]}") for part in parts}
    for part in parts:
        pickles = [n for n in names if n.startswith(f"{part}/") and n.endswith(PICKLES)]
        if chosen[part] is None and pickles:
            raise UserError(
                f"{owner} has its {part} as a pickle only ({pickles[0]}). Reading one can run anybody's code, so only "
                "safetensors are read here. Choose another revision or copy; or, if you trust it, save it again with "
                "diffusers' pipeline.save_pretrained(folder, safe_serialization=True)"
            )
    missing = [n for n in CONFIGS if n not in names and n != "vae/config.json"]
    for folder in TOKENIZERS:
        lacking = [[f"{folder}/{n}" for n in files if f"{folder}/{n}" not in names] for files in VOCABULARIES]
        missing += min(lacking, key=len)
    missing += [_missing(names, f"{part}/{STEMS[part]}") for part in parts if chosen[part] is None]
    if "vae" in parts and "vae/config.json" not in names:
        missing.append("vae/config.json")
    if missing:
        raise UserError(
            f"{owner} is not a whole SDXL folder: {missing[0]} is missing"
            + (f", and {len(missing) - 1} more files" if len(missing) > 1 else "")
            + f". {remedy}"
        )
    return chosen


def _missing(names: Collection[str], stem: str) -> str:
    """The file without which a component has no weights: a shard, the index of its shards, or its one file."""
    for variant in ("fp16", None):
        if shards := _shards(names, stem, variant):
            index = f"{stem}.safetensors.index.{f'{variant}.' if variant else ''}json"
            return _absent_shard(shards) or index
    return f"{stem}.safetensors"


def needed(names: Collection[str], chosen: Mapping[str, Weights]) -> list[str]:
    """Every file that loading reads, the small ones first."""
    small = [n for n in names if n in CONFIGS or _TOKENIZER.fullmatch(n)]
    if "vae" not in chosen:
        small = [n for n in small if not n.startswith("vae/")]
    indexes = [w.index for w in chosen.values() if w.index]
    return [*sorted(small), *indexes, *(n for w in chosen.values() for n in w.files)]


def listing(folder: Path) -> set[str]:
    """The names of a folder's files, as deep as a pipeline has any; broken links are left out."""
    inside = [folder, *(folder / n for n in (*STEMS, "scheduler", *TOKENIZERS))]
    return {f.relative_to(folder).as_posix() for d in inside if d.is_dir() for f in d.iterdir() if f.is_file()}


def weight_map(index: Path) -> dict[str, str]:
    """Tensor -> the shard that holds it, as the index of a component in several files lists them."""
    shards = Fields(values=read_object(index), file=str(index)).object("weight_map")
    for name in shards.values:
        shards.text(name, like=r"[\w.-]+\.safetensors")
    return dict(shards.values)


def check_pipeline(index: Path, owner: str) -> None:
    """Raise UserError where model_index.json names another pipeline than SDXL's, or its refiner."""
    fields = Fields(values=read_object(index), file=str(index))
    if isinstance(own := fields.values.get("_class_name"), list | tuple):
        raise UserError(
            f"{index} names a pipeline with code of its own, {shown(own)}, which is not run; where its parts are "
            'SDXL\'s, write "_class_name": "StableDiffusionXLPipeline" there'
        )
    kind = fields.text("_class_name")
    fields.truth("force_zeros_for_empty_prompt", True)
    if not kind.startswith("StableDiffusionXL"):
        raise UserError(
            f"{owner} is a {kind}; SDXL pipelines run here (StableDiffusionXLPipeline); name a folder or hub id of one"
        )
    check_config(INDEX, fields.values, str(index))
