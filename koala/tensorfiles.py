"""safetensors files as bytes: where each tensor lies, and new files made of such pieces.

Nothing is decoded, so values and dtype stay what they are, and memory is one block whatever the file's size.
"""

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from koala.request import RequestError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_BLOCK = 1 << 22  # bytes


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor's bytes in a file."""

    file: Path
    start: int
    size: int  # bytes
    dtype: str  # safetensors' own name, such as F16
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


def refuse_pickle(path: Path) -> None:
    """RequestError for a file that only unpickling could read: that would run whatever code is in it."""
    if path.suffix.lower() in PICKLES:
        raise RequestError(
            f"{path} is a pickle, which can run any code when it is read, so it is not opened; take the model's "
            ".safetensors file, or save it again where you trust it: pipeline.save_pretrained(folder)"
        )


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file by name; RequestError for a file that is not whole."""
    refuse_pickle(path)
    try:
        with safe_open(path, framework="numpy"):  # checks that header, shapes and length agree
            pass
    except SafetensorError as error:
        raise RequestError(f"{path} is no whole safetensors file ({error}); download or copy it again") from error
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        found[name] = StoredTensor(
            file=path, start=8 + length + start, size=end - start, dtype=entry["dtype"], shape=tuple(entry["shape"])
        )
    return found


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """A safetensors file of tensors in memory; OSError where it cannot be written, on a full disk for example."""
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """A safetensors file of these tensors, byte for byte and block by block, in safetensors' own order."""

    def order(name: str) -> tuple[float, str]:
        return -tensors[name].size / max(tensors[name].parameters, 1), name  # wide elements first: all lie aligned

    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(tensors, key=order):
        one = tensors[name]
        header[name] = {"dtype": one.dtype, "shape": one.shape, "data_offsets": (offset, offset + one.size)}
        offset += one.size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as out, ExitStack() as opened:
        files = {f: opened.enter_context(open(f, "rb")) for f in {t.file for t in tensors.values()}}
        out.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in sorted(tensors, key=order):
            one = tensors[name]
            file, left = files[one.file], one.size
            file.seek(one.start)
            while left:
                block = file.read(min(left, _BLOCK))
                if not block:
                    raise OSError(f"{one.file} ended within {name}; it changed while it was read")
                out.write(block)
                left -= len(block)
