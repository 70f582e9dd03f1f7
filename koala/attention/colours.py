"""Layers that stand beside each other as colours: one basis for all models and steps, or as the paper's figure."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from koala.attention import maps, pca
from koala.attention.plan import Layer
from koala.attention.recorded import AttentionRecord

HELD = 5 * 10**8  # bytes of frames that are kept until the colours are there; more are made twice and again
# (N, 3) uint8 of every step and, where there is one, at last of their mean; and the shares of the variance of each
Painted = tuple[list[torch.Tensor], list[tuple[float, ...]]]


def _steps(record: AttentionRecord, layer: Layer) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [record.at(layer, step) for step in range(record.steps)]


@dataclass(frozen=True)
class _Frames:
    """Frames that are made whenever they are looked at, one in memory at a time."""

    make: Callable[..., torch.Tensor]
    given: Sequence[tuple]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self.make(*one) for one in self.given)


def joint(
    records: Sequence[AttentionRecord], layers: Sequence[Layer | None], head: str | int, *, diagonal: bool = True
) -> list[Painted | None]:
    """Every record's layer by one basis, fitted on the steps of all; None where a record has no such layer."""
    common = maps.common_grid([x.grid for x in layers if x])
    steps = [_steps(record, x) if x else [] for record, x in zip(records, layers, strict=True)]
    frames = _Frames(
        lambda x, q, k: maps.pooled(q, k, x.grid, common, head, diagonal=diagonal),
        [(x, q, k) for x, own in zip(layers, steps, strict=True) for q, k in own],
    )
    taken = sum(4 * x.queries * math.prod(common) for x, _, _ in frames.given)
    if taken <= HELD:
        frames = list(frames)
    basis = pca.fit(frames)
    each = map(basis.transform, frames)
    scores = [[next(each) for _ in own] for own in steps]
    full = [[*own, maps.mean(own)] if own else [] for own in scores]  # the mean's score is the mean of the scores
    rest = iter(pca.painted([score for own in full for score in own]))
    return [([next(rest) for _ in own], [basis.explained] * len(own)) if own else None for own in full]


def alone(
    records: Sequence[AttentionRecord], layers: Sequence[Layer | None], *, diagonal: bool = True
) -> list[Painted | None]:
    """Every step of every record by a basis of its own, heads side by side; there is no mean."""
    return [
        pca.paper_mode(_steps(r, x), diagonal=diagonal) if x else None for r, x in zip(records, layers, strict=True)
    ]


def share(explained: Sequence[float]) -> str:
    """How much of the variance three colours show."""
    total = sum(explained)
    weak = ", little of it" if total < pca.MEANINGFUL else ""
    return f"{' + '.join(f'{100 * e:.0f}' for e in explained)} = {100 * total:.0f} %{weak}"
