"""How a model is drawn with a LoRA that was trained for few steps, as the file's metadata says it.

In SDXL's own 25 guided steps such a file draws glaring pictures, and nothing in its tensors warns of it.
"""

import dataclasses
import json
from pathlib import Path

from koala.errors import UserError
from koala.files.fields import Fields
from koala.models.cards import ModelCard
from koala.models.sampling_defaults import Drawing, read_drawing

KEY = "koala_drawing"  # in the file's metadata: the fields of a folder's koala.json, as JSON
_LONGEST = 100_000_000  # bytes of a header, as safetensors has it


def drawing_of_lora(file: Path) -> Drawing:
    """What a LoRA file says; empty for one that says nothing, or that cannot be read, which its reader reports.

    UserError for settings that no model could be drawn with.
    """
    try:
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            text = json.loads(opened.read(length if length <= _LONGEST else 0))["__metadata__"][KEY]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return Drawing()
    try:
        values = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"the settings {KEY} in {file} are damaged; copy the LoRA again")
    return read_drawing(Fields(values=values, file=str(file), remedy="copy the LoRA again"))


def with_lora(card: ModelCard, file: str | Path | None, strength: float) -> ModelCard:
    """The card with the steps, guidance and scheduler that its LoRA is drawn with, where the file says them."""
    defaults = drawing_of_lora(Path(file)).defaults if file and strength else {}
    if not defaults:
        return card
    return dataclasses.replace(card, **{name: defaults[name] for name in ("steps", "guidance", "scheduler")})
