"""Makes a chunk, the file of at most 256 encoded pictures that `encoded` describes, or the successor of one."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from koala.distill.data.buckets import Bucket, Fit
from koala.distill.data.encoded import Skipped, name_of
from koala.distill.data.encoders import Encoders
from koala.files.outputs import check_space, new_file

_TEXTS = ("context", "pooled")


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """A picture ready to encode."""

    pixels: np.ndarray  # (H, W, 3), uint8
    fit: Fit
    order: int  # in its chunk
    texts: list[int]  # of the chunk's


class ChunkMaker:
    """Gathers the pictures of one chunk and encodes them, batch by batch of one bucket."""

    def __init__(self, encoders: Encoders, after_batch: Callable[[], object]):
        self.encoders, self.after_batch = encoders, after_batch
        self._pending: dict[Bucket, list[_Picture]] = defaultdict(list)
        self._encoded: dict[Bucket, list[tuple[torch.Tensor, _Picture]]] = defaultdict(list)
        self._texts: dict[str, int] = {}

    def add(self, order: int, captions: Sequence[str], pixels: np.ndarray, place: Fit) -> None:
        """Add the picture of this number among the chunk's samples."""
        indices = [self._texts.setdefault(text, len(self._texts)) for text in captions]
        pending = self._pending[place.bucket]
        pending.append(_Picture(pixels=pixels, fit=place, order=order, texts=indices))
        if len(pending) == self.encoders.batch_size(*place.bucket):
            self._encode(place.bucket)

    def encode_rest(self) -> None:
        """Encode the batches that did not fill up."""
        for bucket in sorted(self._pending):
            self._encode(bucket)

    def write(
        self, file: Path, *, samples: int, ends: bool, skipped: Sequence[Skipped], former: Path | None = None
    ) -> None:
        """Write the chunk's file, with its pictures and those that its `former` file holds."""
        tensors = {n: tensor for bucket in self._encoded for n, tensor in _tensors(bucket, self._encoded[bucket])}
        if self._texts:
            context, pooled = self.encoders.captions(list(self._texts))
            tensors |= {"context": context.cpu(), "pooled": pooled.cpu()}
        if former is not None:
            tensors = _together(load_file(former), tensors)
        header = {"samples": samples, "ends": ends, "skipped": [astuple(one) for one in skipped]}
        store_tensors(file, tensors, {"chunk": json.dumps(header)})

    def _encode(self, bucket: Bucket) -> None:
        batch = self._pending.pop(bucket)
        latents = self.encoders.pictures(np.stack([picture.pixels for picture in batch]))
        self._encoded[bucket] += zip(latents.half().cpu(), batch, strict=True)
        self.after_batch()


def _tensors(bucket: Bucket, encoded: Sequence[tuple[torch.Tensor, _Picture]]) -> list[tuple[str, torch.Tensor]]:
    """A bucket's tensors of one chunk, in the order of its samples."""
    encoded = sorted(encoded, key=lambda pair: pair[1].order)
    name, most = name_of(bucket), max(len(picture.texts) for _, picture in encoded)
    texts = [picture.texts + [-1] * (most - len(picture.texts)) for _, picture in encoded]
    return [
        (f"{name}/latents", torch.stack([latents for latents, _ in encoded])),
        (f"{name}/time_ids", torch.tensor([picture.fit.time_ids for _, picture in encoded], dtype=torch.int32)),
        (f"{name}/order", torch.tensor([picture.order for _, picture in encoded], dtype=torch.int32)),
        (f"{name}/captions", torch.tensor(texts, dtype=torch.int32)),
    ]


def _together(old: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Merge the pictures of two files of one chunk in the order of its samples; the old ones stay unchanged."""
    texts = len(old["context"]) if "context" in old else 0
    new = {
        name: torch.where(tensor >= 0, tensor + texts, tensor) if name.endswith("/captions") else tensor
        for name, tensor in new.items()
    }
    merged = dict(new) | dict(old)
    for name in old.keys() & new.keys():
        both, width = [old[name], new[name]], max(tensor.shape[-1] for tensor in (old[name], new[name]))
        if name.endswith("/captions"):
            both = [torch.nn.functional.pad(t, (0, width - t.shape[1]), value=-1) for t in both]
        merged[name] = torch.cat(both)
        if name not in _TEXTS:
            order = f"{name.partition('/')[0]}/order"
            merged[name] = merged[name][torch.cat([old[order], new[order]]).argsort()]
    return merged


def store_tensors(file: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file of the cache completely or not at all. UserError where the disk has no room."""
    check_space(file, sum(tensor.nbytes for tensor in tensors.values()))
    with new_file(file) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=dict(metadata))
