"""How similarly two models attend: Jensen-Shannon divergence and cosine of their rows, per stage and step.

Layers pair by the layer map, steps by their timesteps; rows are means over heads, with keys on a common grid.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity

from koala.attention.maps import common_grid, pooled
from koala.attention.plan import Layer
from koala.attention.recorded import AttentionRecord, beside
from koala.errors import UserError
from koala.unet.specs import STAGES


@dataclass(frozen=True, kw_only=True)
class StageAgreement:
    """One stage, with a value per step of the first record; none if `absent` gives a reason."""

    stage: str
    absent: str = ""
    layers: int = 0  # pairs that the values are averaged over
    timesteps: tuple[float, ...] = ()
    divergence: tuple[float, ...] = ()  # 0 equal, 1 nothing in common
    cosine: tuple[float, ...] = ()  # 1 equal


def divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """(N,): Jensen-Shannon of rows (N, M) that sum to 1, in bits: 0 equal, 1 nothing in common."""
    middle = (p + q) / 2
    each = (torch.xlogy(x, x / middle.clamp_min(1e-30)).sum(-1) for x in (p, q))
    return sum(each) / 2 / torch.log(torch.tensor(2.0))


def nearest(timestep: float, timesteps: tuple[float, ...]) -> int:
    """The step of another run with the most similar noise."""
    return min(range(len(timesteps)), key=lambda k: abs(timesteps[k] - timestep))


def _compared(
    first: AttentionRecord, second: AttentionRecord, together: list[tuple[Layer, Layer]]
) -> list[tuple[float, float]]:
    """(divergence, cosine) per step of the first record, the mean over rows and pairs of layers."""
    per_step = []
    for step, timestep in enumerate(first.timesteps):
        second_step = nearest(timestep, second.timesteps)
        values = []
        for first_layer, second_layer in together:
            common = common_grid([first_layer.grid, second_layer.grid])
            p = pooled(*first.at(first_layer, step), first_layer.grid, common)
            q = pooled(*second.at(second_layer, second_step), second_layer.grid, common)
            values.append((divergence(p, q).mean().item(), cosine_similarity(p, q).mean().item()))
        per_step.append(tuple(sum(v) / len(values) for v in zip(*values, strict=True)))
    return per_step


def agreement(first: AttentionRecord, second: AttentionRecord) -> list[StageAgreement]:
    """Every stage of two records of one size; the last layers are compared if neither model is cut from the other."""
    if (first.width, first.height) != (second.width, second.height):
        raise UserError(
            f"the captures are {first.width}x{first.height} and {second.width}x{second.height} px; "
            "capture both in one size"
        )
    together, stages = beside([first, second]), []
    for stage in STAGES:
        whole = [pair for pair in together.get(stage, ()) if None not in pair]
        if not whole:
            stages.append(StageAgreement(stage=stage, absent=_absent(stage, first, second)))
            continue
        values = _compared(first, second, whole)
        stages.append(
            StageAgreement(
                stage=stage,
                layers=len(whole),
                timesteps=first.timesteps,
                divergence=tuple(round(d, 5) for d, _ in values),
                cosine=tuple(round(c, 5) for _, c in values),
            )
        )
    return stages


def _absent(stage: str, *records: AttentionRecord) -> str:
    """The reason why a stage has nothing to compare."""
    for record in records:
        if stage not in record.spec.depths():
            return f"{record.model} has no {stage}"
        if not record.spec.depths()[stage][0]:
            return f"{record.model} has no attention in {stage}"
    return f"{stage} was not recorded in both"
