"""Students that this app cut itself: folders in its temporary directory, gone when it ends."""

import dataclasses
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from koala.costs import parameters
from koala.registry import CARDS, ModelCard, find
from koala.request import RequestError
from koala.specs import UNetSpec

TEACHER = "tiny-sdxl"
MOST = 8  # that one app keeps; each is up to 20 MB


@dataclass(frozen=True, kw_only=True)
class Student:
    """A cut that nobody has trained. `seconds` is how long the surgery took."""

    card: ModelCard
    seconds: float


def _name(spec: UNetSpec) -> str:
    """A folder's name: ours, whatever a visitor sent, since a spec is numbers alone."""
    if spec.name in CARDS:
        return f"{spec.name}-untrained"
    return "tiny-cut-" + spec.notation.replace("-", "none").replace("/", "_").replace(",", ".")


class Students:
    """One app's students. The same depths are cut once."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory | None = None
        self._made: dict[str, Student] = {}  # by name
        self._lock = threading.Lock()

    @property
    def all(self) -> list[Student]:
        return list(self._made.values())

    def make(self, spec: UNetSpec) -> Student:
        """Cut the spec, of the embedded teacher's widths, out of it. RequestError for one too many."""
        from koala.surgery import compress

        name = _name(spec)
        with self._lock:
            if name in self._made:
                return self._made[name]
            if len(self._made) == MOST:
                raise RequestError(
                    f"this app keeps {MOST} students, and has them; start it again to make room, "
                    f"or use python -m koala compress --teacher {TEACHER} --spec {spec.notation} --out my-student"
                )
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="koala-students-")
            folder = Path(self._folder.name).resolve() / name
            begun = time.perf_counter()
            compress(TEACHER, spec.notation, folder)
            card = dataclasses.replace(
                find(str(folder)),
                title=f"{_title(spec)} (untrained cut)",
                parameters=parameters(spec),
                licence=CARDS[TEACHER].licence,
                spec=spec,
                teacher=TEACHER,
                guidance=CARDS[TEACHER].guidance,
            )
            self._made[name] = Student(card=card, seconds=time.perf_counter() - begun)
            return self._made[name]


def _title(spec: UNetSpec) -> str:
    return CARDS[spec.name].title if spec.name in CARDS else f"Tiny {spec.notation}"
