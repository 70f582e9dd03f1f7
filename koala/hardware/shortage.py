"""Out-of-memory errors: what was asked for, what was free, and what helps."""

import re
import traceback

from koala.errors import UserError
from koala.request import GenerationRequest
from koala.words import gigabytes, listed

_SIGNS = ("out of memory", "allocate memory", "alloc_failed")  # torch's, ONNX Runtime's, and cuBLAS's and cuDNN's
_UNITS = {unit: 1024**power for power, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB", "PiB"))} | {"bytes": 1}
_WANTED = re.compile(rf"(?:allocate|buffer of size) ([\d.]+) ?({'|'.join(_UNITS)})?\b", re.IGNORECASE)


class RanOut(UserError):
    """Memory ran out; the message says how much was asked for and what helps."""


def ran_out(error: BaseException) -> bool:
    """Whether an allocator refused a request for memory."""
    if isinstance(error, UserError):
        return False  # it was explained already
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SIGNS)


def wanted(error: BaseException) -> int | None:
    """Bytes of the allocation that was refused; None where the allocator does not say."""
    match = _WANTED.search(str(error))
    return int(float(match[1]) * _UNITS[match[2] or "bytes"]) if match else None


def release(error: BaseException | None) -> None:
    """Clear the frames of an error: its traceback keeps every tensor of the failed run alive."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def unplanned(error: BaseException, smaller: str) -> RanOut:
    """The error for work that no memory plan covers; `smaller` is the advice."""
    last = wanted(error)
    detail = f": the allocation that failed was {gigabytes(last)}" if last is not None else ""
    return RanOut(f"memory ran out{detail}. Choose {smaller}, or close other programs that use memory")


def explained(
    error: BaseException, request: GenerationRequest, *, device: str, predicted: int | None, there: int | None
) -> RanOut:
    """The error for this run, whose defaults are filled in; `predicted` and `there` are bytes, None where unknown."""
    facts = []
    if (last := wanted(error)) is not None:
        facts.append(f"the allocation that failed was {gigabytes(last)}")
    if predicted is not None:
        facts.append(f"the whole run was planned at {gigabytes(predicted)}")
    if there is not None:
        facts.append(f"{gigabytes(there)} were free")
    helps = [f"a smaller size than {request.width}x{request.height} px"]
    if request.images > 1:
        helps.append(f"fewer than {request.images} images")
    if request.preset != "low-memory":
        helps.append("the preset low-memory")
    helps.append("a smaller model")
    return RanOut(
        f"memory ran out on {device}" + (": " if facts else "") + "; ".join(facts) + f". Choose {listed(helps, 'or')}; "
        "--vram GB plans for less where other programs use the memory"
    )
