"""Principal components of attention as colours: one basis for all frames that are compared, so no colour can flip.

A frame is (N, F): every patch's row on a common grid of keys (`maps.pooled`), comparable across layers, steps and
models. The paper's own figure fits every step alone: `paper_mode`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from koala.attention.maps import attend
from koala.errors import UserError
from koala.words import gigabytes

COMPONENTS = 3  # red, green, blue
LOW, HIGH = 0.01, 0.99  # quantiles that become 0 and 255
MOST_WEIGHTS = 1 << 28  # of one step, all heads side by side: twice 1.1 GB
MEANINGFUL = 0.3  # of the variance: below it three colours show little of what there is


@dataclass(frozen=True, kw_only=True)
class Basis:
    """Directions in F dimensions, by decreasing variance, with signs such that the largest loading is positive."""

    mean: torch.Tensor  # (F,)
    components: torch.Tensor  # (3, F)
    explained: tuple[float, ...]  # share of the variance of each

    def transform(self, frame: torch.Tensor) -> torch.Tensor:
        """(N, F) -> (N, 3)."""
        return ((frame.double() - self.mean) @ self.components.mT).float()


def _signed(vectors: torch.Tensor) -> torch.Tensor:
    """Rows with their largest magnitude positive: the sign of an eigenvector is arbitrary."""
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return vectors * largest.sign()


def fit(frames: Iterable[torch.Tensor]) -> Basis:
    """One basis of all rows of all frames, independent of their order; the frames are iterated twice."""
    count, total = 0, 0
    for frame in frames:
        count, total = count + len(frame), total + frame.double().sum(0)
    mean = total / count
    covariance = sum((centred := frame.double() - mean).mT @ centred for frame in frames)
    values, vectors = torch.linalg.eigh(covariance)  # rising
    total = values.clamp_min(0).sum().clamp_min(1e-30)
    top = values.flip(0)[:COMPONENTS].clamp_min(0)
    return Basis(
        mean=mean,
        components=_signed(vectors.flip(1)[:, :COMPONENTS].mT),
        explained=tuple((top / total).tolist()),
    )


def painted(scores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """(N, 3) scores of every frame -> uint8 colours, by the quantiles of all of them together."""
    low, high = torch.quantile(torch.cat(list(scores)), torch.tensor([LOW, HIGH]), dim=0)
    span = (high - low).clamp_min(1e-12)
    return [((s - low) / span * 255).clamp(0, 255).round().to(torch.uint8) for s in scores]


def colours(frames: Sequence[torch.Tensor], basis: Basis | None = None) -> tuple[list[torch.Tensor], Basis]:
    """(N, 3) uint8 of every frame, and the basis: fitted on the frames if none is given."""
    basis = basis or fit(frames)
    return painted([basis.transform(frame) for frame in frames]), basis


def _leading(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (N, 3) and shares of the variance of rows whose columns are the keys of all heads, from (heads, N, M).

    By subspace iteration: the matrix of 64x64 patches and ten heads has 40,960 columns, and is never built.
    """
    centred = weights - weights.mean(1, keepdim=True)
    start = torch.randn(weights.shape[1], 4 * COMPONENTS, generator=torch.Generator().manual_seed(0))
    block, before = torch.linalg.qr(start).Q, torch.zeros(COMPONENTS)
    for _ in range(200):
        image = (centred @ (centred.mT @ block)).sum(0)  # (N, 12): the Gram matrix of the rows, times the block
        values, vectors = torch.linalg.eigh(block.mT @ image)  # rising
        values, scores = values.flip(0)[:COMPONENTS].clamp_min(0), block @ vectors.flip(1)[:, :COMPONENTS]
        if torch.allclose(values, before, rtol=1e-6):
            break
        block, before = torch.linalg.qr(image).Q, values
    total = centred.square().sum().clamp_min(1e-30)
    return _signed(scores.mT).mT * values.sqrt(), values / total


def paper_mode(
    steps: Sequence[tuple[torch.Tensor, torch.Tensor]], *, diagonal: bool = True
) -> tuple[list[torch.Tensor], list[tuple[float, ...]]]:
    """Colours (N, 3) uint8 and explained shares of every step's q and k, each step fitted alone, heads concatenated.

    As in Plug-and-Play (Tumanyan et al. 2023), which KOALA's figure 3b cites: patches are rows, the keys of all heads
    columns, and every step's colours span its own values. A step is turned onto the one before by orthogonal
    Procrustes, so that colours do not jump; the planes shown are the same. Without the `diagonal` no patch sees itself.
    """
    shown, shares, before = [], [], None
    for q, k in steps:
        if len(q) * q.shape[1] * k.shape[1] > MOST_WEIGHTS:
            raise UserError(
                f"{len(q)} heads of {q.shape[1]:,} patches side by side take over {gigabytes(MOST_WEIGHTS * 8)}; "
                "choose the mean of all heads, one head, or a coarser stage"
            )
        weights = attend(q, k)
        if not diagonal:
            weights.diagonal(dim1=-2, dim2=-1).zero_()
            weights /= weights.sum(-1, keepdim=True)
        scores, explained = _leading(weights)
        if before is not None:
            u, _, v = torch.linalg.svd(scores.mT @ before)
            scores = scores @ (u @ v)
        before = scores
        low, high = scores.amin(0), scores.amax(0)
        shown.append(((scores - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8))
        shares.append(tuple(explained.tolist()))
    return shown, shares
