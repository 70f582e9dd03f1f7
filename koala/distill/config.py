"""DistillConfig: everything that decides a distillation, the same for the command line, the app and a GPU cluster.

The defaults are KOALA's recipe (section 4.1 and appendix A) where the paper says, the field's habit where it is silent;
but for `normalisation`, whose default is what the embedded models were made with. The preset `koala` has the paper's.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from koala.errors import UserError
from koala.files.fields import shown
from koala.files.read_json import read_object
from koala.request import MAX_SIDE
from koala.unet.specs import STAGES

FEATURES = ("SA", "CA", "FFN", "Res", "LF")  # KOALA, section 3.1.2 and table 3a
ATTENTION_STAGES = ("DW-2", "DW-3", "MID", "UP-1", "UP-2")
SA_MAPPINGS = ("bottom", "interleave", "up")  # KOALA, table 11c
NORMALISATIONS = ("per-kind", "per-layer", "raw")
CAPTION_STYLES = ("short", "detailed", "mixed")
TIMESTEPS = ("uniform", "high-noise")
NOISINGS = ("teacher", "ddpm", "straight")
SCHEDULES = ("constant", "cosine")
OPTIMIZERS = ("adamw", "adamw8bit", "muon")
PRECISIONS = ("fp32", "bf16", "fp16")
EMA_DEVICES = ("student", "cpu")
TRACKERS = ("tensorboard", "wandb")


def _doc(text: str, default: object, **metadata):
    return field(default=default, metadata={"help": text, **metadata})


def _choice(text: str, options: Sequence[str], default: object):
    return _doc(f"{text}: {', '.join(options)}", default, choices=options)


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """One distillation run. Steps are the optimizer's; `batch_size` is that of all processes together."""

    teacher: str = _doc("model name, hub id, folder or .safetensors file; it predicts noise (epsilon)", "tiny-sdxl")
    student_spec: str = _doc("what to cut the teacher to: a name such as koala-700m, or depths", "koala-700m")
    student_init: str = _doc("model whose U-Net to go on from; empty cuts the student out of the teacher", "")

    features: tuple[str, ...] = _doc(
        f"what is distilled: {', '.join(FEATURES)}, at every stage of `stages` that has it, or KIND@STAGE at one",
        ("SA",),
    )
    stages: tuple[str, ...] = _doc(f"where: {', '.join(STAGES)}", ATTENTION_STAGES)
    lf_at_ends: bool = _doc("also the last features (LF) of DW-1 and UP-3, which have no attention", True)
    sa_mapping: str = _choice("which of the teacher's transformer blocks teach the student's", SA_MAPPINGS, "bottom")
    normalisation: str = _choice(
        "of the feature terms: each by the teacher's own mean square, and then one vote per kind (the mean over its "
        "layers) or one per layer (their sum), or the plain sum over layers, which is the paper's",
        NORMALISATIONS,
        "per-kind",
    )
    task_weight: float = _doc("weight of the task loss, on the true noise", 1.0)
    output_weight: float = _doc("weight of the distance to the teacher's output", 1.0)
    feature_weight: float = _doc("weight of each kind of feature", 1.0)
    min_snr_gamma: float = _doc("min-SNR weighting of task and output loss; 0 is none, 5 is usual", 0.0)
    high_noise_lift: float = _doc("raises that weighting at high noise; 1 weighs velocity evenly there", 0.0)
    noise_offset: float = _doc("share of noise that is constant over the picture", 0.0)
    timesteps: str = _choice("how t is drawn", TIMESTEPS, "uniform")
    noising: str = _choice(
        "how pictures fade: as the teacher's did, in SDXL's way, or down to noise alone", NOISINGS, "teacher"
    )

    data: str = _doc(
        "shapes, a folder of pictures, a .parquet file or folder of them, WebDataset shards (path/{000..099}.tar), "
        "several files by * and **/ or hub:OWNER/NAME",
        "shapes",
    )
    image_column: str = _doc(
        "column of the pictures, or of their addresses, in a parquet file, shard or hub data set", "image"
    )
    short_caption: str = _doc(
        "column or file ending of the short captions; where it is not there and was not set, what was set for the "
        "detailed ones, txt, caption or text is",
        "caption",
    )
    detailed_caption: str = _doc(
        "column or file ending of the detailed captions; where it is not there and was not set, what was set for the "
        "short ones, txt, caption or text is",
        "detailed_caption",
    )
    captions: str = _choice("which captions are learned", CAPTION_STYLES, "detailed")
    num_pictures: int = _doc(
        "how many pictures to use, chosen by the seed out of all (of a hub data set: out of shards that it chooses); "
        "0 is all of them (shapes: 2,048)",
        0,
    )
    resolution: int = _doc("side of the pictures in px; 0 is the teacher's own", 0)
    aspect_buckets: bool = _doc(
        "keep each picture's shape as nearly as an equal area allows, instead of a square", False
    )
    empty_prompts: float = _doc("share of captions replaced by the empty prompt, which guidance needs", 0.1)
    cache: str = _doc("folder of the encoded pictures and captions; empty is the user's cache", "")

    num_steps: int = _doc("optimizer steps", 500_000)
    batch_size: int = _doc("pictures per step, of all processes together", 128)
    accumulation: int = _doc("passes that one step of a process is split into, to save memory", 1)
    optimizer: str = _choice("adamw8bit needs bitsandbytes and a GPU", OPTIMIZERS, "adamw")
    learning_rate: float = _doc("its peak", 1e-5)
    schedule: str = _choice("of the learning rate after its warm-up", SCHEDULES, "constant")
    warmup_steps: int = _doc("steps from 0 to the learning rate", 0)
    weight_decay: float = _doc("decoupled", 0.01)
    max_grad_norm: float = _doc("gradients are clipped to it; 0 is off", 1.0)
    ema_decay: float = _doc("of the moving average of the weights, which is what is kept; 0 is off", 0.9999)
    ema_device: str = _choice("where the moving average lives", EMA_DEVICES, "student")
    precision: str = _choice("of the student's passes; its weights stay fp32", PRECISIONS, "bf16")
    teacher_precision: str = _choice("of the teacher", PRECISIONS, "bf16")
    gradient_checkpointing: bool = _doc("recompute activations to save memory", False)
    seed: int = _doc("of data order, noise, timesteps and captions, and of which pictures are held back", 0)
    threads: int = _doc("CPU threads; 0 takes what there is, and resuming keeps the number", 0)

    checkpoint_every: int = _doc("steps between checkpoints", 1000)
    keep_last: int = _doc("checkpoints kept, beside the best one", 3)
    validate_every: int = _doc("steps between validations: losses, pictures, score; 0 is only at the end", 1000)
    validation_pictures: int = _doc("pictures held back for the validation loss", 64)
    validation_prompts: tuple[str, ...] = _doc(
        "drawn by teacher and student at each validation; a setting is one prompt, commas and all, and may be repeated",
        (),
    )
    validation_guidance: float = _doc("of those pictures; 0 is each model's own", 0.0)
    score_prompts: int = _doc("prompts of the shapes suite that each validation judges; 0 is none", 0)
    log_every: int = _doc("steps between lines of metrics.jsonl", 10)
    time_limit: float = _doc("minutes after which the run saves and stops; 0 is none", 0.0)
    trackers: tuple[str, ...] = _doc(f"besides metrics.jsonl: {', '.join(TRACKERS)}", ())

    def __post_init__(self) -> None:
        check(self)

    def to_dict(self) -> dict:
        """Every field as JSON has it: what config.json holds."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "DistillConfig":
        """From JSON; UserError for a field that does not exist or a value of the wrong kind."""
        if values.get("normalisation") == "teacher":  # as runs of earlier versions name it
            values = {**values, "normalisation": "per-kind"}
        return cls(**typed(values))


def typed(values: Mapping[str, object]) -> dict[str, object]:
    """Fields of a config with their values; UserError for a field that does not exist or a value of another kind."""
    hints = typing.get_type_hints(DistillConfig)
    for name in values:
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1, cutoff=0.5)
            raise UserError(
                f"there is no field {shown(name)} in a distillation's config"
                + (f"; did you mean {near[0]}?" if near else f"; the fields are {', '.join(hints)}")
            )
    return {name: _typed(name, _renamed(name, value), hints[name]) for name, value in values.items()}


def _renamed(name: str, value: object) -> object:
    """What an older run's config calls by another name."""
    return "per-kind" if name == "normalisation" and value == "teacher" else value


def read(file: Path | None, overrides: Sequence[str] = (), base: DistillConfig | None = None) -> DistillConfig:
    """A config from a JSON file over `base`, then `field=value` settings over both. UserError names the remedy."""
    values = base.to_dict() if base else {}
    if file:
        if not file.exists():
            raise UserError(f"there is no config {file}; recipes/full_scale holds some to start from")
        found = read_object(file, "correct it, or write it anew")
        try:
            values |= typed(found)
        except UserError as error:
            raise UserError(f"in {file}, {error}") from error
    said: dict[str, object] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"{override!r} is no setting; write field=value, for example batch_size=16")
        value = _spelled(name, text)
        values[name] = [*said.get(name, []), *value] if name in PROSE else value
        said[name] = values[name]
    try:
        return DistillConfig.from_dict(values)
    except UserError as error:
        if not file:
            raise
        raise UserError(f"in {file}{' and the settings over it' if overrides else ''}, {error}") from error


PROSE = ("validation_prompts",)  # lists whose entries hold commas of their own


def _spelled(name: str, text: str) -> object:
    """The value that `field=text` means: words by commas, a prompt as it is, the rest as JSON or as plain text."""
    kind = typing.get_type_hints(DistillConfig).get(name)
    if typing.get_origin(kind) is tuple:
        if not text.startswith("["):
            return [t.strip() for t in ([text] if name in PROSE else text.split(",")) if t.strip()]
        try:
            return json.loads(text)
        except ValueError as error:
            remedy = f"write {name}={json.dumps([text])}" if name in PROSE else "commas alone do as well"
            raise UserError(f"{name}={text} is no JSON list: {error}; {remedy}") from error
    if kind is str:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _typed(name: str, value: object, kind: object) -> object:
    if typing.get_origin(kind) is tuple:
        if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise UserError(f"{name} must be a list of words, not {shown(value)}")
    right = isinstance(value, int | float if kind is float else kind)
    if not right or isinstance(value, bool) and kind is not bool:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise UserError(f"{name} must be {words[kind]}, not {shown(value)}")
    if kind is not bool and isinstance(value, int | float) and not abs(value) < _LARGEST:  # NaN is not, either
        raise UserError(f"{name} must lie below {_LARGEST:,}, not {shown(value)}")
    return float(value) if kind is float else value


def feature_stages(config: DistillConfig) -> list[tuple[str, str | None]]:
    """The chosen features as (kind, stage); stage None stands for every stage of `config.stages` that has the kind."""
    found = []
    for entry in config.features:
        kind, at, stage = entry.partition("@")
        if kind not in FEATURES:
            raise UserError(f"unknown feature {kind!r}; the features are {', '.join(FEATURES)}")
        if at and stage not in STAGES:
            raise UserError(f"unknown stage {stage!r} in {entry!r}; the stages are {', '.join(STAGES)}")
        found.append((kind, stage if at else None))
    return found + ([("LF", "DW-1"), ("LF", "UP-3")] if config.lf_at_ends else [])


_LARGEST = 2**63  # that any number may be
_MOST = types.MappingProxyType(
    {
        "batch_size": 10**6, "accumulation": 10**6, "resolution": MAX_SIDE, "keep_last": 10**6, "threads": 10**4,
        "validation_pictures": 10**6, "score_prompts": 10**5, "num_steps": 10**9,
    }
)  # fmt: skip
_LEAST = types.MappingProxyType(
    {
        "num_steps": 1, "batch_size": 1, "accumulation": 1, "checkpoint_every": 1, "keep_last": 1, "log_every": 1,
        "validation_pictures": 1, "num_pictures": 0, "resolution": 0, "warmup_steps": 0, "seed": 0, "threads": 0,
        "validate_every": 0, "score_prompts": 0, "task_weight": 0, "output_weight": 0, "feature_weight": 0,
        "min_snr_gamma": 0, "high_noise_lift": 0, "noise_offset": 0, "weight_decay": 0, "max_grad_norm": 0,
        "time_limit": 0, "validation_guidance": 0,
    }
)  # fmt: skip


def check(config: DistillConfig) -> None:
    """UserError for the first value that cannot work."""
    for each in dataclasses.fields(config):
        value, options = getattr(config, each.name), each.metadata.get("choices")
        if options and value not in options:
            raise UserError(f"{each.name} must be one of {', '.join(options)}, not {value!r}")
        if each.name in _LEAST and not value >= _LEAST[each.name]:
            raise UserError(f"{each.name} must be {_LEAST[each.name]} or more, not {value!r}")
        if each.name in _MOST and not value <= _MOST[each.name]:
            raise UserError(f"{each.name} must be {_MOST[each.name]:,} or less, not {value!r}")
    for stage in config.stages:
        if stage not in STAGES:
            raise UserError(f"unknown stage {stage!r}; the stages are {', '.join(STAGES)}")
    for tracker in config.trackers:
        if tracker not in TRACKERS:
            raise UserError(f"unknown tracker {tracker!r}; there are {', '.join(TRACKERS)}")
    feature_stages(config)
    if not 0 <= config.ema_decay < 1:
        raise UserError(
            f"ema_decay must lie between 0 and 1, not {config.ema_decay}; choose ema_decay=0.9999, or ema_decay=0 (off)"
        )
    if not 0 <= config.empty_prompts < 1:
        raise UserError(f"empty_prompts is a share between 0 and 1, not {config.empty_prompts}")
    if not config.learning_rate > 0:
        raise UserError(f"the learning rate must be above 0, not {config.learning_rate}")
    if config.resolution % 32:
        raise UserError(f"resolution must be a multiple of 32 px, not {config.resolution}")
    if config.optimizer == "muon" and config.precision == "fp16":
        raise UserError("optimizer=muon does not run with fp16's scaled gradients; choose precision=bf16 or fp32")
    if config.batch_size % config.accumulation:
        raise UserError(
            f"batch_size {config.batch_size} cannot be split into {config.accumulation} passes; choose a multiple"
        )
    if not (config.task_weight or config.output_weight or config.feature_weight and feature_stages(config)):
        raise UserError("every term of the loss is off; give one of the weights a value above 0")


# BK-SDM's own loss (Kim et al. 2024): outputs of whole blocks, summed as they are; its code never matches MID.
BK_LOSS = dict(
    features=("LF",),
    stages=tuple(s for s in STAGES if s != "MID"),
    lf_at_ends=False,
    normalisation="raw",
)
