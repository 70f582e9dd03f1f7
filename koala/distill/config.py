"""DistillConfig: every setting of a distillation, the same for the command line, the app and a GPU cluster.

The defaults are KOALA's recipe (section 4.1 and appendix A), and common practice where the paper is silent. Only the
default of `normalisation` is that of the embedded models; the preset `koala` has the paper's.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from koala.distill.methods import LORA_ALPHA, METHODS, TARGETS, check_method
from koala.errors import UserError
from koala.files.fields import shown
from koala.request import MAX_SIDE
from koala.unet.specs import STAGES

FEATURES = ("SA", "CA", "FFN", "Res", "LF")  # KOALA, section 3.1.2 and table 3a
ATTENTION_STAGES = ("DW-2", "DW-3", "MID", "UP-1", "UP-2")
SA_MAPPINGS = ("bottom", "interleave", "up")  # KOALA, table 11c
NORMALISATIONS = ("per-kind", "per-layer", "raw")
CAPTION_STYLES = ("short", "detailed", "mixed")
TIMESTEPS = ("uniform", "high-noise", "noisiest-quarter", "calls")
NOISINGS = ("teacher", "ddpm", "straight")
SCHEDULES = ("constant", "cosine", "cosine-tail")
OPTIMIZERS = ("adamw", "adamw8bit", "muon")
PRECISIONS = ("fp32", "bf16", "fp16")
EMA_DEVICES = ("student", "cpu")
TRACKERS = ("tensorboard", "wandb")


def _doc(text: str, default: object, **metadata):
    return field(default=default, metadata={"help": text, **metadata})


def _choice(text: str, options: Sequence[str], default: object):
    return _doc(f"{text}: {', '.join(options)}.", default, choices=options)


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """One distillation run. Steps are the optimizer's; `batch_size` is that of all processes together."""

    teacher: str = _doc(
        "The teacher is a model name, a hub id, a folder or a .safetensors file; for KOALA's method it must predict "
        "noise (epsilon).",
        "tiny-sdxl",
    )
    student_spec: str = _doc(
        "The student is cut to this spec, a name such as koala-700m or a list of depths; the teacher's own spec makes "
        "it a copy.",
        "koala-700m",
    )
    student_init: str = _doc(
        "Training starts from this model's U-Net; if empty, the student is cut out of the teacher.", ""
    )

    method: str = _choice(
        "The student learns its teacher's features and outputs (koala), to draw in a few steps (phased), or to draw "
        "without guidance as its teacher does with it",
        METHODS,
        "koala",
    )
    phases: int = _doc(
        "A phased student learns to draw in this many steps, one for each phase of the path.", 4, least=1, most=1000
    )
    solver_steps: int = _doc(
        "The path from noise to picture is cut into this many steps; they divide the 1,000 timesteps, and are a "
        "multiple of the phases.",
        40,
        least=1,
    )
    teacher_steps: int = _doc(
        "The teacher takes this many solver steps before the student's own prediction takes over; as many as a phase "
        "has leave nothing to it.",
        1,
        least=1,
    )
    guidance_min: float = _doc(
        "This is the lowest guidance scale of the teacher of a phased or guidance student; 1 turns guidance off, 0 "
        "uses the teacher's own.",
        0.0,
    )
    guidance_max: float = _doc(
        "The teacher is guided at most this strongly; each picture has a strength of its own between the two.",
        0.0,
        most=100,
    )
    huber: float = _doc(
        "The loss of these methods is linear in differences above this value, and quadratic below.", 0.001
    )
    target: str = _choice(
        "The prediction that a phased student is compared with is its own, or that of its moving average",
        TARGETS,
        "student",
    )
    lora_rank: int = _doc(
        "A phased or guidance student with its teacher's spec trains only a LoRA of this rank on the frozen teacher, "
        "which takes far less memory; 0 trains all weights.",
        0,
        least=0,
        most=1024,
    )
    lora_alpha: float = _doc("What the LoRA adds is scaled by this number divided by its rank.", LORA_ALPHA)

    features: tuple[str, ...] = _doc(
        f"These features are distilled ({', '.join(FEATURES)}), each at every stage of `stages` that has it; "
        "KIND@STAGE names a single stage.",
        ("SA",),
    )
    stages: tuple[str, ...] = _doc(f"Features are distilled at these stages: {', '.join(STAGES)}.", ATTENTION_STAGES)
    lf_at_ends: bool = _doc(
        "The last features (LF) of DW-1 and UP-3, which have no attention, are distilled too.", True
    )
    sa_mapping: str = _choice(
        "This mapping decides which of the teacher's transformer blocks teach the student's", SA_MAPPINGS, "bottom"
    )
    normalisation: str = _choice(
        "Feature terms are added up as they are (raw, as in the paper), or each is first divided by the teacher's own "
        "mean square and then averaged over the layers of its kind (per-kind) or added up (per-layer)",
        NORMALISATIONS,
        "per-kind",
    )
    task_weight: float = _doc("The task loss, which compares with the true noise, has this weight.", 1.0, least=0)
    output_weight: float = _doc("The distance to the teacher's output has this weight.", 1.0, least=0)
    feature_weight: float = _doc("Each kind of feature has this weight.", 1.0, least=0)
    min_snr_gamma: float = _doc(
        "The task and output losses are weighted by min-SNR with this gamma; 5 is usual, 0 turns it off.", 0.0, least=0
    )
    high_noise_lift: float = _doc(
        "The weight of these losses is raised at high noise by this exponent; 1 weighs velocity evenly there.",
        0.0,
        least=0,
    )
    noise_offset: float = _doc("This share of the noise is constant over the picture.", 0.0, least=0)
    timesteps: str = _choice(
        "Timesteps are drawn evenly (uniform), or half of them where layout is decided (high-noise) or evenly from the "
        "noisiest quarter; or only at the calls of a few-step student, half of the time at the first (calls)",
        TIMESTEPS,
        "uniform",
    )
    calls: int = _doc(
        "With timesteps=calls, the student is meant to draw in this many steps, which divide the 1,000 timesteps.",
        4,
        least=1,
    )
    noising: str = _choice(
        "Pictures are noised as the teacher's were, as SDXL does it (ddpm), or on a straight path to pure noise",
        NOISINGS,
        "teacher",
    )

    data: str = _doc(
        "The data are shapes, a folder of pictures, a .parquet file or a folder of them, WebDataset shards "
        "(path/{000..099}.tar), several files by * and **/, or hub:OWNER/NAME.",
        "shapes",
    )
    image_column: str = _doc(
        "This column of a parquet file, shard or hub data set holds the pictures or their addresses.", "image"
    )
    short_caption: str = _doc(
        "This column or file ending holds the short captions. If it is not set and does not exist, the one set for "
        "the detailed captions, txt, caption or text is used.",
        "caption",
    )
    detailed_caption: str = _doc(
        "This column or file ending holds the detailed captions. If it is not set and does not exist, the one set for "
        "the short captions, txt, caption or text is used.",
        "detailed_caption",
    )
    captions: str = _choice("The student learns from these captions", CAPTION_STYLES, "detailed")
    num_pictures: int = _doc(
        "The seed chooses this many pictures out of all; for a hub data set, out of shards that it chooses. 0 uses all "
        "of them (shapes: 2,048).",
        0,
        least=0,
    )
    resolution: int = _doc("The pictures have this side in px; 0 is the teacher's own.", 0, least=0, most=MAX_SIDE)
    aspect_buckets: bool = _doc(
        "Pictures keep their aspect ratio as nearly as an equal area allows, instead of being cropped to a square.",
        False,
    )
    empty_prompts: float = _doc(
        "This share of the captions is replaced by the empty prompt, which guidance needs.", 0.1
    )
    cache: str = _doc("Encoded pictures and captions are kept in this folder; if empty, in the user's cache.", "")

    num_steps: int = _doc("The run takes this many optimizer steps.", 500_000, least=1, most=10**9)
    batch_size: int = _doc("Each step takes this many pictures, over all processes.", 128, least=1, most=10**6)
    accumulation: int = _doc(
        "Each process splits a step into this many passes, to save memory.", 1, least=1, most=10**6
    )
    optimizer: str = _choice(
        "This optimizer updates the weights (adamw8bit needs bitsandbytes and a GPU)", OPTIMIZERS, "adamw"
    )
    learning_rate: float = _doc("The learning rate reaches this value after the warm-up.", 1e-5)
    schedule: str = _choice(
        "After the warm-up, the learning rate is constant, follows a cosine down to 2 %, or does so in the second half "
        "alone (cosine-tail)",
        SCHEDULES,
        "constant",
    )
    warmup_steps: int = _doc("The learning rate rises from 0 over this many steps.", 0, least=0)
    beta2: float = _doc("AdamW's mean of squared gradients decays by this factor.", 0.999, least=0)
    weight_decay: float = _doc("Weights decay by this factor, decoupled from the gradient.", 0.01, least=0)
    max_grad_norm: float = _doc("Gradients are clipped to this norm; 0 turns clipping off.", 1.0, least=0)
    ema_decay: float = _doc(
        "The moving average of the weights, which is the result, decays by this factor; 0 turns it off.", 0.9999
    )
    ema_device: str = _choice("The moving average is kept on this device", EMA_DEVICES, "student")
    precision: str = _choice(
        "The student's passes run in this precision, while its weights stay in fp32", PRECISIONS, "bf16"
    )
    teacher_precision: str = _choice("The teacher runs in this precision", PRECISIONS, "bf16")
    gradient_checkpointing: bool = _doc("Activations are recomputed in the backward pass, to save memory.", False)
    seed: int = _doc(
        "The seed decides the order of the data, noise, timesteps, captions and which pictures are held out.",
        0,
        least=0,
    )
    threads: int = _doc(
        "The CPU uses this many threads; 0 takes what is available, and a resumed run keeps the number.",
        0,
        least=0,
        most=10**4,
    )

    checkpoint_every: int = _doc("A checkpoint is written every so many steps.", 1000, least=1)
    keep_last: int = _doc("This many checkpoints are kept, in addition to the best one.", 3, least=1, most=10**6)
    validate_every: int = _doc(
        "Losses, pictures and the score are computed every so many steps; 0 validates only at the end.", 1000, least=0
    )
    validation_pictures: int = _doc("This many pictures are held out for the validation loss.", 64, least=1, most=10**6)
    validation_prompts: tuple[str, ...] = _doc(
        "Teacher and student draw these prompts at each validation. A setting is one prompt, commas included, and may "
        "be repeated.",
        (),
    )
    validation_guidance: float = _doc(
        "Validation pictures use this guidance scale; 0 is each model's own.", 0.0, least=0
    )
    score_prompts: int = _doc(
        "Each validation judges this many prompts of the shapes suite; 0 turns the score off.", 0, least=0, most=10**5
    )
    log_every: int = _doc("A line is added to metrics.jsonl every so many steps.", 10, least=1)
    time_limit: float = _doc("The run saves and stops after this many minutes; 0 sets no limit.", 0.0, least=0)
    trackers: tuple[str, ...] = _doc(
        f"Metrics also go to these trackers, in addition to metrics.jsonl: {', '.join(TRACKERS)}.", ()
    )

    def __post_init__(self) -> None:
        check(self)

    def to_dict(self) -> dict:
        """Every field as config.json holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "DistillConfig":
        """From JSON; UserError for a field that does not exist or a value of the wrong kind."""
        return cls(**typed(values))


def typed(values: Mapping[str, object]) -> dict[str, object]:
    """The fields with their values checked; UserError for a field that does not exist or a value of another kind."""
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
    """The value under its present name, where an older run's config has another."""
    return "per-kind" if name == "normalisation" and value == "teacher" else value


def _typed(name: str, value: object, kind: object) -> object:
    if typing.get_origin(kind) is tuple:
        if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise UserError(f"{name} must be a list of words, not {shown(value)}")
    right = isinstance(value, int | float if kind is float else kind)
    if not right or isinstance(value, bool) and kind is not bool:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise UserError(f"{name} must be {words[kind]}, not {shown(value)}")
    if kind is not bool and isinstance(value, int | float) and not abs(value) < _LARGEST:  # nor is NaN
        raise UserError(f"{name} must lie below {_LARGEST:,}, not {shown(value)}")
    return float(value) if kind is float else value


def feature_stages(config: DistillConfig) -> list[tuple[str, str | None]]:
    """The chosen features as (kind, stage); stage None means every stage of `config.stages` that has the kind."""
    chosen = []
    for entry in config.features:
        kind, at, stage = entry.partition("@")
        if kind not in FEATURES:
            raise UserError(f"unknown feature {kind!r}; the features are {', '.join(FEATURES)}")
        if at and stage not in STAGES:
            raise UserError(f"unknown stage {stage!r} in {entry!r}; the stages are {', '.join(STAGES)}")
        chosen.append((kind, stage if at else None))
    return chosen + ([("LF", "DW-1"), ("LF", "UP-3")] if config.lf_at_ends else [])


_LARGEST = 2**63  # bound of every number


def check(config: DistillConfig) -> None:
    """UserError for the first value that cannot work."""
    for each in dataclasses.fields(config):
        value, options = getattr(config, each.name), each.metadata.get("choices")
        if options and value not in options:
            raise UserError(f"{each.name} must be one of {', '.join(options)}, not {value!r}")
        least, most = each.metadata.get("least"), each.metadata.get("most")
        if least is not None and not value >= least:
            raise UserError(f"{each.name} must be {least} or more, not {value!r}")
        if most is not None and not value <= most:
            raise UserError(f"{each.name} must be {most:,} or less, not {value!r}")
    for stage in config.stages:
        if stage not in STAGES:
            raise UserError(f"unknown stage {stage!r}; the stages are {', '.join(STAGES)}")
    for tracker in config.trackers:
        if tracker not in TRACKERS:
            raise UserError(f"unknown tracker {tracker!r}; there are {', '.join(TRACKERS)}")
    feature_stages(config)
    check_method(config.to_dict(), {each.name: each.default for each in dataclasses.fields(config)})
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
    if not 0 <= config.beta2 < 1:
        raise UserError(f"beta2 must lie between 0 and 1, not {config.beta2}; 0.999 is usual")
    if config.optimizer == "muon" and config.beta2 != 0.999:
        raise UserError("optimizer=muon has an AdamW of its own settings; leave beta2=0.999, or choose optimizer=adamw")
    if config.batch_size % config.accumulation:
        raise UserError(
            f"batch_size {config.batch_size} cannot be split into {config.accumulation} passes; choose a multiple"
        )
    if not (config.task_weight or config.output_weight or config.feature_weight and feature_stages(config)):
        raise UserError("every term of the loss is off; give one of the weights a value above 0")


# BK-SDM's own loss (Kim et al. 2024): outputs of whole blocks, summed without scaling; its code never matches MID.
BK_LOSS = dict(
    features=("LF",),
    stages=tuple(s for s in STAGES if s != "MID"),
    lf_at_ends=False,
    normalisation="raw",
)
