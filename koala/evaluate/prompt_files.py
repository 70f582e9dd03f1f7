"""Prompts from a file: one per line, GenEval's metadata or HPSv2's lists; without a file, of the shapes world."""

import json
from dataclasses import dataclass
from pathlib import Path

from koala.errors import UserError
from koala.evaluate import shapes
from koala.files.fields import shown
from koala.files.reading import LARGEST, read_json
from koala.models.loaded import LoadedModel
from koala.unet.specs import TINY_SDXL
from koala.words import megabytes


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt, and the whole record that a benchmark (GenEval) keeps of it, if there is one."""

    text: str
    record: dict | None = None


def _records(text: str, path: Path) -> list[Prompt]:
    prompts = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record["prompt"], str):
                raise TypeError(f"its prompt is {shown(record['prompt'])}")
            prompts.append(Prompt(text=record["prompt"], record=record))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f'{path}, line {number}: not a JSON object with a "prompt" ({error}); GenEval\'s file is '
                "prompts/evaluation_metadata.jsonl of its repository"
            ) from error
    return prompts


def _list(path: Path) -> list[Prompt]:
    values = read_json(path, "it should be a list of prompts")
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise UserError(f"{path} is not a JSON list of prompts; for one prompt per line, name the file .txt")
    return [Prompt(text=v) for v in values]


def read(path: Path) -> list[Prompt]:
    """The prompts of a .jsonl (GenEval), .json (a list, HPSv2) or text file (T2I-CompBench: up to a tab)."""
    if not path.is_file():
        raise UserError(f"there is no prompts file {path}")
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path} has {megabytes(path.stat().st_size, 0)}, far too much for prompts; write one per line")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    if path.suffix.lower() == ".jsonl":
        prompts = _records(text, path)
    elif path.suffix.lower() == ".json":
        prompts = _list(path)
    else:
        lines = (line.partition("\t")[0].strip() for line in text.splitlines())
        prompts = [Prompt(text=line) for line in lines if line]
    if not prompts:
        raise UserError(f"{path} holds no prompt; write one per line")
    return prompts


def of_shapes(count: int) -> list[Prompt]:
    """Prompts of the shapes score, one object and two objects in turn."""
    sources = [shapes.prompts(suite, (count + 1) // 2) for suite in ("one_object", "two_objects")]
    return [Prompt(text=t) for pair in zip(*sources, strict=True) for t in pair][:count]


def prompts_for(model: LoadedModel, path: Path | None, count: int | None, *, default: int) -> list[Prompt]:
    """The file's prompts, or its first `count`; without a file, `default` prompts of the shapes world."""
    if path:
        return read(path)[:count]
    if model.spec.channels != TINY_SDXL.channels:
        raise UserError(f"{model.card.name} is not a model of the shapes world; name a file of prompts with --prompts")
    return of_shapes(count or default)
