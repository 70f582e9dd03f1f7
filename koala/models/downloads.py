"""A model's missing files, fetched from the hub into its own cache: nothing more than is needed, and resumed.

Weights come over plain HTTP with ranges: a download can be stopped at once, and goes on where it stopped, in another
process too. They end up where and as the hub's own client keeps them, so every other program finds them there.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from io import FileIO
from json import JSONDecodeError
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from koala.errors import UserError
from koala.files.hashing import sha256
from koala.models.cards import CARDS, ModelCard
from koala.models.layout import STEMS, check_pipeline, choose, needed, weights
from koala.models.locate import Location, NotOnThisMachine, locate, own_parts
from koala.words import gigabytes

TIMEOUT = 10.0  # s, for the list of files

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, the file that is on its way


class DownloadStopped(Exception):
    """The download was stopped on request; what has arrived is kept, and the next download resumes from it."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a repository that a model needs; `here`: it is on this machine already."""

    repo: str
    revision: str  # commit
    name: str
    size: int  # bytes
    sha256: str | None  # of weights; None for what the hub keeps as plain text
    here: bool


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A repository at a revision, and which of its files are wanted."""

    repo: str
    revision: str | None
    choose: Callable[[set[str]], list[str]]


def _pipeline_files(card: ModelCard, names: set[str]) -> list[str]:
    return needed(names, choose(names, own_parts(card), card.source, "Choose another model or revision"))


def _component_files(repo: str, names: set[str]) -> list[str]:
    chosen = weights(names, STEMS["vae"])
    if chosen is None or "config.json" not in names:
        raise UserError(f"{repo} has no {STEMS['vae']}.safetensors with its config.json; it is not a diffusers VAE")
    return ["config.json", *chosen.files]


def _one_file(repo: str, name: str, names: set[str]) -> list[str]:
    if name not in names:
        raise UserError(f"{repo} no longer has {name}")
    return [name]


def _sources(card: ModelCard, tiny_vae: bool) -> Iterator[_Source]:
    yield _Source(repo=card.source, revision=card.revision, choose=lambda names: _pipeline_files(card, names))
    if card.unet_file:
        repo, _, file = card.unet_file.rpartition("/")
        yield _Source(repo=repo, revision=None, choose=lambda names: _one_file(repo, file, names))
    for repo in (card.vae, card.tiny_vae if tiny_vae else None):
        if repo:
            yield _Source(repo=repo, revision=None, choose=lambda names, repo=repo: _component_files(repo, names))


@contextmanager
def _explained(card: ModelCard, repo: str, revision: str | None) -> Iterator[None]:
    """Turns the hub's errors into one sentence each, with what to type."""
    page = f"{constants.ENDPOINT}/{repo}"
    remedy = (
        f"With a network: python -m koala fetch {card.name} (what came already stays); or copy a folder in diffusers' "
        "layout here and name that"
    )
    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            f"{repo} is gated: accept its licence at {page}, then `hf auth login`, then the same command again"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"{repo} has no revision {revision!r}; give a branch, a tag or a whole commit of {page}/commits/main"
        ) from error
    except RepositoryNotFoundError as error:
        sources = {c.source: c.name for c in CARDS.values() if c.on_hub and c.source != repo}
        near = [f"{sources[s]} ({s})" for s in get_close_matches(repo, sources, n=3, cutoff=0.5)]
        raise UserError(
            f"there is no folder {repo} and no such model at {constants.ENDPOINT}, or it is private (then "
            "`hf auth login` first)"
            + (f"; did you mean {' or '.join(near)}?" if near else "; `python -m koala models` lists the known ones")
        ) from error
    except (HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        cause = error.__cause__ or error  # the reason, where the hub's client only says that it found nothing
        if isinstance(cause, HfHubHTTPError):
            code = cause.response.status_code
            if code in (401, 403):
                raise UserError(f"{constants.ENDPOINT} refuses {repo} ({code}); `hf auth login` first") from error
            why = f"{constants.ENDPOINT} answers with error {code}"
        elif isinstance(cause, OfflineModeIsEnabled):
            why = "HF_HUB_OFFLINE is set"
        else:
            why = f"{constants.ENDPOINT} cannot be reached ({str(cause).splitlines()[0]})"
        raise NotOnThisMachine(f"{card.name} cannot be fetched to this machine: {why}. {remedy}") from error
    except JSONDecodeError as error:  # such as a hotel network's login page
        why = f"what answers at {constants.ENDPOINT} is not a hub"
        raise NotOnThisMachine(f"{card.name} cannot be fetched to this machine: {why}. {remedy}") from error


def plan_download(card: ModelCard, *, tiny_vae: bool = False) -> tuple[RemoteFile, ...]:
    """Every file that the model needs from the hub, with its size; asks the hub for the lists of files.

    A pipeline's model_index.json is fetched at once, so that one of another kind is refused before its weights.
    """
    if not card.on_hub:
        return ()
    files = []
    for source in _sources(card, tiny_vae):
        with _explained(card, source.repo, source.revision):
            info = HfApi().model_info(source.repo, revision=source.revision, files_metadata=True, timeout=TIMEOUT)
            listed = {s.rfilename: s for s in info.siblings}
            if (
                source.repo == card.source and "model_index.json" in listed
            ):  # report a wrong kind of model before missing files
                check_pipeline(Path(hf_hub_download(source.repo, "model_index.json", revision=info.sha)), source.repo)
            names = source.choose(set(listed))
        for name in names:
            size, lfs = listed[name].size or 0, listed[name].lfs
            path = try_to_load_from_cache(source.repo, name, revision=info.sha)
            here = isinstance(path, str) and os.path.getsize(path) == size
            sha256 = lfs.sha256 if lfs else None
            files.append(
                RemoteFile(repo=source.repo, revision=info.sha, name=name, size=size, sha256=sha256, here=here)
            )
    return tuple(files)


class _Part(FileIO):
    """The file that a download appends to: reports its size after each piece, and stops between two pieces."""

    def __init__(self, path: Path, on_size: Callable[[int], None], cancel: threading.Event):
        super().__init__(path, "ab")
        self.on_size, self.cancel = on_size, cancel

    def write(self, piece: bytes) -> int:
        if self.cancel.is_set():
            raise DownloadStopped
        left = memoryview(piece)
        while left:  # one write may take less than all where the disk is nearly full
            left = left[super().write(left) :]
        self.on_size(self.tell())
        return len(piece)


def _blob(file: RemoteFile) -> Path:
    """Where the hub's cache keeps the bytes of a weights file."""
    cache = Path(constants.HF_HUB_CACHE)
    return cache / repo_folder_name(repo_id=file.repo, repo_type="model") / "blobs" / file.sha256


def _begun(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _weights(file: RemoteFile, on_size: Callable[[int], None], cancel: threading.Event) -> None:
    """The bytes of a weights file into the hub's cache, from where an earlier download stopped; then their SHA-256."""
    blob = _blob(file)
    part = _begun(blob)
    lock = Path(constants.HF_HUB_CACHE) / ".locks" / blob.parent.parent.name / f"{blob.name}.lock"
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):  # the hub's client locks the same file: of two downloads at once, one waits
        if blob.exists() and blob.stat().st_size == file.size:
            return on_size(file.size)
        with _Part(part, on_size, cancel) as out:
            url = hf_hub_url(file.repo, file.name, revision=file.revision)
            http_get(url, out, resume_size=out.tell(), headers=build_hf_headers(), expected_size=file.size)
        if sha256(part) != file.sha256:
            part.unlink()
            raise UserError(
                f"{file.repo}/{file.name} came with other bytes than {constants.ENDPOINT} announced, so it was deleted"
                "; the same command fetches it again"
            )
        os.replace(part, blob)


def _check_space(files: list[RemoteFile]) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(p for p in (cache, *cache.parents) if p.exists())).free
    parts = [_begun(_blob(f)) for f in files if f.sha256]
    asked = sum(f.size for f in files) - sum(p.stat().st_size for p in parts if p.exists())
    if asked > free:
        raise UserError(
            f"{gigabytes(asked)} are missing and {cache} has {gigabytes(free)} of free space; free some, or name "
            "another disk with HF_HOME=/path"
        )


def _drop_damaged(file: RemoteFile) -> None:
    """Remove a cached copy whose size is not the hub's; the hub's client would take it for complete."""
    path = try_to_load_from_cache(file.repo, file.name, revision=file.revision)
    # another download may have brought it whole since the list was made
    if isinstance(path, str) and Path(path).stat().st_size != file.size:
        Path(path).resolve().unlink()
        Path(path).unlink(missing_ok=True)


def fetch(
    card: ModelCard,
    on_progress: Progress | None = None,
    cancel: threading.Event | None = None,
    *,
    tiny_vae: bool = False,
) -> Location:
    """Download what the model's newest (or pinned) revision lacks on this machine, and say where it is.

    The branch's name in the cache is moved last: until then, and after a failure, the former revision is whole.
    """
    if not card.on_hub:
        return locate(card)
    cancel = cancel or threading.Event()
    files = plan_download(card, tiny_vae=tiny_vae)
    missing = [f for f in files if not f.here]
    _check_space(missing)
    total, done = sum(f.size for f in missing), 0
    for file in missing:
        if cancel.is_set():
            raise DownloadStopped

        def report(size: int, file: RemoteFile = file, before: int = done) -> None:
            if on_progress:
                on_progress(before + size, total, f"{file.repo}/{file.name}")

        with _explained(card, file.repo, file.revision):
            _drop_damaged(file)
            if file.sha256:
                _weights(file, report, cancel)
            hf_hub_download(file.repo, file.name, revision=file.revision)
            if not file.sha256:
                report(file.size)
        done += file.size
    for source in _sources(card, tiny_vae):
        name = next(f.name for f in files if f.repo == source.repo)
        with _explained(card, source.repo, source.revision):
            hf_hub_download(source.repo, name, revision=source.revision)
    return locate(card)


def obtain(card: ModelCard, on_progress: Progress | None = None, cancel: threading.Event | None = None) -> Location:
    """Where the model is: on this machine, else fetched now. What is here is used as it is, without asking the hub."""
    try:
        return locate(card)
    except NotOnThisMachine:
        return fetch(card, on_progress, cancel, tiny_vae=card.tiny_vae is not None)
