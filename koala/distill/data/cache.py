"""Pictures and captions, encoded once: a cache on disk keyed by data, encoders and resolution alone."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from koala.distill.config import DistillConfig
from koala.distill.data.encoded import Chunk, EncodedData
from koala.distill.data.encoders import Encoders
from koala.distill.data.filling import EncodingStopped, Filling, Progress
from koala.distill.data.sources import source_for
from koala.outputs import new_file, user_cache
from koala.registry import find
from koala.request import RequestError

__all__ = ["EncodedData", "EncoderSource", "EncodingStopped", "default_folder", "encode"]

log = logging.getLogger(__name__)

VERSION = 1  # of what is done to a picture, and of the files


class EncoderSource(Protocol):
    """What `encode` takes the encoders from, once it knows that something is missing: `encoders.EncoderFiles`."""

    @property
    def identity(self) -> dict:
        """JSON that changes whenever what the encoders make of a picture or a caption does."""
        ...

    def load(self, device: torch.device | str) -> Encoders:
        """The encoders, read into memory for this device. RequestError for files that cannot be read."""
        ...


def default_folder() -> Path:
    """Where encoded data lies if the config names no place: beside the caches of other programs."""
    return user_cache() / "distill"


def encode(
    config: DistillConfig,
    encoders: EncoderSource,
    *,
    device: torch.device | str,
    rank: int = 0,
    world: int = 1,
    on_progress: Progress = lambda done, total, message: None,
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = log.info,
) -> EncodedData:
    """Encode what the cache lacks and wait for what other processes are encoding; the encoders are released again.

    `say` is told what the data is, before any of it is used.

    Raises EncodingStopped soon after `should_stop` says so, RequestError for data that cannot be used.
    """
    resolution = config.resolution or find(config.teacher).width

    def between() -> None:
        if should_stop():
            raise EncodingStopped

    source = source_for(config, resolution, between)
    if source.about:
        say(source.about)
    identity = {
        "version": VERSION,
        "source": source.identity,
        "encoders": encoders.identity,
        "resolution": resolution,
        "aspect_buckets": config.aspect_buckets,
    }
    text = json.dumps(identity, indent=1, sort_keys=True)
    folder = Path(config.cache or default_folder()).absolute() / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not (folder / "identity.json").is_file():
        with new_file(folder / "identity.json") as file:
            file.write_text(text + "\n")
    filling = Filling(
        folder,
        source.parts,
        limit=config.num_pictures,
        resolution=resolution,
        aspect_buckets=config.aspect_buckets,
        load=lambda: encoders.load(device),
        on_progress=on_progress,
        should_stop=should_stop,
    )
    chunks = filling.run(rank, world)
    limits = dict(num_pictures=config.num_pictures, held_back=config.validation_pictures)
    limits["seed"] = None if source.drawn else config.seed
    data = EncodedData(chunks, filling.empty, key=folder.name, **limits)
    _check(config, data, chunks)
    return data


def _check(config: DistillConfig, data: EncodedData, chunks: list[Chunk]) -> None:
    """RequestError where nothing is left to learn from."""
    if data.skipped:
        log.warning("%d of %d pictures were skipped", data.skipped, data.skipped + data.num_pictures)
    if data.skipped + data.num_pictures < config.num_pictures:
        log.warning("%s has no %d pictures; all are used", config.data, config.num_pictures)
    if not data.num_pictures:
        for chunk in chunks:  # the next try shall look again: files may have been missing, or the network
            chunk.file.unlink(missing_ok=True)
        why = next((f"; the first: {why}" for chunk in chunks for why in chunk.skipped), "")
        raise RequestError(f"{config.data} holds no picture that can be used: {data.skipped} were skipped{why}")
    if not data.sizes:
        raise RequestError(
            f"all {data.num_pictures} pictures of {config.data} are held back for validation; set "
            f"validation_pictures={max(1, data.num_pictures // 10)}"
            if data.num_pictures > 1
            else f"{config.data} holds one picture, and it takes one to learn from and one for validation"
        )
