"""Layers that stand beside each other as colours: one basis for all models and steps, or as the paper's figure."""

from collections.abc import Sequence

import torch

from koala.attention import maps, pca
from koala.attention.plan import Layer
from koala.attention.recorded import AttentionRecord

# (N, 3) uint8 of every step and, where there is one, at last of their mean; and the shares of the variance of each
Painted = tuple[list[torch.Tensor], list[tuple[float, ...]]]


def _steps(record: AttentionRecord, layer: Layer) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [record.at(layer, step) for step in range(record.steps)]


def joint(
    records: Sequence[AttentionRecord], layers: Sequence[Layer | None], head: str | int, *, diagonal: bool = True
) -> list[Painted | None]:
    """Every record's layer by one basis, fitted on the steps of all; None where a record has no such layer."""
    common = maps.common_grid([x.grid for x in layers if x])
    frames = [
        [maps.pooled(q, k, x.grid, common, head, diagonal=diagonal) for q, k in _steps(record, x)] if x else []
        for record, x in zip(records, layers, strict=True)
    ]
    basis = pca.fit([frame for own in frames for frame in own])
    full = [[*own, maps.mean(own)] if own else [] for own in frames]
    rest = iter(pca.colours([frame for own in full for frame in own], basis)[0])
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
