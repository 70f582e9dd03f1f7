"""The methods of a distillation: which fields of a config each one uses, and which values work together."""

import types
from collections.abc import Mapping, Sequence

from koala.errors import UserError
from koala.unet.specs import UNetSpec

METHODS = ("koala", "phased", "guidance")
TARGETS = ("student", "ema")
LORA_ALPHA = 8.0  # peft's default; the script of phased consistency's authors uses it with rank 64

_KOALA = ("features", "stages", "lf_at_ends", "sa_mapping", "normalisation", "task_weight", "output_weight",
          "feature_weight", "min_snr_gamma", "high_noise_lift")  # fmt: skip
_PHASED = ("phases", "solver_steps", "teacher_steps", "target")
_GUIDED = ("guidance_min", "guidance_max", "huber")
UNUSED = types.MappingProxyType(
    {"koala": (*_PHASED, *_GUIDED), "phased": _KOALA, "guidance": (*_KOALA, *_PHASED)}
)  # fields by the method that does not use them
_TIMESTEPS = 1000


def check_method(values: Mapping[str, object], defaults: Mapping[str, object]) -> None:
    """UserError for a field that the method does not use, or a value that does not fit the others."""
    method = values["method"]
    wrong = [name for name in UNUSED[method] if values[name] != defaults[name]]
    if wrong:
        settings = " ".join(f"{name}={_spelled(defaults[name])}" for name in wrong)
        raise UserError(f"method={method} does not use {', '.join(wrong)}; use the default: {settings}")
    if method == "phased":
        _check_phases(values["phases"], values["solver_steps"], values["teacher_steps"])
    _check_calls(values, defaults["calls"])
    if method != "koala":
        _check_guidance(values["guidance_min"], values["guidance_max"])
        if not values["huber"] > 0:
            raise UserError(f"huber must be above 0, not {values['huber']}; 0.001 is usual")
    if values["target"] == "ema" and not values["ema_decay"]:
        raise UserError("target=ema needs the moving average; choose ema_decay=0.99, or target=student")
    if values["target"] == "ema" and values["ema_device"] != "student":
        raise UserError("target=ema runs the moving average on the student's device; choose ema_device=student")
    _check_lora(values)


def _check_lora(values: Mapping[str, object]) -> None:
    """UserError for settings that do not work with a LoRA, whose student is the teacher's own network."""
    alpha = values["lora_alpha"]
    if not values["lora_rank"]:
        if alpha != LORA_ALPHA:
            raise UserError(f"lora_alpha={alpha:g} has no effect without a LoRA; set lora_rank=64, or leave it out")
        return
    if not alpha > 0:
        raise UserError(f"lora_alpha must be above 0, not {alpha:g}; {LORA_ALPHA:g} is usual")
    if values["method"] == "koala":
        raise UserError(
            "lora_rank trains a LoRA of the teacher itself, and method=koala teaches a smaller student; choose "
            "method=phased, method=guidance or lora_rank=0"
        )
    if values["student_init"]:
        raise UserError("a LoRA starts from its teacher; leave student_init empty and name that model as the teacher")
    if values["optimizer"] == "muon":
        raise UserError("optimizer=muon is for whole matrices, and a LoRA has factors; choose optimizer=adamw")
    if values["target"] == "ema":
        raise UserError("target=ema needs a second network, which a LoRA run does not have; choose target=student")
    if values["precision"] != values["teacher_precision"]:
        raise UserError(
            f"a LoRA's student runs on the teacher's own weights, which are in {values['teacher_precision']}, and not "
            f"in {values['precision']}; choose precision={values['teacher_precision']}"
        )


def check_own_spec(values: Mapping[str, object], student: UNetSpec, teacher: UNetSpec) -> None:
    """UserError for a LoRA whose student is not its teacher's own U-Net."""
    if values["lora_rank"] and student.notation != teacher.notation:
        raise UserError(
            f"a LoRA trains on the teacher's own U-Net, of the depths {teacher.notation}, and student_spec asks for "
            f"{student.notation}; choose student_spec={teacher.notation}, or lora_rank=0"
        )


def _spelled(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _check_phases(phases: int, solver_steps: int, teacher_steps: int) -> None:
    fits = [n for n in range(phases, _TIMESTEPS + 1, phases) if _TIMESTEPS % n == 0]
    if not fits:
        near = min((n for n in range(1, _TIMESTEPS + 1) if _TIMESTEPS % n == 0), key=lambda n: abs(n - phases))
        raise UserError(f"phases must divide the {_TIMESTEPS:,} timesteps, and {phases} does not; choose phases={near}")
    if solver_steps not in fits:
        near = min(fits, key=lambda n: abs(n - solver_steps))
        raise UserError(
            f"solver_steps must divide the {_TIMESTEPS:,} timesteps and be a multiple of the {phases} phases, not "
            f"{solver_steps}; choose solver_steps={near}"
        )
    if teacher_steps > solver_steps // phases:
        raise UserError(
            f"a phase has {solver_steps // phases} of the solver's steps, and the teacher cannot take {teacher_steps} "
            f"of them; choose teacher_steps={solver_steps // phases}"
        )


def _check_calls(values: Mapping[str, object], usual: int) -> None:
    """UserError for calls that no timestep is drawn at, or that the solver does not visit."""
    calls = values["calls"]
    if values["timesteps"] != "calls":
        if calls != usual:
            raise UserError(f"calls={calls} has no effect with timesteps={values['timesteps']}; choose timesteps=calls")
        return
    whole = values["solver_steps"] if values["method"] == "phased" else _TIMESTEPS
    if whole % calls:
        near = min((n for n in range(1, whole + 1) if whole % n == 0), key=lambda n: abs(n - calls))
        grid = f"the {whole} solver_steps" if values["method"] == "phased" else f"the {whole:,} timesteps"
        raise UserError(f"calls must divide {grid}, and {calls} does not; choose calls={near}")


def _check_guidance(low: float, high: float) -> None:
    if (low or high) and not 1 <= low <= high:
        raise UserError(
            f"guidance_min={low:g} and guidance_max={high:g} are not a range of guidance scales, which start at 1 (no "
            "guidance); "
            "set guidance_min=2 guidance_max=2, for example, or guidance_min=0 guidance_max=0 for the teacher's own"
        )
