"""A single file's header: our own entry with recommended settings, and the ModelSpec standard's keys."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from koala.errors import UserError
from koala.files.fields import Fields
from koala.files.outputs import new_folder, user_cache
from koala.files.reading import read_object
from koala.models.layout import TOKENIZERS
from koala.models.sampling_defaults import Drawing, read_drawing
from koala.models.semantics import INDEX, SCHEDULER, TEXT, TEXT_2, UNET, VAE, VELOCITY, ZERO_SNR
from koala.models.single_file.reading import SingleFile
from koala.unet.specs import SDXL

KEY = "koala"  # of the header's entry that this project writes, as JSON
_VELOCITY_WORDS = ("v", "v_prediction", "v-prediction", "vprediction")
_AGAIN = "write the file again: python -m koala convert FOLDER --out FILE"
_PREDICTION = "modelspec.prediction_type"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file's header gives; fields are empty where it does not."""

    title: str = ""
    licence: str = ""
    model: str = ""  # the name of the model that it was written of
    drawing: Drawing = field(default_factory=Drawing)
    configs: Mapping[str, Mapping] = field(default_factory=dict)  # by their place in a pipeline's folder
    velocity: bool = False  # the U-Net predicts the velocity
    zero_snr: bool = False  # its noise schedule ends in pure noise


def read_words(file: SingleFile) -> Header:
    """The header of a file, every field of it checked; UserError where it is damaged or contradicts itself."""
    words = file.metadata
    own = Fields(values=_ours(file), file=f"{file.path}'s header", remedy=_AGAIN)
    configs = own.object("configs", {})
    for name in configs.values:
        configs.object(name)
    scheduler = configs.values.get("scheduler/scheduler_config.json", {})
    claims = {
        "its markers": VELOCITY in file.markers or None,
        _PREDICTION: _says_velocity(words.get(_PREDICTION)),
        "its scheduler's settings": _says_velocity(scheduler.get("prediction_type")),
    }
    velocities = {name: velocity for name, velocity in claims.items() if velocity is not None}
    if len({*velocities.values()}) > 1:
        words_of = {True: "v-prediction", False: "epsilon"}
        shown = ", ".join(f"{name}: {words_of[velocity]}" for name, velocity in velocities.items())
        raise UserError(
            f"{file.path} contradicts itself in what its U-Net predicts ({shown}), so it would draw noise either way; "
            "take another copy, or write it again from its folder: python -m koala convert FOLDER --out FILE"
        )
    return Header(
        title=_line(words.get("modelspec.title", "")),
        licence=_line(words.get("modelspec.license", "")),
        model=own.text("model", ""),
        drawing=read_drawing(own),
        configs=configs.values,
        velocity=any(velocities.values()),
        zero_snr=ZERO_SNR in file.markers or scheduler.get("rescale_betas_zero_snr") is True,
    )


def _ours(file: SingleFile) -> dict:
    try:
        own = json.loads(file.metadata.get(KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file.path}'s header is damaged: its entry {KEY} is not JSON; {_AGAIN}") from error
    return own if isinstance(own, dict) else {}


def _line(text: str) -> str:
    """On one line, shortened."""
    return " ".join(text.split())[:100]


def _says_velocity(word: object) -> bool | None:
    return None if word is None else str(word).lower() in _VELOCITY_WORDS


CARRIED = (SCHEDULER, UNET, VAE, TEXT, TEXT_2)  # configs that our own files' headers hold


def settings_folder(file: SingleFile, header: Header, base: Mapping[str, Path]) -> Path:
    """The folder, made now if it is not there; `base` are the small files of an SDXL pipeline by their place in it."""
    contents = {name: _encoded(config) for name, config in _configs(file, header, base).items()}
    contents |= {name: path.read_bytes() for name, path in base.items() if name.startswith(TOKENIZERS)}
    hashed = hashlib.sha256()
    for name, content in sorted(contents.items()):
        hashed.update(f"{name}:{len(content)}:".encode() + content)
    folder = user_cache() / "single-files" / hashed.hexdigest()[:24]
    if not _is_there(folder, contents):
        _write(folder, contents)
    return folder


def _configs(file: SingleFile, header: Header, base: Mapping[str, Path]) -> dict[str, dict]:
    """Place in a pipeline -> its config."""
    own = {name: header.configs.get(name) for name in CARRIED}
    configs = {name: dict(own[name] or read_object(base[name])) for name in CARRIED if name != UNET}
    prediction = "v_prediction" if header.velocity else "epsilon"
    if own[SCHEDULER] is None:
        configs[SCHEDULER] |= {"prediction_type": prediction, "rescale_betas_zero_snr": header.zero_snr}
    if own[VAE] is None and "vae" in file.parts and file.spec.channels == SDXL.channels:
        # SDXL's own VAE overflows half precision. The base's may be one that does not, which says nothing of this one.
        configs[VAE] |= {"force_upcast": True}
    given = {name: value for name, value in (own[UNET] or {}).items() if not name.startswith(("reverse_", "_"))}
    size = {"sample_size": given["sample_size"]} if given.get("sample_size") else {}
    configs[UNET] = {"_class_name": "UNet2DConditionModel"} | given | file.spec.config() | size
    index = read_object(base[INDEX])
    index |= {"_class_name": "StableDiffusionXLPipeline"} | dict(header.configs.get(INDEX, {}))
    return configs | {INDEX: index}


def _encoded(config: Mapping) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _is_there(folder: Path, contents: Mapping[str, bytes]) -> bool:
    """Whether every file is as it was written: a cache may be cut or changed."""
    try:
        return all((folder / name).read_bytes() == content for name, content in contents.items())
    except OSError:
        return False


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    try:
        with new_folder(folder, sum(map(len, contents.values())), replace=True) as partial:
            for name, content in contents.items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).write_bytes(content)
    except OSError as error:
        raise UserError(
            f"the settings of a single file are kept in {folder.parent}, which cannot be written "
            f"({error.strerror or error}); set XDG_CACHE_HOME to a folder that you may write"
        ) from error
