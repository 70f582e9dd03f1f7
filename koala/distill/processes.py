"""The processes of a run: one, or as many as a launcher started (`accelerate launch`, torchrun)."""

import os
from datetime import timedelta

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from koala.device import best_device

_LONGEST_WAIT = timedelta(hours=3)  # of the others while one draws or encodes


def on_cpu() -> bool:
    """Whether a run computes on the CPU: there is nothing better, or the launcher says so."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") or best_device().type == "cpu"


def this_process() -> PartialState:
    """Its rank, their number and its device. The first call joins the others; accelerate keeps the answer."""
    several = {"timeout": _LONGEST_WAIT} if "LOCAL_RANK" in os.environ else {}
    return PartialState(cpu=on_cpu(), **several)
