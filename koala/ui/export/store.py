"""The app's exports: what a visitor may start, the folders that exist, and their files to download."""

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
from koala.ui.messages import page_words
from koala.ui.session import Session

PUBLIC_KEPT = 6  # exports that a public app keeps
LARGEST_ZIP = 500_000_000  # bytes; a larger export is copied from its folder


@dataclass(frozen=True, kw_only=True)
class ExportFolder:
    """The folder of an export. Where its manifest cannot be read, `exported` is None and `problem` says why."""

    folder: Path
    exported: Exported | None
    problem: str = ""
    bytes: int
    written: float  # seconds since 1970

    @property
    def name(self) -> str:
        """The folder's name, by which handlers find the export."""
        return self.folder.name


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a visitor asks for, as `koala export` names it."""

    model: str
    target: str
    dtype: str
    components: str = "all"
    lora: str | None = None
    lora_strength: float = 1.0

    def arguments(self, card: ModelCard, out: Path) -> list[str]:
        """The arguments of `koala export` that write this order into the folder `out`."""
        words = ["--json", "--progress", "json", "--model", portable_name(card), "--out", str(out)]
        words += ["--target", self.target, "--dtype", self.dtype, "--components", self.components]
        return words + (["--lora", self.lora, f"--lora-strength={self.lora_strength:g}"] if self.lora else [])

    def stem(self, card: ModelCard) -> str:
        """A name for the folder, made of model, target, data type, components and LoRA."""
        words = [card.name.rpartition("/")[2], self.target, self.dtype]
        words += ["unet"] if self.components == "unet" else []
        words += [Path(self.lora).stem[:24]] if self.lora else []
        return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-.")


class Exports:
    """One app's exports, one at a time. On a public server they have a folder of their own."""

    def __init__(self, session: Session, root: Path | None = None):
        self.session = session
        self.root = root or (exports_root() if session.local else exports_root() / ".public")
        self.job: Job | None = None  # the last one
        self.reports: dict[str, list[dict]] = {}  # export -> the findings of its gates while this app ran
        self._process: Process | None = None
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether visitors may export at all."""
        return self.session.local or self.session.exports

    def models(self) -> list[tuple[str, str]]:
        """(title, name) of the models of this machine; on a public server, of the embedded ones."""
        cards = [(title, self.session.catalogue.card(name)) for title, name in self.session.catalogue.choices()]
        return [(t, c.name) for t, c in cards if availability(c)[0] and (self.session.local or c.embedded)]

    # --- finding exports

    def all(self) -> list[ExportFolder]:
        """Every export, the newest first."""
        return [_read(folder) for folder in list_exports(self.root)]

    def find(self, name: str) -> ExportFolder:
        """The export of this name; UserError where there is none."""
        for export in self.all():
            if export.name == name:
                return export
        raise UserError(f"there is no export {name!r} any more")

    def report(self, name: str) -> list[dict]:
        """The findings of the gates, if this app made or checked the export; otherwise none."""
        job = self.job
        if job and job.folder.name == name and (job.state == DONE or job.checks and job.state == FAILED):
            self.reports[name] = job.findings
        return self.reports.get(name, [])

    # --- starting, stopping, deleting

    def start(self, order: Order, visitor: str) -> Job:
        """Start an export. UserError where it cannot run, or another is running."""
        self._allowed()
        card = self.session.catalogue.card(order.model)
        here, needs = availability(card)
        if not here:
            raise UserError(needs)
        if not self.session.local and (order.lora or not card.embedded):
            raise UserError(
                "this server exports only the embedded models, without a LoRA; start the app on your own machine "
                "for the rest"
            )
        with self._lock:
            self._one_at_a_time()
            if not self.session.local:
                self._make_room()
            out = self.root / self._free(order.stem(card))
            job = Job(title=f"{card.title} for {order.target}, {order.dtype}", folder=out, visitor=visitor)
            return self._begin(job, order.arguments(card, out))

    def check(self, name: str, lora: str | None, visitor: str) -> Job:
        """Run the gates again on an existing export."""
        self._own_machine()
        export = self.find(name)
        with self._lock:
            self._one_at_a_time()
            job = Job(title=f"Gates of {name}", folder=export.folder, checks=True, visitor=visitor)
            words = ["verify", "--json", "--progress", "json", str(export.folder)]
            return self._begin(job, words + (["--lora", lora] if lora else []))

    def stop(self, visitor: str) -> None:
        """Ask the running job to end. UserError where none runs, or where a stranger did not start it."""
        job = self.job
        if job is None or not job.alive:
            raise UserError("no export is running")
        if not self.session.local and job.visitor != visitor:
            raise UserError("another visitor started this export; it ends by itself within minutes")
        self._process.stop()

    def delete(self, name: str) -> None:
        """Remove an export's folder. UserError on a public server, or while its gates or its model run."""
        self._own_machine()
        with self._lock:
            self._delete(self.find(name))

    def pack(self, name: str) -> Path:
        """The export as an uncompressed zip, in the folder that Gradio serves and cleans."""
        export = self.find(name)
        if export.bytes > LARGEST_ZIP:
            raise UserError(f"{name} has {export.bytes / 1e9:.1f} GB, too much for a download; copy its folder")
        files = _files(export.folder)
        mark = hashlib.sha256(repr([(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]).encode())
        out = Path(get_upload_folder()).resolve() / mark.hexdigest() / f"{name}.zip"
        if not out.exists():
            check_space(out, export.bytes)
            with new_file(out, durable=False) as partial, zipfile.ZipFile(partial, "w") as packed:
                for file in files:
                    packed.write(file, f"{name}/{file.relative_to(export.folder).as_posix()}")
        return out

    def _begin(self, job: Job, arguments: list[str]) -> Job:
        self._process = Process(job, arguments)
        self.job = job
        return job

    def _free(self, stem: str) -> str:
        """The stem, with a number after it where the folder exists."""
        names = {path.name for path in self.root.iterdir()} if self.root.is_dir() else set()
        return next(name for k in range(1, len(names) + 2) if (name := stem if k == 1 else f"{stem}-{k}") not in names)

    def _allowed(self) -> None:
        if not self.open:
            raise UserError("export is off on this server; start the app on your own machine to export")

    def _own_machine(self) -> None:
        if not self.session.local:
            raise UserError(
                "a public server does not check or delete exports; start the app on your own machine for that"
            )

    def _one_at_a_time(self) -> None:
        if self.job and self.job.alive:
            raise UserError(f"{self.job.title} is running; wait until it ends, or stop it first")

    def _delete(self, export: ExportFolder) -> None:
        if self.job and self.job.alive and self.job.folder == export.folder:
            raise UserError(f"the gates of {export.name} are running; stop them first")
        model = str(export.folder.resolve())
        if self.session.device.in_use(model):
            raise UserError(f"{export.name} is being loaded or is drawing; delete it afterwards")
        self.session.loader.forget(model)
        gone = export.folder.with_name(f".deleted-{export.name}")
        export.folder.rename(gone)  # at once, so that nobody sees half an export
        shutil.rmtree(gone)
        self.reports.pop(export.name, None)

    def _make_room(self) -> None:
        for export in self.all()[PUBLIC_KEPT - 1 :]:
            self._delete(export)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _read(folder: Path) -> ExportFolder:
    exported, problem = None, ""
    try:
        exported = Exported.read(folder)
    except UserError as error:
        problem = within(folder.parent, page_words(str(error)))
    size = sum(file.lstat().st_size for file in _files(folder))
    written = (folder / MANIFEST).lstat().st_mtime
    return ExportFolder(folder=folder, exported=exported, problem=problem, bytes=size, written=written)
