"""safetensors files as bytes: where each tensor lies, and new files made of such pieces.

Nothing is decoded, so values and dtype are unchanged, and memory use is one block whatever the file's size. Values are
only checked for NaN and infinity as they pass. Torch is imported where tensors are made: to list models or to fetch
one needs none, and importing it takes two seconds.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from koala.errors import UserError

if TYPE_CHECKING:
    import torch

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_BLOCK = 1 << 22  # bytes
_TORCH = {  # safetensors' names of what weights may be, and torch's
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
# Bits that are all set in NaN and infinity alone (in NaN alone for the first, which has no infinity), by dtype.
_NOT_FINITE = {
    "F8_E4M3": ("u1", 0x7F),
    "F8_E5M2": ("u1", 0x7C),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F80_0000),
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
}


class Streamed(Protocol):
    """A tensor that is written without being held whole: a stored one, or one made of such."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def parameters(self) -> int:
        """The number of its elements."""

    def blocks(self) -> Iterator[bytes]:
        """Its bytes in their order, some MB at a time."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor's bytes in a file."""

    file: Path
    name: str  # in the file
    start: int
    size: int  # bytes
    dtype: str  # safetensors' own name, such as F16
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    def rows(self, start: int, count: int) -> "StoredTensor":
        """Some of its rows (of the first dimension), which lie together in the file."""
        row = self.size // self.shape[0]
        return replace(self, start=self.start + start * row, size=count * row, shape=(count, *self.shape[1:]))

    def _again(self) -> str:
        """How to get the file again; the hub's cache would link to the same damaged one."""
        return f"remove {self.file.resolve()} and fetch it" if self.file.is_symlink() else "copy or download it"

    def blocks(self) -> Iterator[bytes]:
        """Its bytes in their order, some MB at a time; UserError for one that holds NaN or infinity."""
        with open(self.file, "rb") as file:
            file.seek(self.start)
            left = self.size
            while left:
                block = file.read(min(left, _BLOCK))
                if not block:
                    raise OSError(f"{self.file} ended within a tensor; it changed while it was read")
                if not _is_finite(block, self.dtype):
                    raise UserError(
                        f"{self.file} is damaged: its weight {self.name} holds NaN or infinity; {self._again()} again, "
                        "and where a training run made it so, take an earlier checkpoint of it"
                    )
                yield block
                left -= len(block)


@dataclass(frozen=True, kw_only=True)
class Derived:
    """What is computed from a stored tensor when it is written, and is as large; it is held whole while it is read."""

    stored: StoredTensor

    @property
    def file(self) -> Path:
        """Where it is stored."""
        return self.stored.file

    @property
    def dtype(self) -> str:
        """As stored."""
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return self.stored.shape

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stored.size

    @property
    def parameters(self) -> int:
        """The number of its elements."""
        return self.stored.parameters


@dataclass(frozen=True, kw_only=True)
class Transposed(Derived):
    """A stored matrix whose rows become columns."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Columns, rows."""
        return self.stored.shape[::-1]

    def blocks(self) -> Iterator[bytes]:
        """All its bytes at once."""
        import torch

        yield bytes(load(self.stored).T.contiguous().view(torch.uint8).numpy())


def load(tensor: Streamed) -> "torch.Tensor":
    """The tensor in memory, in its own dtype. UserError for one that torch has not."""
    import torch

    if tensor.dtype not in _TORCH:
        raise UserError(f"{tensor.dtype} is not a type that torch reads; take a float16 or float32 file of the model")
    dtype = getattr(torch, _TORCH[tensor.dtype])
    if not tensor.parameters:
        return torch.empty(tensor.shape, dtype=dtype)
    content = bytearray(tensor.size)
    end = 0
    for block in tensor.blocks():
        content[end : end + len(block)] = block
        end += len(block)
    return torch.frombuffer(content, dtype=dtype).view(tensor.shape)


def _is_finite(block: bytes, dtype: str) -> bool:
    """Whether a block of whole elements holds no NaN and no infinity; integers never do."""
    kind, bits = _NOT_FINITE.get(dtype, ("u1", 0))
    return not bits or bool((np.frombuffer(block, kind) & np.array(bits, kind)).max() != bits)


def check_values(tensors: Iterable[Streamed]) -> None:
    """UserError for a tensor that holds NaN or infinity; the files are read once, and nothing is kept."""
    for tensor in tensors:
        for _ in tensor.blocks():
            pass


def refuse_pickle(path: Path) -> None:
    """UserError for a file that only unpickling could read: that would run whatever code is in it."""
    if path.suffix.lower() in PICKLES:
        raise UserError(
            f"{path} is a pickle, which can run any code when it is read, so it is not opened; take the model's "
            ".safetensors file, or save it again where you trust it: pipeline.save_pretrained(folder)"
        )


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file by name; UserError for a file that is not whole."""
    return read_header(path)[0]


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Every tensor of a safetensors file by name, and its metadata; UserError for a file that is not whole."""
    refuse_pickle(path)
    try:
        with safe_open(path, framework="numpy"):  # checks that header, shapes and length agree
            pass
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); download or copy it again") from error
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", None) or {}
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        tensors[name] = StoredTensor(
            file=path,
            name=name,
            start=8 + length + start,
            size=end - start,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
        )
    return tensors, metadata


def stored_in(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Every tensor of several files by name, as those of shards; UserError for one that two of them hold."""
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        own = stored_tensors(file)
        if twice := sorted(own.keys() & tensors.keys()):
            raise UserError(
                f"{file} and {tensors[twice[0]].file.name} both hold {twice[0]}, and only one can be right; copy or "
                "download the shards again"
            )
        tensors |= own
    return tensors


def check_numbers(place: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """UserError for weights by name whose header takes their bytes for other numbers than they are."""
    for name, tensor in tensors.items():
        if not tensor.dtype.startswith(("F", "BF")):
            raise UserError(
                f"{tensor.file} holds {name} as {tensor.dtype}, which are not weights: it is damaged or quantised; "
                "copy or download it again, or take a float16 file of the model"
            )
    kinds = Counter(tensor.dtype for tensor in tensors.values())
    if {"F16", "BF16"} <= kinds.keys():  # no file has both, and either can be read as the other
        rare = min(("F16", "BF16"), key=kinds.get)
        name = next(name for name, tensor in tensors.items() if tensor.dtype == rare)
        raise UserError(f"{place} is damaged: it holds {name} as {rare}, unlike the rest; copy or download it again")


def save_tensors(path: Path, tensors: Mapping[str, "torch.Tensor"]) -> None:
    """A safetensors file of tensors in memory; OSError where it cannot be written, on a full disk for example."""
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error


def _ordered(tensors: Mapping[str, Streamed]) -> list[tuple[str, Streamed]]:
    """In safetensors' own order: wide elements first, so that all lie aligned, then by name."""
    return sorted(tensors.items(), key=lambda item: (-item[1].size / max(item[1].parameters, 1), item[0]))


def content_sha256(tensors: Mapping[str, Streamed]) -> str:
    """SHA-256 of all that `write_tensors` writes behind the header, in hexadecimal."""
    hashed = hashlib.sha256()
    for _, tensor in _ordered(tensors):
        for block in tensor.blocks():
            hashed.update(block)
    return hashed.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Streamed], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file of these tensors, block by block, in safetensors' own order."""
    header, offset = {"__metadata__": {"format": "pt", **(metadata or {})}}, 0
    ordered = _ordered(tensors)
    for name, one in ordered:
        header[name] = {"dtype": one.dtype, "shape": one.shape, "data_offsets": (offset, offset + one.size)}
        offset += one.size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as out:
        out.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, one in ordered:
            for block in one.blocks():
                out.write(block)
