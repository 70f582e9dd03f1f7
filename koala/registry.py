"""ModelCard: every model that a name stands for, with the settings that its authors recommend."""

import difflib
import errno
import logging
import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from koala.costs import parameters
from koala.drawing import SETTINGS, read_drawing
from koala.exported import MANIFEST, Exported
from koala.fields import Fields
from koala.hub_address import hub_id
from koala.layout import DRAWING, SURGERY
from koala.read_json import read_object
from koala.request import RequestError
from koala.semantics import own_sampler
from koala.specs import (
    KOALA_1B,
    KOALA_700M,
    SDXL,
    SSD_1B,
    TINY_KOALA_1B,
    TINY_KOALA_700M,
    TINY_SDXL,
    VEGA,
    UNetSpec,
)
from koala.unet_config import from_config, native_size

log = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parent / "embedded"

_TEXT_ENCODERS, _VAE = 817_720_320, 83_653_863  # parameters of SDXL's: CLIP-L and OpenCLIP-G together; the VAE
_HUB_ID = re.compile(r"(?=.{3,96}$)(?!.*(--|\.\.|\.git$))\w([\w.-]*\w)?/\w([\w.-]*\w)?")  # as huggingface_hub allows
_SETTINGS = ("negative_prompt", "scheduler", "noising", "steps", "guidance", "width", "height")
_FILES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w./-]*")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A model: where it lives, what it is cut from and how it wants to be run."""

    name: str
    title: str
    source: str  # hub id, or the path of a folder
    parameters: int | None  # of the U-Net, exact; None for a folder that nobody has read yet
    licence: str
    spec: UNetSpec | None = None
    aliases: tuple[str, ...] = ()
    revision: str | None = None  # branch, tag or commit of the source; None for its main branch
    unet_file: str | None = None  # "hub id/file" of a U-Net that replaces the source's own
    vae: str | None = None  # hub id of a VAE that replaces the source's own
    tiny_vae: str | None = None  # hub id of a tiny VAE on the same latents, for previews and small memories
    teacher: str | None = None
    runtime: str = "torch"  # or "onnx", of a folder that `python -m export` wrote
    single_file: bool = False  # the source is one safetensors file, not a folder
    negative_prompt: str = ""  # the authors' recommendation; a suggestion, never added silently
    scheduler: str = "euler-trailing"
    noising: str = "ddpm"  # or "straight": how pictures faded into noise while it learned (koala.distill.noising)
    steps: int = 25
    guidance: float = 7.5
    width: int = 1024
    height: int = 1024

    @property
    def embedded(self) -> bool:
        """Whether the weights come with this repository."""
        return Path(self.source).parent == EMBEDDED

    @property
    def draws_unguided(self) -> bool:
        """Whether it keeps its pictures without guidance: it, or the teacher that it learned from, was distilled so."""
        teacher = CARDS.get(self.teacher)
        return self.guidance <= 1 or (teacher is not None and teacher.guidance <= 1)

    @property
    def on_hub(self) -> bool:
        """Whether the source is a hub id; otherwise it is a folder of this machine."""
        return not Path(self.source).is_absolute()

    @property
    def download_bytes(self) -> int | None:
        """About how much a first download is: U-Net and text encoders in fp16, the VAE of KOALA's authors in fp32."""
        if not self.on_hub or self.parameters is None:
            return None
        return 2 * (self.parameters + _TEXT_ENCODERS) + 4 * _VAE


def _tiny(name: str, title: str, parameters: int, spec: UNetSpec, teacher: str | None = None) -> ModelCard:
    return ModelCard(
        name=name,
        title=title,
        source=str(EMBEDDED / name),
        parameters=parameters,
        licence="Apache-2.0",
        spec=spec,
        teacher=teacher,
        scheduler="euler-ancestral-trailing",
        noising="straight",
        guidance=2.0,
        width=256,
        height=256,
    )


_DECODERS = dict(vae="madebyollin/sdxl-vae-fp16-fix", tiny_vae="madebyollin/taesdxl")


def _koala(name: str, title: str, spec: UNetSpec, parameters: int, **settings) -> ModelCard:
    defaults = dict(
        source=f"etri-vilab/{name}",
        licence="CreativeML Open RAIL++-M, non-commercial",
        negative_prompt="worst quality, low quality, illustration, low resolution",
        **_DECODERS,
    )
    return ModelCard(name=name, title=title, spec=spec, parameters=parameters, **(defaults | settings))


_LIGHTNING = dict(teacher="sdxl-lightning-4step", steps=10, guidance=3.5)
_OLDER = dict(teacher="sdxl-base", scheduler="euler-leading")
_P_SDXL, _P_1B, _P_700M = 2_567_463_684, 1_161_184_324, 782_822_724
_SDXL = dict(
    source="stabilityai/stable-diffusion-xl-base-1.0",
    spec=SDXL,
    parameters=_P_SDXL,
    licence="CreativeML Open RAIL++-M",
    **_DECODERS,
)

CARDS = {
    card.name: card
    for card in (
        _tiny("tiny-sdxl", "Tiny SDXL (teacher)", 6_442_948, TINY_SDXL),
        _tiny("tiny-koala-1b", "Tiny KOALA-1B", 2_916_564, TINY_KOALA_1B, "tiny-sdxl"),
        _tiny("tiny-koala-700m", "Tiny KOALA-700M", 1_967_636, TINY_KOALA_700M, "tiny-sdxl"),
        _koala("koala-lightning-700m", "KOALA-Lightning-700M", KOALA_700M, _P_700M, **_LIGHTNING),
        _koala("koala-lightning-1b", "KOALA-Lightning-1B", KOALA_1B, _P_1B, **_LIGHTNING),
        _koala("koala-700m", "KOALA-700M", KOALA_700M, _P_700M, **_OLDER),
        _koala("koala-1b", "KOALA-1B", KOALA_1B, _P_1B, **_OLDER),
        _koala("koala-700m-llava-cap", "KOALA-700M-LLaVA", KOALA_700M, _P_700M, **_OLDER),
        _koala("koala-1b-llava-cap", "KOALA-1B-LLaVA", KOALA_1B, _P_1B, **_OLDER),
        ModelCard(name="sdxl-base", title="SDXL Base 1.0", aliases=("sdxl",), scheduler="euler-leading", **_SDXL),
        ModelCard(
            **_SDXL
            | dict(
                name="sdxl-turbo",
                title="SDXL-Turbo",
                source="stabilityai/sdxl-turbo",
                licence="Stability AI non-commercial",
                steps=4,
                guidance=0.0,
                width=512,
                height=512,
            )
        ),
        *(
            ModelCard(
                name=f"sdxl-lightning-{n}step",
                title=f"SDXL-Lightning, {n} steps",
                aliases=("sdxl-lightning",) if n == 4 else (),
                unet_file=f"ByteDance/SDXL-Lightning/sdxl_lightning_{n}step_unet.safetensors",
                steps=n,
                guidance=0.0,
                **_SDXL,
            )
            for n in (2, 4, 8)
        ),
        ModelCard(
            name="ssd-1b",
            title="SSD-1B",
            source="segmind/SSD-1B",
            spec=SSD_1B,
            parameters=1_331_334_404,
            licence="Apache-2.0",
            scheduler="euler-leading",
            guidance=9.0,
            **_DECODERS,
        ),
        ModelCard(
            name="segmind-vega",
            title="Segmind-Vega",
            aliases=("vega",),
            source="segmind/Segmind-Vega",
            spec=VEGA,
            parameters=745_225_604,
            licence="Apache-2.0",
            scheduler="euler-leading",
            guidance=9.0,
            **_DECODERS,
        ),
    )
}


_NAMES = {
    spoken.lower(): card
    for card in CARDS.values()
    for spoken in (card.name, *card.aliases, card.unet_file or card.source)
}


_OFFERED: dict[str, ModelCard] = {}  # by name: folders that this process wrote itself


def offer(card: ModelCard) -> None:
    """Let `find` know a folder that this process wrote itself by the card's name instead of its path."""
    _OFFERED[card.name] = card


def withdraw(card: ModelCard) -> None:
    """Let `find` forget an offered card."""
    if _OFFERED.get(card.name) is card:
        del _OFFERED[card.name]


def _config(file: Path) -> dict:
    """A config.json, empty where there is none: `locate` names what a folder lacks."""
    return read_object(file) if file.exists() else {}


def _inherited(folder: Path, spec: UNetSpec | None) -> dict[str, object]:
    """How a student that `koala.surgery` cut wants to be run: as the published one of its teacher and depths, or as
    its teacher. Empty for a folder that was no cut, or whose teacher is unknown here."""
    teacher = _NAMES.get(str(_config(folder / SURGERY).get("teacher")).partition("@")[0].lower())
    if spec is None or teacher is None:
        return {}
    published = (c for c in CARDS.values() if c.teacher == teacher.name and c.spec.notation == spec.notation)
    like = next(published, teacher)
    settings = {f: getattr(like, f) for f in ("negative_prompt", "scheduler", "noising", "steps", "guidance")}
    return {"teacher": teacher.name, "licence": teacher.licence} | settings


def _folder_card(folder: Path) -> ModelCard:
    """A card for a folder in diffusers' layout: spec, native size and scheduler as its own configs tell them, and a
    student's settings as its teacher's card does."""
    known = next((c for c in CARDS.values() if c.source == str(folder)), None)
    if known:
        return known
    if os.path.lexists(folder / MANIFEST):
        return _export_card(folder)
    file = folder / "unet" / "config.json"
    unet = _config(file)
    spec = from_config(unet, str(folder), str(file)) if file.exists() else None
    width, height = native_size(unet, str(file))
    own = {
        "licence": "see its folder",
        "scheduler": own_sampler(_config(folder / "scheduler" / "scheduler_config.json"))[0],
    }
    return ModelCard(
        name=str(folder),
        title=folder.name,
        source=str(folder),
        parameters=parameters(spec) if spec else None,
        spec=spec,
        **{"width": width, "height": height} | own | _inherited(folder, spec) | _drawing(folder),
    )


def _drawing(folder: Path) -> dict[str, object]:
    """How a folder says that it wants to be drawn; empty for one that says nothing."""
    file = folder / DRAWING
    if not os.path.lexists(file):
        return {}
    found = read_drawing(Fields(values=read_object(file), file=str(file), remedy="copy it again, or remove it"))
    return found.settings | ({"teacher": found.teacher} if found.teacher in CARDS else {})


def says_how_it_is_drawn(card: ModelCard) -> bool:
    """Whether a model without a name here brings its settings, in a file's header or in a folder's koala.json."""
    return card.single_file or not card.on_hub and card.name not in CARDS and (Path(card.source) / DRAWING).is_file()


def drawing_of(card: ModelCard) -> dict[str, object]:
    """How a card's model wants to be drawn, as `koala.drawing` reads it again."""
    teacher = card.teacher if card.teacher in CARDS else None
    return {
        "defaults": {name: getattr(card, name) for name in SETTINGS},
        "noising": card.noising,
        "negative_prompt": card.negative_prompt,
        "teacher": teacher or (card.name if card.name in CARDS else ""),
    }


def _file_card(path: Path) -> ModelCard:
    """A card for one safetensors file: its spec as its tensors tell it, its settings as its header does.

    Where the header says nothing they are those of the embedded model of these shapes, or of the plain model of these
    depths, and it is said.
    """
    from koala.single_file.header import read_words
    from koala.single_file.reading import read_single_file

    file = read_single_file(path)
    header, spec = read_words(file), file.spec
    same = [c for c in CARDS.values() if c.spec and c.spec == replace(spec, name=c.spec.name)]
    family = CARDS["sdxl-base" if spec.channels == SDXL.channels else "tiny-sdxl"]
    # Of several models of these depths the plain one, not one of few steps: a file does not tell them apart.
    like = CARDS.get(header.model) or max(same, key=lambda c: c.steps, default=family)
    settings = {name: getattr(like, name) for name in _SETTINGS}
    if not (header.drawing.defaults or like.embedded or like.name == header.model):
        if header.zero_snr:  # its first step is pure noise, which only the trailing timesteps begin at
            settings["scheduler"] = "euler-trailing"
        _say_assumed(path, like.title, settings["steps"], settings["guidance"])
    return ModelCard(
        name=str(path),
        title=f"{header.title} ({path.name})" if header.title else path.stem,
        source=str(path),
        parameters=parameters(spec),
        licence=header.licence or "see where it was published",
        spec=spec,
        teacher=header.drawing.teacher if header.drawing.teacher in CARDS else like.teacher,
        single_file=True,
        **settings | header.drawing.settings,
    )


@lru_cache(maxsize=64)
def _say_assumed(path: Path, title: str, steps: int, guidance: float) -> None:
    """A warning, once per process."""
    log.warning(
        "%s does not say how it is drawn; it is drawn as %s is, in %d steps with guidance %g. A model of few steps "
        "needs --steps and --guidance as its page says",
        path,
        title,
        steps,
        guidance,
    )


def _export_card(folder: Path) -> ModelCard:
    """A card for a folder that `python -m export` wrote: its model's own, as far as that is known, and its manifest."""
    exported = Exported.read(folder)
    known = CARDS.get(exported.model)
    kind = ["ONNX", exported.target] if exported.target != "universal" else ["ONNX"]
    kind += ["float32"] if exported.dtype == "float32" else []
    file = folder / "unet" / "config.json"
    kind += [f"with {exported.lora['name']}"] if exported.lora else []
    return ModelCard(
        name=str(folder),
        title=f"{exported.title} ({', '.join(kind)})",
        source=str(folder),
        parameters=exported.components["unet"].parameters,
        licence=exported.licence,
        spec=known.spec if known else from_config(read_object(file), str(folder), str(file)),
        teacher=known.teacher if known else None,
        tiny_vae=known.tiny_vae if known else None,
        negative_prompt=known.negative_prompt if known else "",
        runtime="onnx",
        **exported.defaults,
    )


def torch_only(card: ModelCard, doing: str) -> None:
    """RequestError for an export, where `doing` looks into the network."""
    if card.runtime != "torch":
        raise RequestError(
            f"{card.name} is an export, and {doing} needs the network itself, in torch; name the model that it was "
            f"made of: {Exported.read(Path(card.source)).model}"
        )


def _folder(name: str) -> ModelCard | None:
    """The card of a folder, None where a name is none's; RequestError for one that cannot be looked into."""
    try:
        return _folder_card(Path(name).resolve()) if Path(name).is_dir() else None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # no file has such a name
            return None
        raise RequestError(f"{name} cannot be read ({error.strerror}); choose a folder that you may read") from error


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # no file has so long a name, or one may not look there
        return False


def _pinned(model: str) -> ModelCard:
    """The card of model@revision."""
    name, _, revision = model.partition("@")
    if not _REVISION.fullmatch(revision):
        raise RequestError(f"{revision!r} is no revision; give a branch, a tag or a commit, for example {name}@main")
    card = find(name)
    if not card.on_hub:
        raise RequestError(f"{name} is a folder of this machine and has no revisions; name it without @{revision}")
    return replace(card, name=f"{card.name}@{revision}", revision=revision)


def find(model: str) -> ModelCard:
    """The card of a name, a folder in diffusers' layout, a hub id, or one of them at a revision (model@revision).

    Raises RequestError with the nearest names.
    """
    if not model.strip():  # "." to pathlib
        raise RequestError("the model has no name; `python -m koala models` lists them, a folder or a hub id works too")
    if model.lower() in _NAMES:
        return _NAMES[model.lower()]
    if model in _OFFERED:
        return _OFFERED[model]
    if found := _folder(model):
        return found
    if re.search(r"lightning[-_]1[-_]?step", Path(model).name, re.IGNORECASE):
        raise RequestError(
            "SDXL-Lightning's 1-step U-Net predicts the clean picture instead of the noise, so no scheduler here can "
            "run it; use sdxl-lightning-2step"
        )
    if _is_file(model):
        return _file_card(Path(model).absolute())
    if pasted := hub_id(model.strip()):
        return find(pasted)
    if model.endswith("/") and _HUB_ID.fullmatch(model.rstrip("/")):
        return find(model.rstrip("/"))
    if "@" in model:
        return _pinned(model)
    if model == "ByteDance/SDXL-Lightning":
        raise RequestError(f"{model} holds one U-Net per number of steps; use sdxl-lightning-2step, -4step or -8step")
    if Path(model).suffix.lower() in _FILES:
        return _file_card(Path(model))
    if _HUB_ID.fullmatch(model):
        return ModelCard(name=model, title=model, source=model, parameters=None, licence="see its model card")
    near = difflib.get_close_matches(model, CARDS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    shown = model if len(model) <= 80 else model[:77] + "..."
    raise RequestError(
        f"unknown model {shown!r}; {hint}Names are {', '.join(CARDS)}; a folder or a hub id (owner/name) works too"
    )
