"""What a LoRA adds to one layer's weight, by the formula of its format, in fp32.

LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023), DoRA (Liu et al. 2024), and LyCORIS' LoCon, LoHa and LoKr (Yeh et
al. 2024). The tensors go by their role in the format: `down`, `up`, `mid`, `alpha`, `hada_w1_a`, `lokr_w1`, `diff` ...
"""

import math
from collections.abc import Iterator, Mapping

import torch

Parts = Mapping[str, torch.Tensor]

_AT_ONCE = 1 << 18  # values: 1 MiB in fp32
_TINY = torch.finfo(torch.float32).tiny
DORA = ("dora_scale", "magnitude")  # kohya's, along either axis; peft's, one per output


def change(parts: Parts, weight: torch.Tensor) -> torch.Tensor:
    """What is added to `weight` (out, in, ...) at strength 1, fp32 and of its shape. ValueError if it does not fit.

    The LoRA's tensors and the weight may have any floating dtype, fp8 included.
    """
    given = {role: tensor.float() for role, tensor in parts.items()}
    matrix, scale = _matrix(given)
    wide = (weight.shape[0], math.prod(weight.shape[1:]))
    if tuple(matrix.shape) != wide:
        raise ValueError(f"a change of {tuple(matrix.shape)} for a weight of {wide}")
    # The product first and then its scale, as the formats define it, so that no factor is rounded.
    added = (matrix if scale == 1 else matrix * scale).reshape(weight.shape)
    return _dora(given, weight, added) if any(role in given for role in DORA) else added


def bias_change(parts: Parts) -> torch.Tensor | None:
    """What is added to the layer's bias at strength 1, fp32; None where the file has no bias for it."""
    if "diff_b" in parts:
        return parts["diff_b"].float().flatten()
    if "up_bias" in parts:
        scale = parts["alpha"].float().item() / parts["down"].shape[0] if "alpha" in parts else 1.0
        return parts["up_bias"].float().flatten() * scale
    return parts["b_norm"].float().flatten() if "b_norm" in parts else None


def _scale(p: Parts, rank: int) -> float:
    """alpha / rank; 1 where the file has no alpha, or the format no rank."""
    return p["alpha"].item() / rank if rank and "alpha" in p else 1.0


def _matrix(p: Parts) -> tuple[torch.Tensor, float]:
    """The change as (out, in * kernel), and what scales it."""
    if "diff" in p:
        return p["diff"].flatten(1), 1.0
    if "hada_w1_a" in p:
        first = _hadamard(p["hada_w1_a"], p["hada_w1_b"], p.get("hada_t1"))
        second = _hadamard(p["hada_w2_a"], p["hada_w2_b"], p.get("hada_t2"))
        return (first * second).flatten(1), _scale(p, p["hada_w1_b"].shape[0])
    if "lokr_w1" in p or "lokr_w1_a" in p:
        return _kronecker(p)
    down, up = p["down"].flatten(1), p["up"].flatten(1)
    rank = down.shape[0]
    if up.shape[1] != rank:
        raise ValueError("the factors have two ranks")
    if "mid" in p:  # (rank, rank, kernel), between two factors of 1 x 1
        return torch.einsum("rs...,or,si->oi...", p["mid"], up, down).flatten(1), _scale(p, rank)
    return up @ down, _scale(p, rank)


def _hadamard(a: torch.Tensor, b: torch.Tensor, core: torch.Tensor | None) -> torch.Tensor:
    """(out, in); with a Tucker core (rank, rank, kernel) between a (rank, out) and b (rank, in): (out, in, kernel)."""
    return a @ b if core is None else torch.einsum("ij...,jr,ip->pr...", core, b, a)


def _kronecker(p: Parts) -> tuple[torch.Tensor, float]:
    """LoKr: each of the two factors is whole or of low rank; two whole ones have no rank, so alpha does not apply."""
    rank = 0
    if "lokr_w1" in p:
        first = p["lokr_w1"]
    else:
        first, rank = p["lokr_w1_a"] @ p["lokr_w1_b"], p["lokr_w1_b"].shape[0]
    if "lokr_w2" in p:
        second = p["lokr_w2"]
    else:
        second, rank = _hadamard(p["lokr_w2_a"], p["lokr_w2_b"], p.get("lokr_t2")), p["lokr_w2_b"].shape[0]
    first = first.reshape(*first.shape, *[1] * (second.ndim - first.ndim))
    return torch.kron(first, second.contiguous()).flatten(1), _scale(p, rank)


def _dora(p: Parts, weight: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """m (W + dW) / |W + dW| - W; the norm is of each output's weights, or of each input's where m is (1, in, ...).

    In float64, as the last difference leaves little of two large numbers, and a part of the rows at a time.
    """
    outputs, inputs = weight.shape[:2]
    if "magnitude" in p:
        magnitude, axis = p["magnitude"], 0
    else:
        magnitude = p["dora_scale"]
        axis = 1 if magnitude.ndim > 1 and magnitude.shape[0] == 1 != outputs and magnitude.shape[1] == inputs else 0
    if magnitude.numel() != (outputs, inputs)[axis]:
        raise ValueError(f"{magnitude.numel()} magnitudes for a weight of {tuple(weight.shape)}")
    dims = [d for d in range(weight.ndim) if d != axis]
    squares = [(w.double() + a.double()).square().sum(dims, keepdim=True) for w, a in _pieces(weight, added)]
    norm = (torch.cat(squares) if axis == 0 else torch.stack(squares).sum(0)).sqrt().clamp(min=_TINY)
    factor = (magnitude.double().reshape(norm.shape) / norm).expand(outputs, *norm.shape[1:])
    return torch.cat(
        [((w.double() + a.double()) * f - w.double()).float() for w, a, f in _pieces(weight, added, factor)]
    )


def _pieces(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The same rows of each tensor, as many at once as the first has in `AT_ONCE` values."""
    rows = rows_at_once(tensors[0])
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def rows_at_once(weight: torch.Tensor) -> int:
    """How many rows of a weight are computed at once: few enough that intermediates stay in the processor's cache."""
    return max(1, _AT_ONCE // math.prod(weight.shape[1:]))
