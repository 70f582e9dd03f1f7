"""A capture as one file: a zip of the folders that `AttentionRecord.save` writes, with an index.

Unzipped, the folders are captures for `koala attention --captures`. A file may come from anywhere, so all it claims is
checked before anything is read; nothing in it is unpickled, and none of its paths is used.
"""

import io
import json
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from koala.attention import recorded
from koala.attention.about import LONG
from koala.attention.capture import Capture, Side
from koala.attention.plan import BUDGET, size
from koala.attention.recorded import ABOUT, PICTURE, PNG, TENSORS, AttentionRecord
from koala.errors import UserError
from koala.files.outputs import check_space, new_file

FORMAT, VERSION = "koala attention archive", 1
INDEX = "capture.json"
MOST = {INDEX: 10**6, ABOUT: 10**7, PICTURE: PNG}  # bytes; the rest is the tensors', within the caller's limit
MODELS = 8  # of a capture at most
LONGEST = 200  # characters of a title


def save(capture: Capture, out: Path) -> Path:
    """Write the capture as a zip: queries, keys and pictures of every model."""
    check_space(out, 2 * capture.bytes)
    index = {"format": f"{FORMAT} {VERSION}", "prompt": capture.prompt, "told": capture.cost, "models": []}
    with new_file(out, durable=False) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as packed:
        for number, (side, picture) in enumerate(zip(capture.sides, _pictures(capture), strict=True), 1):
            name = f"{number}-{re.sub(r'[^A-Za-z0-9._-]+', '-', Path(side.record.model).name)[:80]}"
            with tempfile.TemporaryDirectory(dir=out.parent) as folder:
                saved = side.record.save(Path(folder) / name)
                for file in (ABOUT, TENSORS):
                    packed.write(saved / file, f"{name}/{file}")
            packed.writestr(f"{name}/{PICTURE}", picture)
            index["models"].append({"folder": name, "title": side.title})
        packed.writestr(INDEX, json.dumps(index, indent=1) + "\n")
    return out


def _pictures(capture: Capture) -> tuple[bytes, ...]:
    """The pictures as PNG: with their requests inside, if the capture has those files."""
    if capture.files:
        return capture.files
    buffers = [io.BytesIO() for _ in capture.sides]
    for side, buffer in zip(capture.sides, buffers, strict=True):
        side.picture.save(buffer, "PNG")
    return tuple(buffer.getvalue() for buffer in buffers)


def load(file: Path, limit: int = BUDGET) -> Capture:
    """The capture of a zip that `save` wrote, of at most `limit` bytes of tensors; UserError for any other file."""
    try:
        with zipfile.ZipFile(file) as packed, tempfile.TemporaryDirectory() as folder:
            contents = _contents(packed, limit)
            index = _index(packed.read(contents[INDEX]))
            check_space(Path(folder) / "1", sum(info.file_size for info in contents.values()))
            models = [_side(packed, contents, one, Path(folder) / str(k)) for k, one in enumerate(index["models"])]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"this file is not a complete capture ({error}); save it again, or copy it again") from error
    sides, files = zip(*models, strict=True)
    capture = Capture(prompt=index["prompt"], cost=index["told"], sides=sides, files=files)
    if len({(side.record.width, side.record.height) for side in sides}) > 1 or not capture.stages:
        raise UserError("the models in this file do not belong together: none of their layers pair")
    return capture


def _contents(packed: zipfile.ZipFile, limit: int) -> dict[str, zipfile.ZipInfo]:
    """The zip's entries by name, before any is read: only files of a capture, each within its size limit."""
    contents: dict[str, zipfile.ZipInfo] = {}
    infos = [info for info in packed.infolist() if not info.is_dir()]
    for info in infos[: 1 + 3 * MODELS]:
        kind = info.filename.rpartition("/")[2]
        folder = info.filename.removesuffix(kind)
        known = kind == INDEX and not folder or kind in (ABOUT, TENSORS, PICTURE) and _FOLDER.fullmatch(folder[:-1])
        if not known or info.filename in contents:
            raise UserError(f"this file is not a capture: it holds {info.filename[:80]!r}")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{info.filename} is compressed in a way that captures are not; save the capture again")
        most = MOST.get(kind, limit)
        if info.file_size > most:
            raise UserError(f"{info.filename} takes {size(info.file_size)}, more than the {size(most)} read here")
        contents[info.filename] = info
    if INDEX not in contents or len(infos) > len(contents):
        raise UserError(
            f"this file is not a capture: it needs one {INDEX} and three files for each of up to {MODELS} models"
        )
    tensors = sum(info.file_size for name, info in contents.items() if name.endswith(TENSORS))
    if tensors > limit:
        raise UserError(f"this capture takes {size(tensors)}, more than the {size(limit)} read here")
    return contents


_FOLDER = re.compile(r"[1-8]-[A-Za-z0-9._-]{0,80}")


def _index(text: bytes) -> dict:
    """The capture's index; UserError if it is damaged, or of a newer version."""
    try:
        index = json.loads(text)
        recorded.check_version("this file", index["format"], FORMAT, VERSION)
        models = [(one["folder"], one["title"]) for one in index["models"]]
        texts = [index["prompt"], index["told"], *(text for model in models for text in model)]
        if not 1 <= len(models) <= MODELS or not all(isinstance(text, str) for text in texts):
            raise ValueError("it names no models")
        if len(index["prompt"]) > LONG or len(index["told"]) > LONG:
            raise ValueError(f"its prompt or its note has more than {LONG:,} characters")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"this capture's {INDEX} is damaged ({error}); save the capture again") from error
    return index


def _side(
    packed: zipfile.ZipFile, contents: Mapping[str, zipfile.ZipInfo], model: Mapping[str, str], folder: Path
) -> tuple[Side, bytes]:
    """One model of a capture, unpacked into a new folder whose name is ours."""
    folder.mkdir()
    for file in (ABOUT, TENSORS, PICTURE):
        info = contents.get(f"{model['folder']}/{file}")
        if not info:
            raise UserError(f"this capture lacks {model['folder'][:80]}/{file}; save it again")
        with packed.open(info) as source, open(folder / file, "wb") as target:
            shutil.copyfileobj(source, target)
    try:
        record = AttentionRecord.load(folder)
        picture = recorded.picture(folder, record)
    except UserError as error:  # of the folder in the zip, not of ours
        raise UserError(str(error).replace(str(folder), model["folder"])) from error
    return Side(title=model["title"][:LONGEST], picture=picture, record=record), (folder / PICTURE).read_bytes()
