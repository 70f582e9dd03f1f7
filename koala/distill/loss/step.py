"""One distillation step: a batch and its draws through teacher and student, and every term of the loss."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from diffusers import DDPMScheduler

from koala.distill.config import DistillConfig
from koala.distill.data.encoded import Batch
from koala.distill.draws import Draws
from koala.distill.loss.pairs import Pair
from koala.errors import UserError
from koala.models.hooks import tap
from koala.sampling.noising import Noising, ddpm


def snr_weight(
    alphas_cumprod: torch.Tensor, timesteps: torch.Tensor, *, gamma: float, high_noise: float = 0.0
) -> torch.Tensor:
    """Weight of an epsilon loss per sample, (B,): min(SNR, gamma) / SNR (Hang et al. 2023), lifted at high noise.

    `gamma` = 0 turns min-SNR off. `high_noise` = 0 leaves min-SNR as published; 1 matches equal weights on velocity
    there (Salimans and Ho 2022).
    """
    signal = alphas_cumprod[timesteps].float()
    snr = signal / (1 - signal)
    weight = snr.clamp(max=gamma) / snr if gamma else torch.ones_like(snr)
    return weight * (1 + 1 / snr) ** high_noise


def noise_loss(predicted: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean squared error of noise (B, C, H, W), weight (B,). Task and output term alike (eq. A.5)."""
    squared = (predicted.float() - target.float()).square().mean((1, 2, 3))
    return (weight * squared).mean()


def pair_loss(student: torch.Tensor, teacher: torch.Tensor, normalisation: str = "per-kind") -> torch.Tensor:
    """|s - t|^2 of one feature as a mean over its elements, by each sample's own mean square of t, or raw.

    Raw sums are ruled by the few layers with the largest activations; the teacher's norm makes layers comparable
    (LAPTOP-Diff). By sample and not by batch, so that a batch may be split over passes and processes.
    """
    s, t = student.float().flatten(1), teacher.float().flatten(1)  # (B, N * C)
    squared = (s - t).square().mean(1)
    if normalisation != "raw":
        squared = squared / t.square().mean(1).clamp(min=1e-8)
    return squared.mean()


def feature_losses(
    student: Mapping[str, torch.Tensor],
    teacher: Mapping[str, torch.Tensor],
    pairs: Sequence[Pair],
    normalisation: str = "per-kind",
) -> dict[Pair, torch.Tensor]:
    """The term of every pair (KOALA, eq. 1); `student` and `teacher` hold outputs by module path."""
    return {p: pair_loss(student[p.student], teacher[p.teacher], normalisation) for p in pairs}


def by_kind(terms: Mapping[Pair, torch.Tensor], normalisation: str = "per-kind") -> dict[str, torch.Tensor]:
    """One term per kind of feature, to be added up: the mean over its layers where each kind has one vote.

    Where each layer has one, or features are raw, the sum over its layers, so that their sum is the plain sum over all
    layers, as in KOALA (eq. 1) and BK-SDM.
    """
    kinds: dict[str, list[torch.Tensor]] = {}
    for pair, term in terms.items():
        kinds.setdefault(pair.kind, []).append(term)
    stacked = {kind: torch.stack(values) for kind, values in kinds.items()}
    return {kind: values.mean() if normalisation == "per-kind" else values.sum() for kind, values in stacked.items()}


class BrokenLoss(RuntimeError):
    """The loss is not finite, or a term does not reach the student."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """`terms` by name, unweighted: task, output and the kinds of feature; `pairs` holds each layer's own."""

    total: torch.Tensor
    terms: dict[str, torch.Tensor]
    pairs: dict[Pair, torch.Tensor]

    def check(self, step: int) -> None:
        """BrokenLoss naming the term and the layer that is not finite."""
        if torch.isfinite(self.total):
            return
        names = [f"the {p.kind} term of {p.stage} ({p.student})" for p, v in self.pairs.items() if not v.isfinite()]
        names = names or [f"the {n} term" for n, v in self.terms.items() if not v.isfinite()] or ["the weighted sum"]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        alone = ", or with feature_weight=0 at first" if self.pairs else ""
        raise BrokenLoss(
            f"step {step}: {', '.join(names[:3])}{more} is no longer finite; resume from the last checkpoint with a "
            f"lower learning_rate, with precision=bf16 or fp32 instead of fp16{alone}"
        )


class Step(Protocol):
    """What a step computes for any student; the trainer knows no more of a method than this."""

    teacher: torch.nn.Module

    def hooked(
        self, bare: torch.nn.Module, average: Mapping[str, torch.Tensor] | None = None
    ) -> AbstractContextManager[Callable[[torch.nn.Module, Batch, Draws], Losses]]:
        """(student, batch, draws) -> losses as means over the batch, for as long as the block lasts.

        `bare` is the network inside the student that is called, which may be wrapped for several processes; `average`
        is the moving average of its weights, where there is one. Batch and draws may be on any device.
        """


def alphas_cumprod(scheduler_config: dict) -> torch.Tensor:
    """The teacher's noise schedule, (1000,). UserError for a teacher that does not predict noise."""
    kind = scheduler_config.get("prediction_type", "epsilon")
    if kind != "epsilon":
        raise UserError(f"the teacher predicts {kind!r}; every loss here is on predicted noise (epsilon)")
    return DDPMScheduler.from_config(scheduler_config).alphas_cumprod


class DistillationStep:
    """What a step computes for any student: it holds the frozen teacher, the pairs, the noise and its schedule."""

    def __init__(
        self,
        config: DistillConfig,
        teacher: torch.nn.Module,
        pairs: list[Pair],
        alphas: torch.Tensor,
        noising: Noising = ddpm,
    ):
        self.config, self.teacher, self.pairs = config, teacher, pairs
        self.alphas, self.noising = alphas, noising
        # A teacher whose terms all have weight 0 is not run at all.
        self.taught = bool(config.output_weight or (config.feature_weight and pairs))

    @contextmanager
    def hooked(
        self, bare: torch.nn.Module, average: Mapping[str, torch.Tensor] | None = None
    ) -> Iterator[Callable[[torch.nn.Module, Batch, Draws], Losses]]:
        """See `Step`; the hooks sit on `bare`, and only on the layers that a term needs."""
        needed = self.pairs if self.config.feature_weight else []
        student_tap = tap({p.student: bare.get_submodule(p.student) for p in needed})
        teacher_tap = tap({p.teacher: self.teacher.get_submodule(p.teacher) for p in needed})
        with student_tap as student_features, teacher_tap as teacher_features:
            yield partial(self._losses, student_features, teacher_features)

    def _losses(
        self,
        of_student: dict[str, torch.Tensor],
        of_teacher: dict[str, torch.Tensor],
        student: torch.nn.Module,
        batch: Batch,
        draws: Draws,
    ) -> Losses:
        config = self.config
        device = next(student.parameters()).device
        latents, noise, timesteps = (x.to(device) for x in (batch.latents, draws.noise, draws.timesteps))
        context, pooled, time_ids = (x.to(device) for x in (batch.context, batch.pooled, batch.time_ids))
        alphas = self.alphas.to(device)
        noisy, wanted = self.noising(latents, noise, timesteps, alphas)
        weight = snr_weight(alphas, timesteps, gamma=config.min_snr_gamma, high_noise=config.high_noise_lift)
        of_student.clear()
        of_teacher.clear()
        added = {"text_embeds": pooled, "time_ids": time_ids}
        predicted = student(noisy, timesteps, context, added_cond_kwargs=added).sample
        terms, pairs, total = {}, {}, 0.0
        if config.task_weight:
            terms["task"] = noise_loss(predicted, wanted, weight)
            total = total + config.task_weight * terms["task"]
        if self.taught:
            output = self._teach(noisy, timesteps, context, added)
            if config.output_weight:
                terms["output"] = noise_loss(predicted, output, weight)
                total = total + config.output_weight * terms["output"]
            if config.feature_weight:
                pairs = feature_losses(of_student, of_teacher, self.pairs, config.normalisation)
                kinds = by_kind(pairs, config.normalisation)
                terms |= kinds
                total = total + config.feature_weight * sum(kinds.values())
        of_teacher.clear()
        # The student's stay until the next call: once cleared, gradient checkpointing would record them again in the
        # backward pass, each with the graph of its recomputed block (0.9 GB per picture of KOALA-700M at 1024 px).
        return Losses(total=total, terms=terms, pairs=pairs)

    @torch.no_grad()
    def _teach(self, noisy, timesteps, context, added) -> torch.Tensor:
        """The teacher's output in its own precision, outside the student's autocast; one conditional pass."""
        dtype = self.teacher.dtype
        with torch.autocast(noisy.device.type, enabled=False):
            added = added | {"text_embeds": added["text_embeds"].to(dtype)}  # sizes stay exact
            return self.teacher(noisy.to(dtype), timesteps, context.to(dtype), added_cond_kwargs=added).sample


def _early(student: torch.nn.Module) -> torch.nn.Parameter:
    """A weight that learns, on which every feature depends."""
    weight = student.conv_in.weight
    if weight.requires_grad:
        return weight
    return next(p for name, p in student.named_parameters() if name.endswith(".lora_up.weight"))  # `down` meets its 0


def check_gradients(losses: Losses, student: torch.nn.Module) -> None:
    """BrokenLoss naming the first term that does not reach the student's weights.

    Reentrant checkpointing, a detached hook or a pair of one layer with itself would train nothing in silence. A
    student that is a copy of its teacher may begin with outputs that are right, and then has gradients of 0.
    """
    first = _early(student)
    layers = ((f"{p.kind} of {p.stage} ({p.student})", term) for p, term in losses.pairs.items())
    for name, term in (*losses.terms.items(), *layers):
        if term.requires_grad:
            (gradient,) = torch.autograd.grad(term, first, retain_graph=True, allow_unused=True)
            right = term.item() == 0 and name in ("consistency", "guidance")
            if gradient is not None and (right or gradient.abs().max() > 0):
                continue
        raise BrokenLoss(f"the term {name} has no gradient in the student: it would train nothing")
