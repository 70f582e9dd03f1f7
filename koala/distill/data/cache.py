"""Pictures and captions, encoded once: a cache on disk keyed by data, encoders and resolution alone."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from koala.distill.config import DistillConfig
from koala.distill.data.again import Again
from koala.distill.data.encoded import Chunk, EncodedData, cache_of, last_try
from koala.distill.data.encoders import Encoders
from koala.distill.data.files import NOTHING, Absent
from koala.distill.data.filling import EncodingStopped, Filling, Progress
from koala.distill.data.pictures import Decoder
from koala.distill.data.samples import Source
from koala.distill.data.sources import source_for
from koala.errors import UserError
from koala.files.outputs import new_file, user_cache
from koala.models.registry import find as find_model

__all__ = [
    "EncodedData",
    "EncoderSource",
    "EncodingStopped",
    "Located",
    "default_folder",
    "encode",
    "find",
    "try_again",
]

log = logging.getLogger(__name__)

VERSION = 1  # of what is done to a picture, and of the files


def _silent(done: int, total: int, message: str) -> None:
    """Progress that nobody listens to."""


class EncoderSource(Protocol):
    """Where `encode` gets the encoders, once something needs encoding: `encoders.EncoderFiles`."""

    @property
    def identity(self) -> dict:
        """JSON that changes whenever what the encoders make of a picture or a caption does."""
        ...

    def load(self, device: torch.device | str) -> Encoders:
        """The encoders, read into memory for this device. UserError for files that cannot be read."""
        ...


def default_folder() -> Path:
    """Folder of encoded data where the config names none: next to the caches of other programs."""
    return user_cache() / "distill"


@dataclass(frozen=True, kw_only=True)
class Located:
    """The data of a run before it is encoded."""

    config: DistillConfig
    source: Source
    folder: Path  # of its cache
    resolution: int
    key: str  # of the data that an earlier part of the run learned from


def find(
    config: DistillConfig,
    encoders: EncoderSource,
    *,
    key: str = "",
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = log.info,
) -> Located | None:
    """The data and its cache; `say` gets a description of the data before any of it is used.

    With `key`, of the data that a run has learned from: exactly those data, even if pictures that were out of
    reach are there by now; None where they changed otherwise.

    Raises EncodingStopped soon after `should_stop` says so, UserError for data that cannot be used.
    """
    resolution = config.resolution or find_model(config.teacher).width

    def between() -> None:
        if should_stop():
            raise EncodingStopped

    def looked(absent: Absent) -> tuple[Located, str]:
        source = source_for(config, resolution, between, absent)
        identity = {
            "version": VERSION,
            "source": source.identity,
            "encoders": encoders.identity,
            "resolution": resolution,
            "aspect_buckets": config.aspect_buckets,
        }
        text = json.dumps(identity, indent=1, sort_keys=True)
        folder = _root(config) / hashlib.sha256(text.encode()).hexdigest()[:16]
        return Located(config=config, source=source, folder=folder, resolution=resolution, key=key), text

    located, text = looked(NOTHING)
    if key and located.folder.name != cache_of(key):
        absent = _out_of_reach_then(_root(config) / cache_of(key))
        located = looked(absent)[0] if absent != NOTHING else located
        if located.folder.name != cache_of(key) or not _filling(located).is_complete():
            return None
        say(f"{located.source.about}; pictures that became available since then are left to a new run")
        return located
    if located.source.about:
        say(located.source.about)
    if not (located.folder / "identity.json").is_file():
        with new_file(located.folder / "identity.json") as file:
            file.write_text(text + "\n")
    return located


def _root(config: DistillConfig) -> Path:
    return Path(config.cache or default_folder()).absolute()


def _out_of_reach_then(folder: Path) -> Absent:
    """What was out of reach when a cache was begun; nothing where the cache is gone."""
    try:
        return Absent.of(json.loads((folder / "identity.json").read_text())["source"])
    except (OSError, ValueError, LookupError, TypeError):
        return NOTHING


def try_again(
    located: Located,
    encoders: EncoderSource,
    *,
    device: torch.device | str,
    on_progress: Progress = _silent,
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = log.info,
) -> int:
    """Retry what was out of reach when it was encoded; returns the number of the last try that found any.

    One process does this before all of them `encode`, so it ends after an hour. Raises EncodingStopped as `find`.
    """
    return Again(_filling(located, encoders, device, on_progress, should_stop), say=say).run()


def encode(
    located: Located,
    encoders: EncoderSource,
    *,
    device: torch.device | str,
    tries: int = 0,
    rank: int = 0,
    world: int = 1,
    on_progress: Progress = _silent,
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = log.info,
) -> EncodedData:
    """Encode what the cache lacks and wait for what other processes are encoding; the encoders are released again.

    A new run learns from what was found up to a number of `tries`, a resumed one from what it has learned from so far.

    Raises EncodingStopped soon after `should_stop` says so, UserError for data that cannot be used.
    """
    config, data = located.config, None
    for number in range(last_try(located.folder), -1, -1) if located.key else (tries,):
        filling = _filling(located, encoders, device, on_progress, should_stop, number)
        chunks = filling.run(rank, world)
        limits = dict(num_pictures=config.num_pictures, held_back=config.validation_pictures)
        limits["seed"] = None if located.source.drawn else config.seed
        data = EncodedData(chunks, filling.empty, key=located.folder.name, **limits)
        if data.key == located.key:
            break
    _check(config, data, chunks, say)
    return data


def _filling(
    located: Located,
    encoders: EncoderSource | None = None,
    device: torch.device | str = "cpu",
    on_progress: Progress = _silent,
    should_stop: Callable[[], bool] = lambda: False,
    tries: int | None = None,
) -> Filling:
    filling = Filling(
        located.folder,
        located.source.parts,
        limit=located.config.num_pictures,
        decoder=Decoder(resolution=located.resolution, aspect_buckets=located.config.aspect_buckets),
        load=lambda: encoders.load(device),
        on_progress=on_progress,
        should_stop=should_stop,
    )
    filling.take_tries(tries)
    return filling


def _check(config: DistillConfig, data: EncodedData, chunks: list[Chunk], say: Callable[[str], None]) -> None:
    """UserError where nothing is left to learn from."""
    if data.skipped:
        away = f"; {data.out_of_reach:,} out of reach: the next new run tries again" if data.out_of_reach else ""
        say(f"{data.skipped:,} of {data.skipped + data.num_pictures:,} pictures were skipped{away}")
    if data.skipped + data.num_pictures < config.num_pictures:
        log.warning("%s has no %d pictures; all are used", config.data, config.num_pictures)
    if not data.num_pictures:
        for chunk in chunks:  # the next try looks again: files may have been missing, or the network
            chunk.file.unlink(missing_ok=True)
        why = next((f"; the first: {one.why}" for chunk in chunks for one in chunk.skipped), "")
        raise UserError(f"{config.data} holds no picture that can be used: {data.skipped} were skipped{why}")
    if not data.sizes:
        raise UserError(
            f"all {data.num_pictures} pictures of {config.data} are held back for validation; set "
            f"validation_pictures={max(1, data.num_pictures // 10)}"
            if data.num_pictures > 1
            else f"{config.data} holds one picture, and it takes one to learn from and one for validation"
        )
