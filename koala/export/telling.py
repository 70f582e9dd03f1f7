"""What an export says on stderr while it works: sentences for people, or one JSON object per line for a program."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from koala.export.estimate import Estimate, Progress
from koala.export.gates.case import Finding
from koala.export.options import LINES, SENTENCES


@dataclass(frozen=True, kw_only=True)
class Teller:
    """Says what happens, in one way or the other."""

    lines: bool  # JSON instead of sentences

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Teller":
        """The one that a command's arguments ask for."""
        return cls(lines=getattr(args, "progress", SENTENCES) == LINES)

    def lora(self, name: str, layers: str) -> None:
        """Which of a LoRA's layers the model has, and what of its file is not used."""
        text = f"LoRA {name} on {layers}"
        self._say("lora", {"text": text}, text)

    def estimate(self, title: str, found: Estimate) -> None:
        """What the export of `title` will take."""
        values = {
            "text": found.line(),
            "memory_bytes": found.memory,
            "disk_bytes": found.disk,
            "seconds": found.seconds,
        }
        self._say("estimate", values, f"{title} {found.line()}")

    def progress(self, found: Progress) -> None:
        """A stage begins; `left_s` is None until this machine's pace is known."""
        self._say("progress", {"stage": found.text, "share": found.done, "left_s": found.left}, found.line())

    def finding(self, found: Finding, people: TextIO | None = None) -> None:
        """A gate is done; `people` is where its sentence goes, by default stderr."""
        self._say("finding", dataclasses.asdict(found), found.line(), people)

    @property
    def error(self) -> Callable[[str], None] | None:
        """Says why the command failed; None where the common sentence does."""
        return (lambda sentence: self._say("error", {"text": sentence}, "")) if self.lines else None

    def _say(self, kind: str, values: dict, sentence: str, people: TextIO | None = None) -> None:
        text = json.dumps({"kind": kind} | values) if self.lines else sentence
        print(text, file=sys.stderr if self.lines or people is None else people, flush=True)
