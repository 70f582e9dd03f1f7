"""A single file's header: our own entry with recommended settings, and the ModelSpec standard's keys."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from koala.errors import UserError
from koala.files.fields import Fields
from koala.models.sampling_defaults import Drawing, read_drawing
from koala.models.semantics import VELOCITY, ZERO_SNR
from koala.models.single_file.reading import SingleFile

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
