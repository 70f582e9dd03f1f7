"""Captions in files beside the pictures: 1.txt, 1.caption or 1.json for 1.png, as kohya, img2dataset and others do."""

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path

from koala.distill.config import DistillConfig
from koala.distill.data.captions import Columns, caption_columns, captions_in, inner, parsed
from koala.distill.data.files import composed, is_file, same, stem_of
from koala.distill.data.tables import METADATA
from koala.files.read_text import NotText

_LOOK = 16  # JSON files that tell which fields they have


class Beside:
    """The files beside pictures, by picture and ending."""

    def __init__(self, pictures: Sequence[Path], others: Sequence[Path]):
        self.files: dict[Path, dict[str, Path]] = {}
        by_name: dict[str, list[Path]] = {}
        for picture in pictures:
            by_name.setdefault(stem_of(picture), []).append(picture)
            by_name.setdefault(composed(picture), []).append(picture)  # 1.png.txt
        for file in others:
            for stem, ending in _splits(file):
                for picture in by_name.get(stem, ()):
                    self.files.setdefault(picture, {}).setdefault(ending, file)
                if stem in by_name:
                    break
        self.endings = Counter(ending for found in self.files.values() for ending in found)

    def columns(self, config: DistillConfig) -> Columns:
        """The endings, or fields of the JSON files, that hold the captions. UserError where there are none."""
        endings = sorted(self.endings)
        told = [found["json"] for found in self.files.values() if "json" in found]
        inside = {name for file in islice(told, _LOOK) for name in inner({"json": _read(file, "json")})}
        there = f"beside the pictures lie {', '.join(f'.{e}' for e in endings)} files" if endings else (
            f"there is neither a text file beside any picture nor a {' or '.join(METADATA)}"
        )  # fmt: skip
        if further := sorted(inside - set(endings)):
            there += f", and in the .json files are {', '.join(further)}"
        return Columns(captions=caption_columns(endings, config, there, inside))

    def used(self, columns: Columns) -> dict[Path, dict[str, Path]]:
        """Of each picture the files that its captions are in, by ending."""
        wanted = {name for _, name in columns.captions}
        in_json = wanted - set(self.endings)
        return {
            picture: {e: file for e, file in found.items() if e in wanted or e == "json" and in_json}
            for picture, found in self.files.items()
        }


def captions_beside(files: dict[str, Path], columns: Columns) -> tuple[str, ...]:
    """The captions in a picture's files. NotText where one of them is not readable."""
    return captions_in({ending: _read(file, ending) for ending, file in files.items()}, columns)


def _read(file: Path, ending: str) -> object:
    """What a file says, a NotText for one that cannot be read."""
    if not is_file(file):
        return NotText("is a link or pipe to no file")
    try:
        content = file.read_bytes()
    except OSError as error:
        return NotText(f"cannot be read ({error.strerror or error})")
    return parsed(content) if ending == "json" else content


def _splits(file: Path) -> list[tuple[str, str]]:
    """a/1.caption.txt -> (a/1.caption, txt), (a/1, caption.txt): picture and ending that the name may stand for."""
    pieces = file.name.split(".")
    cuts = range(len(pieces) - 1, 0, -1)
    return [(composed(file.parent / ".".join(pieces[:k])), same(".".join(pieces[k:]))) for k in cuts]


def counts(endings: Counter, names: Collection[str], pictures: int) -> str:
    """How many of the pictures have such files, for people."""
    shown = [name for name, _ in endings.most_common() if name in names]
    if not shown:
        return ""
    if all(endings[name] == pictures for name in shown):
        return f" with {' and '.join(f'.{name}' for name in shown)}"
    return ", " + " and ".join(f"{endings[name]:,} with .{name}" for name in shown)
