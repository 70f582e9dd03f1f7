"""The processes of a run: one, or as many as a launcher started (`accelerate launch`, torchrun).

Only here does one process wait for another. A decision that others act on is made by one process and sent to all, and
an error of one is an error of all: a process that took another path would leave the others waiting forever.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as group
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from koala.errors import UserError
from koala.hardware.device import best_device

T = TypeVar("T")
_LONGEST_WAIT = timedelta(hours=3)  # of the others while one draws or encodes


def launched() -> bool:
    """Whether a launcher started this process, so that there may be others."""
    return "LOCAL_RANK" in os.environ


def on_cpu() -> bool:
    """Whether a run computes on the CPU: there is nothing better, or the launcher says so."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") or best_device().type == "cpu"


def this_process() -> PartialState:
    """Its rank, their number and its device. The first call joins the others; accelerate keeps the answer."""
    several = {"timeout": _LONGEST_WAIT} if launched() else {}
    return PartialState(cpu=on_cpu(), **several)


class OtherFailed(RuntimeError):
    """Another process of the run failed; the message is its own."""


class Processes:
    """All processes of a run, seen from one of them. Every process calls the same methods in the same order."""

    def __init__(self, errors: Sequence[type[Exception]] = ()):
        """`errors` are the types that the others raise unchanged, in addition to UserError and OSError."""
        state = this_process()
        self.number, self.rank, self.device = state.num_processes, state.process_index, state.device
        self.main = state.is_main_process
        self.shared: Exception | None = None  # the error that all processes raised
        self._errors = {kind.__name__: kind for kind in (UserError, OSError, *errors)}
        self._apart = False

    def on_main(self, task: Callable[..., T], *arguments) -> T:
        """Run `task` on the first process; all get its result (JSON or tuples), and all raise its error."""
        self._meet()
        error, value = self._attempt(task, *arguments) if self.main else (None, None)
        outcome = [(self._outcome_of(error), value)]
        if self.number > 1:
            group.broadcast_object_list(outcome, src=0)
        return self._result(outcome[0][1], error, outcome[0][0])

    def on_each(self, task: Callable[..., T], *arguments) -> T:
        """Run `task` on every process; each gets its own result once all are done. An error of one is raised in all."""
        self._meet()
        error, value = self._attempt(task, *arguments)
        return self._result(value, error, next(filter(None, self._of_all(self._outcome_of(error))), None))

    def any(self, holds: bool) -> bool:
        """Whether it holds in at least one process."""
        self._meet()
        if self.number == 1:
            return bool(holds)
        flag = torch.tensor([float(holds)], device=self.device)
        group.all_reduce(flag)
        return bool(flag.item())

    def alike(self, value: str) -> bool:
        """Whether it is the same in all of them."""
        self._meet()
        return len(set(self._of_all(value))) == 1

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the processes, element by element."""
        self._meet()
        if self.number > 1:
            group.all_reduce(values)
        return values / self.number

    def leave(self) -> None:
        """The last call of all processes. One that left earlier could leave another waiting for it."""
        self._meet()
        state = this_process()
        state.wait_for_everyone()
        state.destroy_process_group()

    def _of_all(self, value: T) -> list[T]:
        every = [value] * self.number
        if self.number > 1:
            group.all_gather_object(every, value)
        return every

    # a task and its end

    def _attempt(self, task: Callable[..., T], *arguments) -> tuple[Exception | None, T | None]:
        try:
            with self._alone():
                return None, task(*arguments)
        except Exception as error:
            return error, None

    @contextmanager
    def _alone(self):
        before, self._apart = self._apart, True
        try:
            yield
        finally:
            self._apart = before

    def _meet(self) -> None:
        """All processes meet here. A single one calls it too, so that its tests find what would hang two."""
        if self._apart:
            raise AssertionError("what one process does by itself must not wait for the others: they are not coming")

    def _outcome_of(self, error: Exception | None) -> tuple[str, str] | None:
        if error is None:
            return None
        kind = next((name for name, kind in self._errors.items() if isinstance(error, kind)), "")
        return kind, str(error) or type(error).__name__

    def _result(self, value: T, error: Exception | None, outcome: tuple[str, str] | None) -> T:
        if outcome is None:
            return value
        kind, words = outcome
        self.shared = error or self._errors.get(kind, OtherFailed)(words)
        raise self.shared
