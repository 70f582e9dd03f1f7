"""A run that memory ended: what it wanted, what was there, and what helps."""

import re
import traceback

from koala.errors import UserError
from koala.request import GenerationRequest
from koala.words import gigabytes, listed

_SIGNS = ("out of memory", "allocate memory", "alloc_failed")  # torch's, ONNX Runtime's, and cuBLAS's and cuDNN's
_UNITS = {unit: 1024**power for power, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB", "PiB"))} | {"bytes": 1}
_WANTED = re.compile(rf"(?:allocate|buffer of size) ([\d.]+) ?({'|'.join(_UNITS)})?\b", re.IGNORECASE)


class RanOut(UserError):
    """Memory ran out; the message says what was wanted and what helps."""


def ran_out(error: BaseException) -> bool:
    """Whether an allocator refused."""
    if isinstance(error, UserError):
        return False  # it was explained already
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SIGNS)


def wanted(error: BaseException) -> int | None:
    """Bytes of the allocation that was refused; None where the allocator does not say."""
    found = _WANTED.search(str(error))
    return int(float(found[1]) * _UNITS[found[2] or "bytes"]) if found else None


def release(error: BaseException | None) -> None:
    """Let go of what the frames of an error hold: its traceback keeps every tensor of the run that failed."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def unplanned(error: BaseException, smaller: str) -> RanOut:
    """What to tell of a shortage in work that no memory plan covers; `smaller` is what helps."""
    last = wanted(error)
    told = f": the allocation that failed was {gigabytes(last)}" if last is not None else ""
    return RanOut(f"memory ran out{told}. Choose {smaller}, or close other programs that use memory")


def explained(
    error: BaseException, request: GenerationRequest, *, device: str, predicted: int | None, there: int | None
) -> RanOut:
    """What to tell of this run, whose defaults are filled in; `predicted` and `there` are bytes, where known."""
    told = []
    if (last := wanted(error)) is not None:
        told.append(f"the allocation that failed was {gigabytes(last)}")
    if predicted is not None:
        told.append(f"the whole run was planned at {gigabytes(predicted)}")
    if there is not None:
        told.append(f"{gigabytes(there)} were free")
    helps = [f"a smaller size than {request.width}x{request.height} px"]
    if request.images > 1:
        helps.append(f"fewer than {request.images} images")
    if request.preset != "low-memory":
        helps.append("the preset low-memory")
    helps.append("a smaller model")
    return RanOut(
        f"memory ran out on {device}" + (": " if told else "") + "; ".join(told) + f". Choose {listed(helps, 'or')}; "
        "--vram GB plans for less where other programs use the memory"
    )
