"""The app's exports: what a visitor may start, the folders that are there, and their files to take along."""

import hashlib
import re
import shutil
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path

from gradio.utils import get_upload_folder

from koala.errors import UserError
from koala.files.outputs import check_space, new_file
from koala.models.cards import ModelCard
from koala.models.export_manifest import MANIFEST, Exported, exports_root, list_exports
from koala.models.locate import availability
from koala.ui.catalogue import portable_name
from koala.ui.export.jobs import DONE, FAILED, Job, Process, within
from koala.ui.session import Session

PUBLIC_KEPT = 6  # exports that a public app keeps
LARGEST_ZIP = 500_000_000  # bytes: a larger export is taken from its folder


@dataclass(frozen=True, kw_only=True)
class Found:
    """A folder that holds an export. `exported` is None where its manifest cannot be read, and `problem` says why."""

    folder: Path
    exported: Exported | None
    problem: str = ""
    bytes: int
    made: float  # seconds since 1970

    @property
    def name(self) -> str:
        """Of the folder; handlers know an export by it."""
        return self.folder.name


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a visitor asks for, in the command's words."""

    model: str
    target: str
    dtype: str
    components: str = "all"
    lora: str | None = None
    lora_strength: float = 1.0

    def arguments(self, card: ModelCard, out: Path) -> list[str]:
        """The words after `python -m export` that write this order of a model into the folder `out`."""
        words = ["--json", "--progress", "json", "--model", portable_name(card), "--out", str(out)]
        words += ["--target", self.target, "--dtype", self.dtype, "--components", self.components]
        return words + (["--lora", self.lora, f"--lora-strength={self.lora_strength:g}"] if self.lora else [])

    def stem(self, card: ModelCard) -> str:
        """A name for the folder that says what is in it."""
        words = [card.name.rpartition("/")[2], self.target, self.dtype]
        words += ["unet"] if self.components == "unet" else []
        words += [Path(self.lora).stem[:24]] if self.lora else []
        return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-.")


class Exports:
    """One app's exports, one at a time. Where strangers reach the app, they have a folder of their own."""

    def __init__(self, session: Session, root: Path | None = None):
        self.session = session
        self.root = root or (exports_root() if session.local else exports_root() / ".public")
        self.job: Job | None = None  # the last one
        self.reports: dict[str, list[dict]] = {}  # export -> what its gates found while this app ran
        self._process: Process | None = None
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether this visitor may export at all."""
        return self.session.local or self.session.exports

    def models(self) -> list[tuple[str, str]]:
        """(title, name) of the models of this machine; for strangers the embedded ones."""
        cards = [(title, self.session.catalogue.card(name)) for title, name in self.session.catalogue.choices()]
        return [(t, c.name) for t, c in cards if availability(c)[0] and (self.session.local or c.embedded)]

    # --- what is there

    def all(self) -> list[Found]:
        """Every export, the newest first."""
        return [_found(folder) for folder in list_exports(self.root)]

    def find(self, name: str) -> Found:
        """The export of this name; UserError where it is gone."""
        for found in self.all():
            if found.name == name:
                return found
        raise UserError(f"there is no export {name!r} any more")

    def report(self, name: str) -> list[dict]:
        """What the gates found when this app made or checked the export; empty where that was at another time."""
        job = self.job
        if job and job.folder.name == name and (job.state == DONE or job.checks and job.state == FAILED):
            self.reports[name] = job.findings
        return self.reports.get(name, [])

    # --- what can be done

    def start(self, order: Order, visitor: str) -> Job:
        """Begin an export. UserError where it cannot be, or another is under way."""
        self._allowed()
        card = self.session.catalogue.card(order.model)
        here, needs = availability(card)
        if not here:
            raise UserError(needs)
        if not self.session.local and (order.lora or not card.embedded):
            raise UserError("on this server the embedded models are exported, without a LoRA; the rest works at home")
        with self._lock:
            self._one_at_a_time()
            if not self.session.local:
                self._make_room()
            out = self.root / self._free(order.stem(card))
            job = Job(title=f"{card.title} for {order.target}, {order.dtype}", folder=out, visitor=visitor)
            return self._begin(job, order.arguments(card, out))

    def check(self, name: str, lora: str | None, visitor: str) -> Job:
        """Run the gates again over an export that is there."""
        self._own_machine()
        found = self.find(name)
        with self._lock:
            self._one_at_a_time()
            job = Job(title=f"Gates of {name}", folder=found.folder, checks=True, visitor=visitor)
            return self._begin(
                job, ["verify", "--json", "--progress", "json", str(found.folder), *(["--lora", lora] if lora else [])]
            )

    def stop(self, visitor: str) -> None:
        """Ask the job under way to end; UserError where there is none, or to a stranger who did not begin it."""
        job = self.job
        if job is None or not job.alive:
            raise UserError("nothing is being exported just now")
        if not self.session.local and job.visitor != visitor:
            raise UserError("somebody else started this export; it ends by itself within minutes")
        self._process.stop()

    def delete(self, name: str) -> None:
        """Remove an export's folder. UserError on a public server, or where its gates or its model are at work."""
        self._own_machine()
        with self._lock:
            self._delete(self.find(name))

    def pack(self, name: str) -> Path:
        """The export as a zip, stored, in the folder that Gradio serves and cleans."""
        found = self.find(name)
        if found.bytes > LARGEST_ZIP:
            raise UserError(f"{name} has {found.bytes / 1e9:.1f} GB; take it from its folder")
        files = _files(found.folder)
        mark = hashlib.sha256(repr([(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]).encode())
        out = Path(get_upload_folder()).resolve() / mark.hexdigest() / f"{name}.zip"
        if not out.exists():
            check_space(out, found.bytes)
            with new_file(out, durable=False) as partial, zipfile.ZipFile(partial, "w") as packed:
                for file in files:
                    packed.write(file, f"{name}/{file.relative_to(found.folder).as_posix()}")
        return out

    def _begin(self, job: Job, arguments: list[str]) -> Job:
        self._process = Process(job, arguments)
        self.job = job
        return job

    def _free(self, stem: str) -> str:
        """The stem, with a number behind it where such a folder is there."""
        taken = {path.name for path in self.root.iterdir()} if self.root.is_dir() else set()
        return next(name for k in range(1, len(taken) + 2) if (name := stem if k == 1 else f"{stem}-{k}") not in taken)

    def _allowed(self) -> None:
        if not self.open:
            raise UserError("export is off on this server; start the app on your own machine for it")

    def _own_machine(self) -> None:
        if not self.session.local:
            raise UserError("on a public server exports are only made; start the app on your own machine for the rest")

    def _one_at_a_time(self) -> None:
        if self.job and self.job.alive:
            raise UserError(f"{self.job.title} is under way; wait for its end, or stop it first")

    def _delete(self, found: Found) -> None:
        if self.job and self.job.alive and self.job.folder == found.folder:
            raise UserError(f"the gates of {found.name} are being run; stop them first")
        model = str(found.folder.resolve())
        if self.session.device.in_use(model):
            raise UserError(f"{found.name} is drawing or being loaded just now; delete it when it is done")
        self.session.loader.forget(model)
        gone = found.folder.with_name(f".deleted-{found.name}")
        found.folder.rename(gone)  # at once, so that a half-removed export is none
        shutil.rmtree(gone)
        self.reports.pop(found.name, None)

    def _make_room(self) -> None:
        for found in self.all()[PUBLIC_KEPT - 1 :]:
            self._delete(found)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _found(folder: Path) -> Found:
    exported, problem = None, ""
    try:
        exported = Exported.read(folder)
    except UserError as error:
        problem = within(folder.parent, str(error))
    size = sum(file.lstat().st_size for file in _files(folder))
    made = (folder / MANIFEST).lstat().st_mtime
    return Found(folder=folder, exported=exported, problem=problem, bytes=size, made=made)
