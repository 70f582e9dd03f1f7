"""A config's fields as components of the page, each with its help, and their values as a config again."""

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence

import gradio as gr

from koala.distill.config import FEATURES, TRACKERS, DistillConfig
from koala.distill.settings import PROSE
from koala.ui.architecture.data import TITLES
from koala.unet.specs import STAGES

FIELDS = {f.name: f for f in dataclasses.fields(DistillConfig)}
_KINDS = typing.get_type_hints(DistillConfig)

# The fields shown first; the others are in groups, in the order of the config. A group begins at the field named.
FIRST = ("teacher", "student_spec", "features", "stages", "captions", "num_steps", "seed")
GROUPS = {
    "student_init": "The loss",
    "data": "The data",
    "num_steps": "The training",
    "checkpoint_every": "Checkpoints and validation",
}
# What a public server lets visitors change in a preset: nothing that names a file or costs more.
PUBLIC = ("student_spec", "features", "stages", "captions", "seed")

_SPOKEN = {"lf": "LF", "sa": "SA", "ema": "EMA", "snr": "SNR", "num": "number of", "init": "start"}
_LISTS = {"features": FEATURES, "stages": tuple(STAGES), "trackers": TRACKERS}


def label(name: str) -> str:
    """min_snr_gamma -> Min SNR gamma."""
    text = " ".join(_SPOKEN.get(word, word) for word in name.split("_"))
    return text[:1].upper() + text[1:]


def groups() -> dict[str, list[str]]:
    """The fields that are not shown first, by the title of their group."""
    fields: dict[str, list[str]] = {}
    title = ""
    for name in FIELDS:
        title = GROUPS.get(name, title)
        if name not in FIRST:
            fields.setdefault(title, []).append(name)
    return fields


def component(name: str, value: object, models: Sequence[tuple[str, str]] = ()) -> gr.components.FormComponent:
    """The field as a component with this value, as `shown` gives it, and with the help of the config."""
    field, kind = FIELDS[name], _KINDS[name]
    shared = {
        "label": label(name),
        "info": field.metadata["help"],
        "elem_id": f"kd-{name.replace('_', '-')}",
        "min_width": 140,
    }
    if name == "teacher":
        return gr.Dropdown(list(models), value=value, allow_custom_value=True, **shared)
    if name == "student_spec":
        specs = [(title, spec) for spec, title in TITLES.items() if spec != "sdxl"]
        return gr.Dropdown(specs, value=value, allow_custom_value=True, **shared)
    if name == "features":  # KIND@STAGE may be typed
        return gr.Dropdown(list(FEATURES), value=value, multiselect=True, allow_custom_value=True, **shared)
    if name in _LISTS:
        return gr.CheckboxGroup(list(_LISTS[name]), value=value, **shared)
    if typing.get_origin(kind) is tuple:
        return gr.Textbox(value=value, lines=3, max_lines=12, placeholder="one per line", **shared)
    if options := field.metadata.get("choices"):
        return (gr.Radio if name == "captions" else gr.Dropdown)(list(options), value=value, **shared)
    if kind is bool:
        return gr.Checkbox(value=value, **shared)
    if kind is int:
        return gr.Number(value=value, precision=0, **shared)
    if kind is float:
        return gr.Number(value=value, step=10.0**-6, **shared)
    return gr.Textbox(value=value, max_lines=1, **shared)


def shown(config: DistillConfig, names: Sequence[str]) -> list[object]:
    """The values that the components of these fields take for a config."""
    return [_shown(name, getattr(config, name)) for name in names]


def _shown(name: str, value: object) -> object:
    if not isinstance(value, tuple):
        return value
    return list(value) if name in _LISTS else "\n".join(value)


def read(base: DistillConfig, values: Mapping[str, object]) -> DistillConfig:
    """`base` with the values of the components; UserError names a field that cannot work."""
    return DistillConfig.from_dict(base.to_dict() | {name: _parsed(name, value) for name, value in values.items()})


def _parsed(name: str, value: object) -> object:
    """A component's value with the type of the config's field. The config refuses an emptied number."""
    kind = _KINDS[name]
    if typing.get_origin(kind) is tuple:
        lines = value.splitlines() if isinstance(value, str) else value or ()
        return tuple(line.strip() for line in lines if line.strip())
    if kind is str:
        return (value or "").strip()
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def changed(config: DistillConfig, base: DistillConfig) -> dict[str, object]:
    """The fields of `config` that differ from `base`, with their values."""
    return {name: getattr(config, name) for name in FIELDS if getattr(config, name) != getattr(base, name)}


def setting(name: str, value: object) -> str:
    """field=value as `koala distill` reads it."""
    if isinstance(value, tuple):
        as_json = name in PROSE or any("," in v for v in value)
        return f"{name}={json.dumps(list(value)) if as_json else ','.join(value)}"
    if isinstance(value, bool):
        return f"{name}={str(value).lower()}"
    return f"{name}={value:g}" if isinstance(value, float) and value == float(f"{value:g}") else f"{name}={value}"
