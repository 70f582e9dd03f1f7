"""A step of distillation on a described card: the trainer's own parts in its order, without its processes and files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
from diffusers import UNet2DConditionModel

from koala.distill.config import DistillConfig
from koala.distill.data.encoded import Batch
from koala.distill.draws import draw
from koala.distill.estimate.memory import RunMemory
from koala.distill.loss.pairs import feature_pairs
from koala.distill.loss.phased import GuidanceStep, PhasedStep
from koala.distill.loss.step import DistillationStep, Step, alphas_cumprod
from koala.distill.loss.velocity import GuidedTeacher
from koala.distill.optimizers import Ema, build_optimizers
from koala.distill.sampling import guidance_range
from koala.hardware.cuda import Card
from koala.lora.training import attach
from koala.models.cards import CARDS
from koala.models.random_weights import FOLDER
from koala.models.reading import load_noising
from koala.sampling.noising import noising_of
from koala.unet.costs import LATENT_CHANNELS, LATENT_FACTOR, TOKENS
from koala.unet.specs import UNetSpec
from koala.unet.specs import student as student_spec
from recipes.rehearsal.card import Rehearsal, rehearsed
from recipes.rehearsal.checks import WITHIN

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
STAGES = ("passes of student and teacher", "backward pass", "optimizer's step")  # RunMemory's moments


@dataclass(frozen=True, kw_only=True)
class Training:
    """What one step took on the card, by moment, next to the estimate without the convolutions' workspace. Bytes."""

    card: Card
    config: DistillConfig
    predicted: dict[str, int]
    tracked: dict[str, int]
    precisions: frozenset[str]  # of the products and convolutions in the passes

    @property
    def problems(self) -> tuple[str, ...]:
        """Where the busiest moment is not the one that was estimated, or is larger than the card."""
        predicted, tracked = max(self.predicted.values()), max(self.tracked.values())
        problems = []
        wanted = {DTYPES[self.config.precision], DTYPES[self.config.teacher_precision]}
        if self.precisions != wanted:
            problems.append(f"the passes ran in {sorted(self.precisions)}, and the config says {sorted(wanted)}")
        if abs(tracked - predicted) > WITHIN * predicted:
            problems.append(f"the peak is {tracked:,} bytes, and the estimate counts {predicted:,}")
        if tracked >= self.card.total_bytes:
            problems.append(f"the peak is {tracked:,} bytes, and the card has {self.card.total_bytes:,}")
        return tuple(problems)

    @property
    def case(self) -> str:
        """What is special about the step."""
        config = self.config
        words = ["distillation step", *([config.method] if config.method != "koala" else [])]
        words += [f"LoRA of rank {config.lora_rank}"] if config.lora_rank else []
        return ", ".join([*words, *(["checkpointing"] if config.gradient_checkpointing else [])])

    def row(self) -> dict:
        """For the report."""
        return {
            "case": self.case,
            "models": [self.config.teacher, self.config.student_spec],
            "card": self.card.name,
            "card_bytes": self.card.total_bytes,
            "plan": {n: getattr(self.config, n) for n in ("batch_size", "precision", "teacher_precision", "optimizer")},
            "predicted_bytes": max(self.predicted.values()),
            "tracked_bytes": max(self.tracked.values()),
            "moments": {m: {"predicted": self.predicted[m], "tracked": self.tracked[m]} for m in STAGES},
        }


def train(config: DistillConfig, card: Card) -> Training:
    """The second of two steps, which has the optimizer's state from its beginning.

    In fp32 the tensors say that they are on the card. Under autocast they say that they are a CPU's, for CUDA's own
    asks autograd's engine for streams, and only a card has those; norms are in fp32 then, as CUDA's autocast has them.
    """
    device = "cuda:0" if config.precision == "fp32" else "cpu"
    with rehearsed(card, device=device) as rehearsal, _norms_as_on_a_card():
        rehearsal.storages.learning = True
        two = steps(config, network=partial(_network, rehearsal), begins=partial(setattr, rehearsal.storages, "stage"))
        for _ in two:
            rehearsal.storages.busiest.clear()
            rehearsal.storages.kernels.clear()
        tracked = {stage: rehearsal.storages.busiest[stage] for stage in STAGES}
        precisions = {dtype for stage, _, dtype in rehearsal.storages.kernels if stage == STAGES[0]}
    moments = estimated(config, slack=1.0)
    return Training(
        card=card,
        config=config,
        predicted={stage: moments[stage] for stage in STAGES},
        tracked=tracked,
        precisions=frozenset(precisions),
    )


def estimated(config: DistillConfig, **more) -> dict[str, int]:
    """What the estimate says of every moment, in bytes; `more` are further fields of RunMemory."""
    teacher = CARDS[config.teacher].spec
    run = RunMemory(
        config=config,
        student=student_spec(config.student_spec, teacher),
        teacher=teacher,
        resolution=config.resolution,
        device="cuda",
        memory=None,
        world=1,
        sharded=False,
        **more,
    )
    return run.moments(run.pictures_per_pass)


def steps(
    config: DistillConfig,
    *,
    network: Callable[..., UNet2DConditionModel],
    begins: Callable[[str], None],
    autocast: str = "cpu",
) -> Iterator[None]:
    """Two steps, with a pause before the second; as `koala.distill.trainer` loads, wraps and runs.

    `network` makes one of a spec and a dtype where it is to work, which a LoRA's third argument prepares; `begins`
    hears each of STAGES, and `autocast` is the kind of device whose autocast the student runs under.
    """
    taught_by = CARDS[config.teacher].spec
    spec = student_spec(config.student_spec, taught_by)
    of_teacher = DTYPES[config.teacher_precision]
    if config.lora_rank:
        adapt = partial(attach, rank=config.lora_rank, alpha=config.lora_alpha)
        bare = teacher = network(taught_by, of_teacher, adapt).train()
    else:
        teacher = network(taught_by, of_teacher).eval().requires_grad_(False)
        bare = network(spec, "float32").train().requires_grad_(True)
    if config.gradient_checkpointing:
        bare.enable_gradient_checkpointing()
    step = _step(config, teacher, spec)
    optimizers = build_optimizers(bare, config)
    half = config.precision != "fp32"
    student = _Autocasting(bare, autocast, getattr(torch, DTYPES[config.precision])) if half else bare
    ema = Ema(bare, config.ema_decay, config.ema_device) if config.ema_decay else None
    side = config.resolution // LATENT_FACTOR
    with step.hooked(bare) as losses_of:
        for number in range(2):
            places = range(number * config.batch_size, (number + 1) * config.batch_size)
            batch = _batch(spec, config.batch_size, side)
            begins(STAGES[0])
            losses = losses_of(student, batch, draw(config, places, (LATENT_CHANNELS, side, side)))
            begins(STAGES[1])
            losses.total.backward()
            del losses
            begins(STAGES[2])
            torch.nn.utils.clip_grad_norm_(bare.parameters(), config.max_grad_norm or float("inf"))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if ema:
                ema.update(bare)
            if number == 0:
                yield


def _step(config: DistillConfig, teacher: UNet2DConditionModel, spec: UNetSpec) -> Step:
    """As `koala.distill.preparation.step_of`, on the schedule of the random models."""
    card = CARDS[config.teacher]
    alphas, noising = alphas_cumprod(load_noising(FOLDER / "scheduler").config), noising_of(card, config.noising)
    if config.method == "koala":
        return DistillationStep(config, teacher, feature_pairs(config, spec, card.spec), alphas, noising)
    empty = torch.zeros(1, TOKENS, spec.cross_attention_dim), torch.zeros(1, spec.pooled_dim)
    kind = PhasedStep if config.method == "phased" else GuidanceStep
    return kind(config, GuidedTeacher(teacher, empty, guidance_range(config, card)), alphas, noising)


def _network(
    rehearsal: Rehearsal, spec: UNetSpec, dtype: str, adapt: Callable[[torch.nn.Module], None] | None = None
) -> UNet2DConditionModel:
    with torch.device("meta"):
        network = UNet2DConditionModel(**spec.config()).to(getattr(torch, dtype))
        if adapt:
            adapt(network)
    return rehearsal.empty(network).to(rehearsal.device)


def _batch(spec: UNetSpec, pictures: int, side: int) -> Batch:
    """Encoded pictures in host memory."""
    return Batch(
        latents=torch.zeros(pictures, LATENT_CHANNELS, side, side),
        context=torch.zeros(pictures, TOKENS, spec.cross_attention_dim),
        pooled=torch.zeros(pictures, spec.pooled_dim),
        time_ids=torch.zeros(pictures, 6),
    )


class _Autocasting(torch.nn.Module):
    """A network whose passes are under autocast and whose output is fp32 again, as accelerate's `prepare` makes it."""

    def __init__(self, bare: torch.nn.Module, device: str, dtype: torch.dtype):
        super().__init__()
        self.bare, self.device_type, self.dtype = bare, device, dtype

    def forward(self, *inputs, **more):
        with torch.autocast(self.device_type, self.dtype):
            output = self.bare(*inputs, **more)
        output.sample = output.sample.float()
        return output


def _wide(norm: Callable) -> Callable:
    def normalised(values: torch.Tensor, *settings, **more) -> torch.Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return norm(values, *settings, **more)
        with torch.autocast("cpu", enabled=False):
            return norm(values.float(), *settings, **more)

    return normalised


@contextmanager
def _norms_as_on_a_card() -> Iterator[None]:
    """CUDA's autocast normalises in fp32, the CPU's does not."""
    functional = torch.nn.functional
    with (
        mock.patch.object(functional, "group_norm", _wide(functional.group_norm)),
        mock.patch.object(functional, "layer_norm", _wide(functional.layer_norm)),
    ):
        yield
