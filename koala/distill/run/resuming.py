"""What may change when a run is resumed. One question decides: does it change what has already been computed?

Every field of a config is in one of three tables; a test compares them with the config.
"""

import json
import shlex
import types
from collections.abc import Collection

from koala.distill.config import DistillConfig
from koala.distill.estimate.total import Estimate
from koala.distill.run.folder import RunFolder
from koala.errors import UserError

# How long, how often and where to.
FREE_FIELDS = frozenset(
    {
        "num_steps", "checkpoint_every", "keep_last", "validate_every", "validation_prompts", "validation_guidance",
        "score_prompts", "log_every", "time_limit", "trackers", "cache",
    }
)  # fmt: skip
# The steps so far stay what they are, the next ones go on in another way: where it is asked for, and recorded. Of
# `data` only the place may change: the content is compared with the checkpoint's.
ON_REQUEST = frozenset(
    {
        "learning_rate", "schedule", "warmup_steps", "weight_decay", "max_grad_norm", "precision", "teacher_precision",
        "task_weight", "output_weight", "feature_weight", "accumulation", "gradient_checkpointing", "ema_device",
        "threads", "data",
    }
)  # fmt: skip
_NETWORK = "the weights so far belong to another network"
_TARGETS = "the losses of the steps so far would not be comparable"
_ORDER = "the steps so far drew their pictures, captions and noise from it"
_STATE = "the state of the optimizer and the moving average depends on it"
FIXED = types.MappingProxyType(
    dict.fromkeys(("teacher", "student_spec", "student_init", "lora_rank", "lora_alpha"), _NETWORK)
    | dict.fromkeys(
        ("features", "stages", "lf_at_ends", "sa_mapping", "normalisation", "min_snr_gamma", "high_noise_lift",
         "noising", "method", "phases", "solver_steps", "teacher_steps", "guidance_min", "guidance_max", "huber",
         "target"), _TARGETS
    )
    | dict.fromkeys(
        ("image_column", "short_caption", "detailed_caption", "captions", "num_pictures", "resolution",
         "aspect_buckets", "empty_prompts", "batch_size", "seed", "validation_pictures", "noise_offset",
         "timesteps", "calls"), _ORDER
    )
    | dict.fromkeys(("optimizer", "beta2", "ema_decay"), _STATE)
)  # fmt: skip


def differences(config: DistillConfig, other: DistillConfig) -> dict[str, tuple[object, object]]:
    """Field -> its value in both, where they are not the same; the fields that a run may change come last."""
    both = {name: (value, getattr(other, name)) for name, value in config.to_dict().items()}
    changed = {name: (new, old) for name, (new, old) in both.items() if new != old}
    return dict(sorted(changed.items(), key=lambda item: (item[0] in FREE_FIELDS, item[0] in ON_REQUEST)))


def spelled(name: str, value: object) -> str:
    """A setting as it is typed on the command line."""
    return shlex.quote(f"{name}={value if isinstance(value, str) else json.dumps(value)}")


def refuse_fixed(run: RunFolder, config: DistillConfig, trained: DistillConfig, asked: Collection[str]) -> None:
    """UserError for a setting that was asked for and cannot change, with how a new run takes it."""
    for name, (new, _) in differences(config, trained).items():
        if name in asked and name in FIXED:
            same_network = FIXED[name] != _NETWORK
            settings = from_student(run) if same_network else f"--out NEW --config {run.path}/config.json"
            raise UserError(
                f"{name} cannot change when a run is resumed: {FIXED[name]}; leave it out, or start a new run: "
                f"{settings} {spelled(name, new)}"
            )


def check_same(
    run: RunFolder, step: int, config: DistillConfig, trained: DistillConfig, asked: Collection[str] = ()
) -> None:
    """UserError where a run's config is not what its checkpoint was trained with, unless the change was asked for.

    Asked for now, in the fields of `asked`, or when the run last continued from this step, as its history says.
    """
    known = changes_at(run, step)
    wrong = {
        name: pair
        for name, pair in differences(config, trained).items()
        if name not in FREE_FIELDS
        and not (name in ON_REQUEST and (name in asked or known.get(name) == as_json(pair[0])))
    }
    if not wrong:
        return
    name, (new, old) = next(iter(wrong.items()))
    before = " ".join(spelled(field, value) for field, (_, value) in wrong.items())
    after = " ".join(spelled(field, value) for field, (value, _) in wrong.items())
    alternative = "" if wrong.keys() - ON_REQUEST else f", or with this run's from here on {after}"
    raise UserError(
        f"checkpoint step-{step} of {run.path} belongs to another run: its {name} is {old!r}, this run's {new!r}; to "
        f"resume it as it was trained, add {before}{alternative}, or start a new run: --out NEW --config "
        f"{run.path}/config.json"
    )


def as_json(value: object) -> object:
    """A field's value as a JSON file gives it back."""
    return list(value) if isinstance(value, tuple) else value


def check_fits(run: RunFolder, expected: Estimate) -> None:
    """UserError where a resumed run does not fit in memory, with the settings that it or a new run may change."""
    fixed = [setting for setting in expected.remedies if setting.partition("=")[0] in FIXED]
    if expected.fits or not fixed:
        expected.check()
        return
    raise UserError(
        f"{expected.shortage()}; {fixed[0].partition('=')[0]} cannot change when a run is resumed, so only a new run "
        f"{beginning(run)} fits: {from_student(run)} {' '.join(expected.remedies)}"
    )


def changes_at(run: RunFolder, step: int) -> dict[str, object]:
    """Field -> its new value, of what changed when the run went on from this step; none where no one can read it."""
    try:
        entries = run.history()
    except UserError:  # the caller reports it, and may ask again
        return {}
    return {name: now for entry in entries if entry["step"] == step for name, (_, now) in entry["changes"].items()}


def words_of_changes(config: DistillConfig, trained: DistillConfig, step: int) -> list[str]:
    """What is different from here on, and how the learning rate continues."""
    changed = differences(config, trained)
    lines = [
        f"{name} is {new!r} from here on; it was {old!r} in checkpoint step-{step}"
        for name, (new, old) in changed.items()
    ]
    cosine = {config.schedule, trained.schedule} != {"constant"}
    if changed.keys() & {"schedule", "learning_rate", "warmup_steps"} or "num_steps" in changed and cosine:
        lines.append(_rate_words(config, trained, step))
    return lines


def _rate_words(config: DistillConfig, trained: DistillConfig, step: int) -> str:
    from koala.distill.optimizers import learning_rate  # with torch, which the app has not loaded when it lists runs

    before, now, last = (
        f"{learning_rate(of, at):.3g}"
        for of, at in ((trained, max(0, step - 1)), (config, step), (config, max(step, config.num_steps - 1)))
    )
    words = f"the learning rate was {before} in step {step:,} and is {now} in step {step + 1:,}"
    if config.schedule != "constant":
        words += f": its cosine spans {config.num_steps:,} steps now, and comes down to {last} in the last of them"
    return words


def trains_lora(run: RunFolder) -> bool:
    """Whether the run's student is its teacher with a LoRA; such a run begins at the teacher, and at no other model."""
    if run.lora.is_file():
        return True
    try:
        return bool(run.config().lora_rank)
    except UserError:
        return False


def beginning(run: RunFolder) -> str:
    """Where the run that `from_student` names begins, in words."""
    return "from the teacher of its LoRA" if trains_lora(run) else "from its student"


def from_student(run: RunFolder, settings: str = "") -> str:
    """What to type so that a new run starts from this one's student, with the settings of its own config.

    From its teacher where the run trains a LoRA.
    """
    start = "" if trains_lora(run) else f" student_init={run.student}"
    return f"--out NEW {settings or f'--config {run.path}/config.json'}{start}"


def record(run: RunFolder, step: int, config: DistillConfig, trained: DistillConfig, processes: int) -> None:
    """Note in the run's history what is different from this step on; notes of later steps are dropped."""
    try:
        earlier = [entry for entry in run.history() if entry["step"] < step]
    except UserError:  # reported by the caller
        earlier = []
    changed = {n: [as_json(old), as_json(new)] for n, (new, old) in differences(config, trained).items()}
    entry = {"step": step, "processes": processes, "changes": changed}
    run.write_history([*earlier, entry])
