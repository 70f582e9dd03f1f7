"""Settings in a model's files that decide how it is used: SDXL's shape does not imply SDXL's semantics.

One table, read by loading, compress and export. `part_configs` and `unet_config` check that a value is of its kind;
here it is one that this program follows, or that a single file's readers assume.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from koala.errors import UserError
from koala.files.fields import shown
from koala.files.reading import read_object
from koala.request import SCHEDULERS

INDEX, SCHEDULER, UNET, VAE = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "vae/config.json",
)
TEXT, TEXT_2 = "text_encoder/config.json", "text_encoder_2/config.json"

# diffusers' schedulers of the noise that SDXL learned with: all of them follow the betas of their config.
SAME_NOISE = (
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
_NONE = f"no scheduler here does ({', '.join(SCHEDULERS)}); draw it with diffusers' own pipeline, or take another model"
_OTHER = f"it follows another noise schedule than SDXL's, and {_NONE}"
_FLOW = f"it follows the noise of flow matching, and {_NONE}"
_EDM = f"it follows the noise of EDM (Karras et al. 2022), and {_NONE}"
_REFINER = "this is the refiner, which only finishes a picture; take the base model, sdxl-base for example"
_GUIDED = (
    "a network that takes the guidance as an input, as latent consistency models do, which is not supported here; "
    "take the model that it was distilled from, or draw it with diffusers' own pipeline"
)
_QUANTISED = "its weights are quantised; take a float16 or float32 copy of the model"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One key of one config. None for `here` or `single_file`: any value is supported there."""

    file: str  # in diffusers' layout
    key: str
    default: object = None  # where a config lacks the key
    here: tuple | None = None  # values that loading, compress and the ONNX export support
    single_file: tuple | None = None  # values that readers of a single file assume, as it has no place for them
    why: str = "it is not supported here; take another model"
    reasons: Mapping[str, str] = field(default_factory=dict)  # by (the beginning of) a value


SETTINGS = (
    Setting(file=INDEX, key="requires_aesthetics_score", default=False, here=(False, None), why=_REFINER),
    Setting(
        file=SCHEDULER,
        key="_class_name",
        default="EulerDiscreteScheduler",
        here=SAME_NOISE,
        why=_OTHER,
        reasons={"FlowMatch": _FLOW, "EDM": _EDM},
    ),
    Setting(
        file=SCHEDULER,
        key="prediction_type",
        default="epsilon",
        here=("epsilon", "v_prediction", "sample"),
        single_file=("epsilon", "v_prediction"),  # the second by a marker, see `MARKERS`
        why="what the network predicts is one of epsilon, v_prediction and sample; copy the file again",
        reasons={"flow": _FLOW},
    ),
    Setting(file=SCHEDULER, key="use_flow_sigmas", default=False, here=(False, None), why=_FLOW),
    Setting(file=SCHEDULER, key="beta_start", default=0.0001, single_file=(0.00085,)),
    Setting(file=SCHEDULER, key="beta_end", default=0.02, single_file=(0.012,)),
    Setting(file=SCHEDULER, key="beta_schedule", default="linear", single_file=("scaled_linear",)),
    Setting(file=SCHEDULER, key="trained_betas", single_file=(None,)),
    Setting(file=UNET, key="time_cond_proj_dim", here=(None,), single_file=(None,), why=_GUIDED),
    Setting(file=VAE, key="_class_name", default="AutoencoderKL", here=("AutoencoderKL",)),
    Setting(file=VAE, key="latents_mean", single_file=(None,)),
    Setting(file=VAE, key="latents_std", single_file=(None,)),
    Setting(file=TEXT, key="hidden_act", default="quick_gelu", single_file=("quick_gelu",)),
    Setting(file=TEXT_2, key="hidden_act", default="quick_gelu", single_file=("gelu",)),
    *(
        Setting(file=file, key="quantization_config", here=(None,), why=_QUANTISED)
        for file in (UNET, VAE, TEXT, TEXT_2)
    ),
)

# Defaults of diffusers' classes for keys that a config lacks, by (the beginning of) their name.
_LEADING = {"timestep_spacing": "leading"}
_SD_BETAS = {"timestep_spacing": "linspace", "beta_start": 0.00085, "beta_end": 0.012}
_CONSISTENCY = _LEADING | {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_CLASS_DEFAULTS = {
    "DDIM": _LEADING,
    "DDPM": _LEADING,
    "PNDM": _LEADING,
    "Heun": _SD_BETAS,
    "KDPM2": _SD_BETAS,
    "DPMSolverSDE": _SD_BETAS,
    "LCM": _CONSISTENCY,
    "TCD": _CONSISTENCY,
    "": {"timestep_spacing": "linspace"},
}

# Schedulers that are followed with the grid of timesteps that they have themselves.
_ON_OWN_GRID = {"LCMScheduler": "lcm", "TCDScheduler": "tcd"}

# Marker tensors that some files hold next to a U-Net's own: what it predicts (as ComfyUI reads them).
VELOCITY, ZERO_SNR = "v_pred", "ztsnr"
MARKERS = (VELOCITY, ZERO_SNR)
EDM_MARKERS = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")


def _same(value: object, wanted: object) -> bool:
    """Equality in which false is not 0, and true not 1."""
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def with_class_defaults(scheduler: Mapping[str, object]) -> dict[str, object]:
    """A scheduler's config with the defaults of its own class, since another class has others."""
    kind = str(scheduler.get("_class_name", ""))
    return next(given for start, given in _CLASS_DEFAULTS.items() if kind.startswith(start)) | dict(scheduler)


def own_sampler(config: Mapping[str, object]) -> tuple[str, bool]:
    """The scheduler (request.SCHEDULERS) nearest to a pipeline's own, and whether it is the same."""
    spacing = with_class_defaults(config)["timestep_spacing"]
    kind = str(config.get("_class_name", "EulerDiscreteScheduler"))  # a damaged file may have a list there
    if kind in _ON_OWN_GRID:
        return _ON_OWN_GRID[kind], True
    if kind == "EulerAncestralDiscreteScheduler" and spacing == "trailing":
        return "euler-ancestral-trailing", True
    return (
        f"euler-{spacing}" if f"euler-{spacing}" in SCHEDULERS else "euler-trailing",
        kind == "EulerDiscreteScheduler",
    )


def check_settings(files: Mapping[str, Path]) -> None:
    """UserError for a setting that is not supported here; `files` are configs by their place in a pipeline."""
    for file, path in files.items():
        check_config(file, read_object(path), str(path))


def check_config(file: str, config: Mapping[str, object], place: str) -> None:
    """The same for one config that is already read; `place` is what an error names."""
    for one in SETTINGS:
        value = config.get(one.key, one.default)
        if one.file == file and one.here is not None and not any(_same(value, wanted) for wanted in one.here):
            reasons = (why for start, why in one.reasons.items() if str(value).startswith(start))
            value_text = (
                f"is for {shown(value).strip(chr(39))}"
                if one.key == "_class_name"
                else f"says {one.key} {shown(value)}"
            )
            raise UserError(f"{place} {value_text}: {next(reasons, one.why)}")


def check_single_file(owner: str, configs: Mapping[str, Path]) -> None:
    """UserError where a model differs from SDXL in something that a single file cannot express."""
    scheduler = read_object(configs[SCHEDULER])
    if scheduler.get("rescale_betas_zero_snr") and scheduler.get("prediction_type") != "v_prediction":
        raise UserError(
            f"{owner} has rescale_betas_zero_snr in {SCHEDULER} and predicts no velocity; the readers of a single file "
            "know it of v-prediction alone, so they would draw wrong pictures; keep the model as a folder"
        )
    for one in SETTINGS:
        if one.single_file is None or one.file not in configs:
            continue
        config = read_object(configs[one.file])
        value = (with_class_defaults(config) if one.file == SCHEDULER else config).get(one.key, one.default)
        if not any(_same(value, wanted) for wanted in one.single_file):
            raise UserError(
                f"{owner} has {one.key} {shown(value)} in {one.file}; a single file cannot say so, and its readers "
                f"assume {one.single_file[0]!r}, so it would draw wrong pictures; keep the model as a folder"
            )


def check_markers(markers: Iterable[str], scheduler: Mapping[str, object], place: Path) -> None:
    """UserError where a U-Net's file is marked as predicting the velocity, and its scheduler says otherwise."""
    for marker, key, wanted in (
        (VELOCITY, "prediction_type", "v_prediction"),
        (ZERO_SNR, "rescale_betas_zero_snr", True),
    ):
        if marker in markers and not _same(scheduler.get(key), wanted):
            raise UserError(
                f"the U-Net's file is marked {marker}, and {place} says {key} {shown(scheduler.get(key))}; write "
                f'"{key}": {"true" if wanted is True else f"{chr(34)}{wanted}{chr(34)}"} there, or take the file of '
                "another U-Net"
            )


def prediction(markers: Collection[str], scheduler: Mapping[str, object] | None) -> str | None:
    """What a U-Net predicts, in words: from its scheduler's config, or for a U-Net alone from its file's markers.

    None where neither does. A U-Net's markers were compared with its scheduler before (`check_markers`).
    """
    if scheduler is None and not markers:
        return None
    if scheduler is None:
        kind, silent = "v_prediction" if VELOCITY in markers else "epsilon", ZERO_SNR in markers
    else:
        kind, silent = scheduler.get("prediction_type", "epsilon"), scheduler.get("rescale_betas_zero_snr")
    return f"{kind} with rescale_betas_zero_snr" if silent else kind


def zeros_for_empty(index: Path) -> bool:
    """Whether a pipeline gives its U-Net zeros for an empty prompt, instead of its encoders' output."""
    return read_object(index).get("force_zeros_for_empty_prompt", True) is not False  # diffusers' default
