"""Checks for NaN and infinity: the one place where a run reads the values of its tensors.

Unchecked, a NaN silently becomes a black picture or a meaningless score. A rehearsal on tensors without values replaces
`everywhere` and `number`.
"""

import torch

from koala.errors import UserError


class NotFinite(UserError):
    """A tensor that a picture or a measurement depends on holds NaN or infinity."""


def everywhere(condition: torch.Tensor) -> bool:
    """Whether a condition holds in every element; on a GPU this waits for the device."""
    return bool(condition.all())


def number(value: torch.Tensor) -> float:
    """The number in a tensor of one element; on a GPU this waits for the device."""
    return float(value)


def alike(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors of one shape are the same, NaN in the same places included."""
    return everywhere((first == second) | (first.isnan() & second.isnan()))


def is_finite(values: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    return everywhere(torch.isfinite(values))


def require_finite(values: torch.Tensor, what: str, remedy: str) -> None:
    """Raise NotFinite, with what is not finite and the remedy, unless all values are finite."""
    if not is_finite(values):
        raise NotFinite(f"{what} holds NaN or infinity, so no result can be computed from it; {remedy}")
