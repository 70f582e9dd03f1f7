"""An export's progress on stderr: sentences for people, or one JSON object per line for programs."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:  # for types alone: they import torch, and a command first silences the libraries
    from koala.export.estimate import Estimate, Progress
    from koala.export.gates.case import Finding

SENTENCES, LINES = "text", "json"  # of --progress


def add_depth(parser: argparse.ArgumentParser) -> None:
    """Options for how thorough the gates are."""
    parser.add_argument(
        "--pictures", type=_count, default=8, metavar="N", help="how many pictures the gate draws (default: 8)"
    )
    parser.add_argument(
        "--thorough", action="store_true", help="also draw pictures with a large model on a CPU: many minutes each"
    )


def add_progress(parser: argparse.ArgumentParser) -> None:
    """The option for the format of the progress."""
    parser.add_argument(
        "--progress",
        choices=(SENTENCES, LINES),
        default=SENTENCES,
        help="format of the progress on stderr: text, or one JSON object per line with its kind: estimate, lora, "
        "progress, finding or error (default: text)",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pictures; give 1 or more")
    return int(text)


@dataclass(frozen=True, kw_only=True)
class ProgressReporter:
    """Reports progress in one of the two formats."""

    lines: bool  # JSON instead of sentences

    @classmethod
    def of(cls, args: argparse.Namespace) -> "ProgressReporter":
        """The one that a command's arguments select."""
        return cls(lines=getattr(args, "progress", SENTENCES) == LINES)

    def lora(self, name: str, layers: str) -> None:
        """Which of a LoRA's layers are used, and what in its file is not."""
        text = f"LoRA {name} on {layers}"
        self._say("lora", {"text": text}, text)

    def estimate(self, title: str, expected: "Estimate") -> None:
        """The memory, disk and time that the export of `title` will take."""
        values = {
            "text": expected.line(),
            "memory_bytes": expected.memory,
            "disk_bytes": expected.disk,
            "seconds": expected.seconds,
        }
        self._say("estimate", values, f"{title} {expected.line()}")

    def progress(self, stage: "Progress") -> None:
        """A stage begins; `left_s` is None until this machine's pace is known."""
        self._say("progress", {"stage": stage.text, "share": stage.done, "left_s": stage.left}, stage.line())

    def finding(self, finding: "Finding", people: TextIO | None = None) -> None:
        """A gate is done; `people` is where its sentence goes, by default stderr."""
        self._say("finding", dataclasses.asdict(finding), finding.line(), people)

    @property
    def error(self) -> Callable[[str], None] | None:
        """Reports why the command failed; None if the common sentence is enough."""
        return (lambda sentence: self._say("error", {"text": sentence}, "")) if self.lines else None

    def _say(self, kind: str, values: dict, sentence: str, people: TextIO | None = None) -> None:
        text = json.dumps({"kind": kind} | values) if self.lines else sentence
        print(text, file=sys.stderr if self.lines or people is None else people, flush=True)
