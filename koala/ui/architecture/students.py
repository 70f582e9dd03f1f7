"""Students that this app has cut: the newest few, in folders that are deleted when the app ends."""

import dataclasses
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from koala.errors import UserError
from koala.models.cards import CARDS, ModelCard
from koala.models.registry import find
from koala.ui.session import Session
from koala.unet.specs import UNetSpec

TEACHER = "tiny-sdxl"
MOST = 8  # students that one app keeps; each has up to 20 MB


@dataclass(frozen=True, kw_only=True)
class Student:
    """An untrained cut; the surgery took `seconds`."""

    card: ModelCard
    seconds: float


def _name(spec: UNetSpec) -> str:
    """The name of its folder, from the depths alone, so that nothing a visitor typed is in it."""
    if spec.name in CARDS:
        return f"{spec.name}-untrained"
    return "tiny-cut-" + spec.notation.replace("-", "none").replace("/", "_").replace(",", ".")


class Students:
    """One app's students, which its session offers under names without a path. The same depths are cut once.

    Where there are too many, the oldest that is not in use is deleted.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._folder: tempfile.TemporaryDirectory | None = None
        self._made: dict[str, Student] = {}  # by name
        self._lock = threading.Lock()

    @property
    def all(self) -> list[Student]:
        """The students that exist now, the oldest first."""
        return list(self._made.values())

    def make(self, spec: UNetSpec) -> Student:
        """Cut a spec with the embedded teacher's widths out of it. UserError where all students are in use."""
        from koala.compress.surgery import compress

        name = _name(spec)
        with self._lock:
            if name in self._made:
                return self._made[name]
            if len(self._made) == MOST:
                self._make_room()
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="koala-students-")
            folder = Path(self._folder.name).resolve() / name
            begun = time.perf_counter()
            compress(TEACHER, spec.notation, folder)
            card = dataclasses.replace(
                find(str(folder)),
                name=name,
                title=f"{_title(spec)} (untrained cut)",
                spec=spec,
            )
            self.session.catalogue.add(card)
            self._made[name] = Student(card=card, seconds=time.perf_counter() - begun)
            return self._made[name]

    def _make_room(self) -> None:
        oldest = next((name for name in self._made if not self.session.device.in_use(name)), None)
        if oldest is None:
            raise UserError(f"this app keeps {MOST} students, and all are in use; try again when one has finished")
        self.session.remove(oldest)
        shutil.rmtree(self._made.pop(oldest).card.source)


def _title(spec: UNetSpec) -> str:
    return CARDS[spec.name].title if spec.name in CARDS else f"Tiny {spec.notation}"
