"""Maps from recorded q (heads, N, d) and k (heads, M, d): pure functions, exact, in fp32 and in bounded memory.

`head` is "mean", "max" or a number from 0; the maximum is renormalised, so every row of a map sums to 1. With
`diagonal=False` a patch does not see itself, which shows what else it sees (self-attention only).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch.nn.functional import adaptive_avg_pool2d

from koala.errors import UserError

CELLS = 1024  # of the grid on which layers, steps and models are compared, at most: 32x32
_CHUNK = 1 << 22  # elements of (heads, rows, M) at once


def _reduced(weights: torch.Tensor, head: str | int) -> torch.Tensor:
    """(heads, n, M) -> (n, M)."""
    if head == "mean":
        return weights.mean(0)
    if head == "max":
        highest = weights.amax(0)
        return highest / highest.sum(-1, keepdim=True)
    if isinstance(head, int) and 0 <= head < len(weights):
        return weights[head]
    raise UserError(f"there is no head {head!r}; choose mean, max, or 0 to {len(weights) - 1}")


def attend(q: torch.Tensor, k: torch.Tensor, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
    """(heads, n, M): softmax(q k^T / sqrt d) of some queries, every head."""
    return torch.softmax(q[:, rows].float() @ k.float().mT * q.shape[-1] ** -0.5, dim=-1)


def _without(weights: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """(n, M) with each row's own patch at 0, renormalised."""
    left = weights.scatter(1, own[:, None], 0.0)
    return left / left.sum(-1, keepdim=True)


def _rows(
    q: torch.Tensor, k: torch.Tensor, rows: torch.Tensor, head: str | int, diagonal: bool
) -> Iterator[torch.Tensor]:
    """(n, M) of these rows in order, in chunks."""
    k = k.float()
    for part in rows.split(max(1, _CHUNK // (len(q) * k.shape[1]))):
        weights = _reduced(attend(q, k, part), head)
        yield weights if diagonal else _without(weights, part)


def _all(q: torch.Tensor, k: torch.Tensor, head: str | int, diagonal: bool) -> Iterator[torch.Tensor]:
    return _rows(q, k, torch.arange(q.shape[1]), head, diagonal)


def probabilities(
    q: torch.Tensor,
    k: torch.Tensor,
    head: str | int = "mean",
    *,
    diagonal: bool = True,
    indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """(N, M): where every query looks, or (n, M) for some indices (n,)."""
    return torch.cat(list(_rows(q, k, torch.arange(q.shape[1]) if indices is None else indices, head, diagonal)))


def row(
    q: torch.Tensor, k: torch.Tensor, index: int, head: str | int = "mean", *, diagonal: bool = True
) -> torch.Tensor:
    """(M,): where one query looks."""
    return next(_rows(q, k, torch.tensor([index]), head, diagonal))[0]


def region(
    q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor, head: str | int = "mean", *, diagonal: bool = True
) -> torch.Tensor:
    """(M,): where the queries of a mask (N,) look, on average."""
    indices = mask.flatten().nonzero().flatten()
    if not len(indices):
        raise UserError("the region is empty; mark at least one patch")
    return sum(part.sum(0) for part in _rows(q, k, indices, head, diagonal)) / len(indices)


def received(q: torch.Tensor, k: torch.Tensor, head: str | int = "mean", *, diagonal: bool = True) -> torch.Tensor:
    """(M,): how much every key is looked at; 1 is a fair share (Hong et al. 2023, self-attention guidance)."""
    return sum(part.sum(0) for part in _all(q, k, head, diagonal)) * k.shape[1] / q.shape[1]


def entropy(q: torch.Tensor, k: torch.Tensor, head: str | int = "mean", *, diagonal: bool = True) -> torch.Tensor:
    """(N,): 0 where a query looks at one place, 1 where it looks everywhere equally."""
    parts = [-torch.xlogy(part, part).sum(-1) for part in _all(q, k, head, diagonal)]
    return torch.cat(parts) / math.log(k.shape[1])


def positions(grid: tuple[int, int]) -> torch.Tensor:
    """(N, 2): row and column of every patch."""
    return torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in grid))


def mean_distance(
    q: torch.Tensor,
    k: torch.Tensor,
    grid: tuple[int, int],
    head: str | int = "mean",
    *,
    patch: float = 1.0,
    diagonal: bool = True,
) -> torch.Tensor:
    """(N,): how far away a query looks, on average; in units of patches, or px where `patch` is a patch's side."""
    at = positions(grid)
    distances, start = [], 0
    for part in _all(q, k, head, diagonal):
        distances.append((part * torch.cdist(at[start : start + len(part)], at)).sum(-1))
        start += len(part)
    return torch.cat(distances) * patch


def common_grid(grids: Sequence[tuple[int, int]], cells: int = CELLS) -> tuple[int, int]:
    """(h, w): the coarsest of these grids, halved until it has at most `cells`."""
    height, width = min(grids)
    while height * width > cells:
        height, width = height // 2, width // 2
    return height, width


def pooled(
    q: torch.Tensor,
    k: torch.Tensor,
    grid: tuple[int, int],
    common: tuple[int, int],
    head: str | int = "mean",
    *,
    diagonal: bool = True,
) -> torch.Tensor:
    """(N, cells): every query's row with its keys pooled to a common grid, so that rows of all layers compare."""
    parts = []
    for part in _all(q, k, head, diagonal):
        cells = adaptive_avg_pool2d(part.unflatten(1, grid), common).flatten(1)  # (n, h, w) -> (n, cells)
        parts.append(cells / cells.sum(-1, keepdim=True))
    return torch.cat(parts)


def mean(maps: Iterable[torch.Tensor]) -> torch.Tensor:
    """The mean of maps of one shape, over steps for example; one of them in memory at a time."""
    total, count = 0, 0
    for one in maps:
        total, count = total + one, count + 1
    return total / count


def word_map(q: torch.Tensor, k: torch.Tensor, tokens: Sequence[int], head: str | int = "mean") -> torch.Tensor:
    """(N,): how much every patch looks at a word, the sum over its tokens; from cross-attention."""
    if not tokens or not all(0 <= t < k.shape[1] for t in tokens):
        raise UserError(f"tokens are numbers from 0 to {k.shape[1] - 1}, not {list(tokens)}")
    return torch.cat([part[:, list(tokens)].sum(-1) for part in _all(q, k, head, True)])


def words(tokens: Sequence[str]) -> list[tuple[str, tuple[int, ...]]]:
    """Each word of a prompt with the indices of its tokens; start and end of the text count as words."""
    spelled: list[tuple[str, tuple[int, ...]]] = []
    text, indices = "", ()
    for index, token in enumerate(tokens):
        special = token.startswith("<|") and token.endswith("|>")
        text, indices = text + token.removesuffix("</w>"), (*indices, index)
        if special or token.endswith("</w>"):
            spelled.append((text, indices))
            text, indices = "", ()
    return spelled


def _divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """(a, b): half the symmetric Kullback-Leibler divergence of the rows of p (a, M) and q (b, M)."""
    p, q = p.clamp_min(1e-12), q.clamp_min(1e-12)
    log_p, log_q = p.log(), q.log()
    own_p, own_q = (p * log_p).sum(-1), (q * log_q).sum(-1)
    return (own_p[:, None] - p @ log_q.mT + own_q[None] - log_p @ q.mT) / 2


def segments(
    rows: torch.Tensor | Callable[[torch.Tensor], torch.Tensor],
    grid: tuple[int, int],
    *,
    anchors: int = 8,
    threshold: float | None = None,
    rounds: int = 3,
) -> torch.Tensor:
    """(N,): the region of every patch, 0 the largest, from nothing but its rows (N, N) (Tian et al. 2024, DiffSeg).

    `rows` may be a function of indices (n,) -> (n, N): then only a chunk of them is in memory at a time. Rows at the
    anchors of a coarse grid collect the rows similar to them, then similar proposals merge; a patch belongs to the
    proposal that looks at it most. Similar means a divergence below `threshold`, by default a quarter of the largest,
    between 0.02 and 0.8: layers of few heads, which look widely, never reach the divergences of others.
    """
    height, width = grid
    take = rows.__getitem__ if isinstance(rows, torch.Tensor) else rows
    parts = torch.arange(height * width).split(max(1, _CHUNK // (height * width)))
    ys, xs = (torch.linspace(0, side - 1, min(anchors, side)).round().long() for side in grid)
    starts = take((ys[:, None] * width + xs).flatten())  # (anchors^2, N)
    apart = torch.cat([_divergence(starts, take(part)) for part in parts], 1)  # (anchors^2, N)
    if threshold is None:
        threshold = min(0.8, max(0.02, float(apart.max()) / 4))
    near = (apart < threshold).float()
    proposals = sum(near[:, part] @ take(part) for part in parts) / near.sum(-1, keepdim=True)
    for _ in range(rounds):
        merged: list[torch.Tensor] = []
        while len(proposals):
            alike = _divergence(proposals[:1], proposals)[0] < threshold
            alike[0] = True
            merged.append(proposals[alike].mean(0))
            proposals = proposals[~alike]
        proposals = torch.stack(merged)
    label = proposals.argmax(0)
    _, label = label.unique(return_inverse=True)
    order = torch.bincount(label).argsort(descending=True, stable=True)
    return order.argsort()[label]
