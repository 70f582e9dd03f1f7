"""Whether a run's numbers are numbers: the one place where a run looks at the values of its tensors.

A NaN would become a black picture, or a score of nothing, without a word. A rehearsal on tensors that have no values
replaces `everywhere` and `number`.
"""

import torch

from koala.errors import UserError


class NotFinite(UserError):
    """A tensor holds NaN or infinity where a picture or a measurement was to be made of it."""


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
    """NotFinite, which says what is not finite and what helps."""
    if not is_finite(values):
        raise NotFinite(f"{what} holds NaN or infinity, so nothing can be told from it; {remedy}")
