"""A recorded layer as a map, at one step or as the mean of all: heat, segments, and principal components as colours."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from koala.attention import maps, pca
from koala.attention.kinds import DISTANCE, ENTROPY, RECEIVED, ROW, Kind
from koala.attention.plan import Layer
from koala.attention.recorded import AttentionRecord

HELD = 5 * 10**8  # bytes of frames that are kept in memory; beyond that they are computed again for every pass
# (N, 3) uint8 of every step, then of their mean if there is one; and each one's explained variance
Painted = tuple[list[torch.Tensor], list[tuple[float, ...]]]

_HEAT = {ROW: maps.region, RECEIVED: maps.received, ENTROPY: maps.entropy, DISTANCE: maps.mean_distance}


def _over_steps(
    record: AttentionRecord, layer: Layer, step: int | None, work: Callable[..., torch.Tensor], **how: object
) -> torch.Tensor:
    """The map of one step, or the mean of all steps' maps."""
    steps = range(record.steps) if step is None else (step,)
    return maps.mean(work(*record.at(layer, s), **how) for s in steps)


def values(
    record: AttentionRecord,
    layer: Layer,
    kind: Kind,
    step: int | None,
    *,
    head: str | int = "mean",
    diagonal: bool = True,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """(N,) of a kind that is heat; `mask` (h, w) of bool marks the patches whose rows are shown."""
    how: dict[str, object] = {"head": head, "diagonal": diagonal}
    if kind == ROW:
        how["mask"] = mask
    if kind == DISTANCE:  # in px of the picture
        how |= {"grid": layer.grid, "patch": record.width / layer.grid[1]}
    return _over_steps(record, layer, step, _HEAT[kind], **how)


def word(
    record: AttentionRecord, layer: Layer, step: int | None, tokens: Sequence[int], head: str | int = "mean"
) -> torch.Tensor:
    """(N,): how much every patch looks at a word, in the cross-attention of a self-attention layer's block."""
    cross = record.layer(layer.stage, "cross", layer.cross)
    return _over_steps(record, cross, step, maps.word_map, tokens=tokens, head=head)


def segments(
    record: AttentionRecord, layer: Layer, step: int | None, *, head: str | int = "mean", diagonal: bool = True
) -> torch.Tensor:
    """(N,): the segment of every patch, 0 the largest."""

    def rows(indices: torch.Tensor) -> torch.Tensor:
        return _over_steps(record, layer, step, maps.probabilities, head=head, diagonal=diagonal, indices=indices)

    return maps.segments(rows, layer.grid)


def _steps(record: AttentionRecord, layer: Layer) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [record.at(layer, step) for step in range(record.steps)]


@dataclass(frozen=True)
class _Frames:
    """Frames that are computed on every iteration, one in memory at a time."""

    make: Callable[..., torch.Tensor]
    given: Sequence[tuple]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self.make(*one) for one in self.given)


def joint_colours(
    records: Sequence[AttentionRecord], layers: Sequence[Layer | None], head: str | int, *, diagonal: bool = True
) -> list[Painted | None]:
    """Every record's layer in one basis, fitted on the steps of all; None for a record without such a layer."""
    common = maps.common_grid([x.grid for x in layers if x])
    steps = [_steps(record, x) if x else [] for record, x in zip(records, layers, strict=True)]
    frames = _Frames(
        lambda x, q, k: maps.pooled(q, k, x.grid, common, head, diagonal=diagonal),
        [(x, q, k) for x, own in zip(layers, steps, strict=True) for q, k in own],
    )
    size = sum(4 * x.queries * math.prod(common) for x, _, _ in frames.given)
    if size <= HELD:
        frames = list(frames)
    basis = pca.fit(frames)
    each = map(basis.transform, frames)
    scores = [[next(each) for _ in own] for own in steps]
    full = [[*own, maps.mean(own)] if own else [] for own in scores]  # the mean's score is the mean of the scores
    rest = iter(pca.painted([score for own in full for score in own]))
    return [([next(rest) for _ in own], [basis.explained] * len(own)) if own else None for own in full]


def paper_colours(
    records: Sequence[AttentionRecord], layers: Sequence[Layer | None], *, diagonal: bool = True
) -> list[Painted | None]:
    """Every step of every record in a basis of its own, heads side by side; there is no mean."""
    return [
        pca.paper_mode(_steps(r, x), diagonal=diagonal) if x else None for r, x in zip(records, layers, strict=True)
    ]


def variance_shown(explained: Sequence[float]) -> str:
    """How much of the variance the three colours show, in words."""
    total = sum(explained)
    weak = ", little of it" if total < pca.MEANINGFUL else ""
    return f"{' + '.join(f'{100 * e:.0f}' for e in explained)} = {100 * total:.0f} %{weak}"
