"""The embedded models: the SHA-256 of their files is stored with them and checked on loading."""

import json
from pathlib import Path

from koala.errors import UserError
from koala.files.hashing import digest, sha256
from koala.files.outputs import new_file
from koala.files.reading import read_object

HASHES = "hashes.json"  # in the folder of the shipped models: model -> file -> SHA-256


def hashes(folder: Path) -> dict[str, str]:
    """Path within a model's folder -> SHA-256, of every file."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))
    return {f.relative_to(folder).as_posix(): sha256(f) for f in files}


def write_hashes(shipped: Path) -> None:
    """Write the hashes of every model in the folder of shipped models; call it after changing one."""
    models = sorted(index.parent for index in shipped.glob("*/model_index.json"))
    listed = {folder.name: hashes(folder) for folder in models}
    with new_file(shipped / HASHES) as partial:
        partial.write_text(json.dumps(listed, indent=1) + "\n")


def check_shipped(folder: Path) -> None:
    """UserError for a file of a shipped model that is missing, or is not the one that was shipped."""
    shipped = folder.parent
    listed = read_object(shipped / HASHES, _remedy(shipped)).get(folder.name)
    if not isinstance(listed, dict):
        raise UserError(f"{shipped / HASHES} does not list {folder.name}; {_remedy(shipped)}")
    for name, expected in listed.items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{folder.name} is not whole: {file} is missing; {_remedy(shipped)}")
        if (actual := digest(file)) != expected:
            raise UserError(
                f"{folder.name} is damaged: {file} is not the file that was shipped: its SHA-256 is {actual[:12]}..., "
                f"and {HASHES} lists {str(expected)[:12]}...; {_remedy(shipped)}"
            )


def _remedy(shipped: Path) -> str:
    """How to get the files again."""
    root = shipped.parents[1]
    if (root / ".git").exists():
        return f"get it again: git -C {root} checkout -- {shipped.relative_to(root).as_posix()}"
    return f"install the package again, or copy {shipped} again from where you had it"
