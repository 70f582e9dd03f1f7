"""Resolves what a user types to a card: a name, a folder, a single file or a hub id, with or without a revision."""

import contextlib
import difflib
import errno
import logging
import os
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from koala.errors import UserError
from koala.files.fields import Fields
from koala.files.reading import read_object
from koala.models.cards import CARDS, ModelCard
from koala.models.export_manifest import MANIFEST, Exported
from koala.models.few_steps import consistent, named_like
from koala.models.hub_address import hub_id
from koala.models.layout import DRAWING, PICKLES, SURGERY
from koala.models.sampling_defaults import SETTINGS, read_drawing
from koala.models.semantics import INDEX, SCHEDULER, own_sampler
from koala.unet.config import from_config, native_size
from koala.unet.costs import parameters
from koala.unet.specs import SDXL, TINY_SDXL, UNetSpec

log = logging.getLogger(__name__)

_HUB_ID = re.compile(r"(?=.{3,96}$)(?!.*(--|\.\.|\.git$))\w([\w.-]*\w)?/\w([\w.-]*\w)?")  # as huggingface_hub allows
_FILES = (".safetensors", *PICKLES)
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w./-]*")


_NAMES = {
    spoken.lower(): card
    for card in CARDS.values()
    for spoken in (card.name, *card.aliases, card.unet_file or card.source)
}


def _config(file: Path) -> dict:
    """A config.json, empty where it is missing: `locate` reports what a folder lacks."""
    return read_object(file) if file.exists() else {}


def _inherited(folder: Path, spec: UNetSpec | None) -> dict[str, object]:
    """Settings of a student cut by surgery: those of the published student of its teacher and depths, or its
    teacher's. Empty for a folder that surgery did not make, or whose teacher is unknown here."""
    teacher = _NAMES.get(str(_config(folder / SURGERY).get("teacher")).partition("@")[0].lower())
    if spec is None or teacher is None:
        return {}
    published = (c for c in CARDS.values() if c.teacher == teacher.name and c.spec.notation == spec.notation)
    like = next(published, teacher)
    settings = {f: getattr(like, f) for f in ("negative_prompt", "scheduler", "noising", "steps", "guidance")}
    return {"teacher": teacher.name, "licence": teacher.licence} | settings


def _folder_card(folder: Path) -> ModelCard:
    """A card for a folder in diffusers' layout: spec, native size and scheduler from its own configs, and a
    student's settings from its teacher's card."""
    known = next((c for c in CARDS.values() if c.source == str(folder)), None)
    if known:
        return known
    if os.path.lexists(folder / MANIFEST):
        return _export_card(folder)
    unet, spec = _unet(folder)
    return ModelCard(
        name=str(folder),
        title=folder.name,
        source=str(folder),
        parameters=parameters(spec) if spec else None,
        spec=spec,
        **{"licence": "see its folder"} | _settings(folder, folder.name, unet, spec),
    )


def _unet(folder: Path) -> tuple[dict, UNetSpec | None]:
    """The U-Net's config, empty where it is missing, and its spec."""
    file = folder / "unet" / "config.json"
    unet = _config(file)
    return unet, from_config(unet, str(folder), str(file)) if file.exists() else None


def _settings(folder: Path, name: str, unet: dict, spec: UNetSpec | None) -> dict[str, object]:
    """How the model in a folder is sampled: as its koala.json says, else as its own configs and its origin say."""
    width, height = native_size(unet, str(folder / "unet" / "config.json"))
    sampler, followed = own_sampler(_config(folder / SCHEDULER))
    few = consistent(sampler)
    own = {"width": width, "height": height, "scheduler": sampler} | few
    inherited, drawing = _inherited(folder, spec), _drawing(folder)
    if few:  # its scheduler was set after the cut
        inherited = {key: value for key, value in inherited.items() if key not in few and key != "scheduler"}
    if not (inherited or drawing):
        own |= (
            _few_steps(folder, name, unet, spec, sampler if followed else "") or _embedded(folder, spec, sampler) | few
        )
    return own | inherited | drawing


def _few_steps(folder: Path, name: str, unet: dict, spec: UNetSpec | None, sampler: str) -> dict[str, object]:
    """Settings of the few-step model that a folder is a copy of, by its name or the one in its configs.

    `sampler` is the folder's own where it can be followed; it is kept where its timesteps suit few steps.
    """
    names = (name, _config(folder / INDEX).get("_name_or_path"), unet.get("_name_or_path"))
    like = named_like((name for name in names if isinstance(name, str)), spec) if spec else None
    if like is None:
        return {}
    _say_taken_for(folder, like.title, like.steps, like.guidance)
    keeps = {"scheduler": sampler} if sampler.endswith("-trailing") or consistent(sampler) else {}
    return {key: getattr(like, key) for key in ("teacher", "negative_prompt", *SETTINGS)} | keeps


def _embedded(folder: Path, spec: UNetSpec | None, sampler: str) -> dict[str, object]:
    """Settings of a folder without koala.json and surgery.json, by the embedded models' widths and sampler.

    No other models have both, and SDXL's settings would train and draw it with another noising, in silence.
    """
    if spec is None or spec.channels != TINY_SDXL.channels:
        return {}
    like = _family(spec)
    if sampler != like.scheduler:
        return {}
    _say_kin(folder, like.title, like.noising, like.steps, like.guidance)
    return {name: getattr(like, name) for name in ("noising", "steps", "guidance")}


@lru_cache(maxsize=64)
def _say_kin(folder: Path, title: str, noising: str, steps: int, guidance: float) -> None:
    """A warning, once per process."""
    log.warning(
        "%s has no koala.json that says how it is drawn; by its widths it is taken for a model like %s: noising %s, %d "
        "steps, guidance %g. For another model give --steps and --guidance",
        folder,
        title,
        noising,
        steps,
        guidance,
    )


@lru_cache(maxsize=64)
def _say_taken_for(folder: Path, title: str, steps: int, guidance: float) -> None:
    """A warning, once per process."""
    log.warning(
        "%s is taken for %s by its name, and drawn in %d steps with guidance %g; for another model give --steps and "
        "--guidance",
        folder,
        title,
        steps,
        guidance,
    )


def _hub_card(model: str, revision: str | None = None) -> ModelCard:
    """A card for a hub id without a name here; how it is sampled is known once its files are on this machine."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(model, INDEX, revision=revision)
    settings: dict[str, object] = {}
    if isinstance(index, str):
        folder = Path(index).parent
        with contextlib.suppress(UserError):  # of a damaged file, which is reported where the model is located
            settings = _settings(folder, model.rpartition("/")[2], *_unet(folder))
    return ModelCard(
        name=f"{model}@{revision}" if revision else model,
        title=model,
        source=model,
        revision=revision,
        parameters=None,
        **{"licence": "see its model card"} | settings,
    )


def _drawing(folder: Path) -> dict[str, object]:
    """The settings in a folder's koala.json; empty without that file."""
    file = folder / DRAWING
    if not os.path.lexists(file):
        return {}
    drawing = read_drawing(Fields(values=read_object(file), file=str(file), remedy="copy it again, or remove it"))
    return drawing.settings | ({"teacher": drawing.teacher} if drawing.teacher in CARDS else {})


def says_how_it_is_drawn(card: ModelCard) -> bool:
    """Whether a model that has no name here has its own settings, in a file's header or a folder's koala.json."""
    return card.single_file or not card.on_hub and card.name not in CARDS and (Path(card.source) / DRAWING).is_file()


def needs_drawing(folder: Path, teacher: ModelCard) -> bool:
    """Whether a student's folder needs a koala.json, as its other files do not say that it is sampled as its teacher.

    A teacher that has a name here is known by it.
    """
    if teacher.name.partition("@")[0] in CARDS:
        return False
    return says_how_it_is_drawn(teacher) or drawing_of(_folder_card(folder)) != drawing_of(teacher)


def drawing_of(card: ModelCard) -> dict[str, object]:
    """A card's recommended settings, in the form that `koala.models.sampling_defaults` reads."""
    teacher = card.teacher if card.teacher in CARDS else None
    return {
        "defaults": {name: getattr(card, name) for name in SETTINGS},
        "noising": card.noising,
        "negative_prompt": card.negative_prompt,
        "teacher": teacher or (card.name if card.name in CARDS else ""),
    }


def _family(spec: UNetSpec) -> ModelCard:
    """The model that all of these widths come from."""
    return CARDS["sdxl-base" if spec.channels == SDXL.channels else "tiny-sdxl"]


def _file_card(path: Path) -> ModelCard:
    """A card for one safetensors file: its spec from its tensors, its settings from its header.

    Without settings in the header they are those of the embedded model of these shapes, or of the plain model of these
    depths, with a warning.
    """
    from koala.models.single_file.header import read_words
    from koala.models.single_file.reading import read_single_file

    file = read_single_file(path)
    header, spec = read_words(file), file.spec
    same = [c for c in CARDS.values() if c.spec and c.spec == replace(spec, name=c.spec.name)]
    # Of several models of these depths the plain one, not a few-step one: a file does not distinguish them.
    like = (
        CARDS.get(header.model)
        or named_like([path.stem], spec)
        or max(same, key=lambda c: c.steps, default=_family(spec))
    )
    settings = {name: getattr(like, name) for name in ("negative_prompt", "noising", *SETTINGS)}
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
        "%s does not say how it is drawn; it is drawn as %s is, in %d steps with guidance %g. A few-step model "
        "needs --steps and --guidance as its page says",
        path,
        title,
        steps,
        guidance,
    )


def _export_card(folder: Path) -> ModelCard:
    """A card for a folder that `python -m koala export` wrote: from its model's card, where known, and its manifest."""
    exported = Exported.read(folder)
    known, file = CARDS.get(exported.model), folder / "unet" / "config.json"
    spec = known.spec if known else from_config(read_object(file), str(folder), str(file))
    kind = ["ONNX", exported.target] if exported.target != "universal" else ["ONNX"]
    kind += ["float32"] if exported.dtype == "float32" else []
    kind += [f"with {exported.lora['name']}"] if exported.lora else []
    return ModelCard(
        name=str(folder),
        title=f"{exported.title} ({', '.join(kind)})",
        source=str(folder),
        parameters=exported.components["unet"].parameters,
        licence=exported.licence,
        spec=spec,
        noising=(known or _family(spec)).noising,
        teacher=known.teacher if known else None,
        tiny_vae=known.tiny_vae if known else None,
        negative_prompt=known.negative_prompt if known else "",
        runtime="onnx",
        **exported.defaults,
    )


def torch_only(card: ModelCard, doing: str) -> None:
    """UserError for an export, where `doing` looks into the network."""
    if card.runtime != "torch":
        raise UserError(
            f"{card.name} is an export, and {doing} needs the network itself, in torch; name the model that it was "
            f"made of: {Exported.read(Path(card.source)).model}"
        )


def _folder(name: str) -> ModelCard | None:
    """The card of a folder, None where the name is not a folder; UserError for one that cannot be read."""
    try:
        return _folder_card(Path(name).resolve()) if Path(name).is_dir() else None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # no file has such a name
            return None
        raise UserError(f"{name} cannot be read ({error.strerror}); choose a folder that you may read") from error


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # no file has so long a name, or one may not look there
        return False


def _pinned(model: str) -> ModelCard:
    """The card of model@revision."""
    name, _, revision = model.partition("@")
    if not _REVISION.fullmatch(revision):
        raise UserError(f"{revision!r} is not a revision; give a branch, a tag or a commit, for example {name}@main")
    card = find(name)
    if not card.on_hub:
        raise UserError(f"{name} is a folder of this machine and has no revisions; name it without @{revision}")
    if card.name not in CARDS:
        return _hub_card(card.name, revision)
    return replace(card, name=f"{card.name}@{revision}", revision=revision)


def find(model: str | ModelCard) -> ModelCard:
    """The card of a name, a folder in diffusers' layout, a hub id, or one of them at a revision (model@revision).

    A card is returned as it is. Raises UserError with the nearest names.
    """
    if isinstance(model, ModelCard):
        return model
    if not model.strip():  # "." to pathlib
        raise UserError("the model has no name; `python -m koala models` lists them, a folder or a hub id works too")
    if model.lower() in _NAMES:
        return _NAMES[model.lower()]
    if card := _folder(model):
        return card
    if re.search(r"lightning[-_]1[-_]?step", Path(model).name, re.IGNORECASE):
        raise UserError(
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
        raise UserError(f"{model} holds one U-Net per number of steps; use sdxl-lightning-2step, -4step or -8step")
    if Path(model).suffix.lower() in _FILES:
        return _file_card(Path(model))
    if _HUB_ID.fullmatch(model):
        return _hub_card(model)
    near = difflib.get_close_matches(model, CARDS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    shown = model if len(model) <= 80 else model[:77] + "..."
    raise UserError(
        f"unknown model {shown!r}; {hint}Names are {', '.join(CARDS)}; a folder or a hub id (owner/name) works too"
    )
