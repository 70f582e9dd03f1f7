"""Defaults for a tokenizer's folder whose tokenizer_config.json is missing or incomplete."""

import json
from pathlib import Path

from koala.files.read_json import read_object
from koala.unet.costs import TOKENS

NAME = "tokenizer_config.json"
_START, _END = "<|startoftext|>", "<|endoftext|>"
_PADS = {"tokenizer_2": "!"}  # SDXL's second tokenizer pads with the first word, the first with the end of text


def assumed(folder: Path) -> dict[str, object]:
    """The settings of CLIP's tokenizer that a folder lacks, as SDXL has them; empty where it has them.

    The padding token is read from special_tokens_map.json or tokenizer.json where they have it.
    """
    given = read_object(folder / NAME) if (folder / NAME).is_file() else {}
    whole = {
        "model_max_length": TOKENS,
        "pad_token": _padding(folder) or _PADS.get(folder.name, _END),
        "bos_token": _START,
        "eos_token": _END,
        "unk_token": _END,
        "tokenizer_class": "CLIPTokenizer",
    }
    if not given:
        return whole
    return {name: whole[name] for name in ("model_max_length", "pad_token") if given.get(name) is None}


def _padding(folder: Path) -> str | None:
    """The padding token, from the files next to the config."""
    for name, outer, inner in (
        ("special_tokens_map.json", "pad_token", "content"),
        ("tokenizer.json", "padding", "pad_token"),
    ):
        if (folder / name).is_file():
            token = read_object(folder / name).get(outer)
            token = token.get(inner) if isinstance(token, dict) else token
            if isinstance(token, str) and token:
                return token
    return None


def complete(folder: Path) -> None:
    """Write the missing settings into a folder of ours, so that every program reads it alike."""
    if missing := assumed(folder):
        given = read_object(folder / NAME) if (folder / NAME).is_file() else {}
        (folder / NAME).write_text(json.dumps(given | missing, indent=2) + "\n")
