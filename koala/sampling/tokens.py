"""How much of a prompt the text encoders read: the tokens within their limit, and the rest, which they never see.

diffusers cuts a prompt after 75 tokens and only warns. Both tokenizers of a pipeline count: text counts as read only
where both read it.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from koala.models.cards import ModelCard
from koala.models.layout import TOKENIZERS
from koala.models.locate import locate
from koala.models.registry import find
from koala.request import GenerationRequest
from koala.unet.costs import TOKENS

_lock = threading.Lock()  # a tokenizer is built once


@dataclass(frozen=True, kw_only=True)
class TextRead:
    """`read + unread` is the text; it has `tokens` tokens, of which `limit` are read."""

    tokens: int
    limit: int
    read: str
    unread: str


@lru_cache(maxsize=32)
def _tokenizer(folder: Path) -> tuple[Tokenizer, int]:
    """A folder's tokenizer as the pipeline loads it, and how many tokens of a prompt it keeps."""
    loaded = CLIPTokenizer.from_pretrained(folder)
    own = loaded.backend_tokenizer
    own.no_truncation()
    own.no_padding()
    return own, min(loaded.model_max_length, TOKENS) - 2  # start and end take a place each


def tokenizer_folders(card: ModelCard) -> tuple[Path, ...]:
    """The folders of a model's two tokenizers; UserError where the model is not on this machine."""
    location = locate(card)
    if location.exported and not location.exported.whole:
        location = locate(find(location.exported.model))
    return tuple(location.folder / name for name in TOKENIZERS)


def read_text(text: str, folders: Sequence[Path]) -> TextRead:
    """How much of a text the tokenizers in these folders keep."""
    counts = []
    for folder in folders:
        with _lock:
            tokenizer, limit = _tokenizer(folder)
        places = tokenizer.encode(text, add_special_tokens=False).offsets
        end = places[limit][0] if len(places) > limit else len(text)
        counts.append((end, len(places), limit))
    end, tokens, limit = min(counts, key=lambda one: (one[0], -one[1]))
    if not text[end:].strip():
        end = len(text)
    return TextRead(tokens=tokens, limit=limit, read=text[:end], unread=text[end:])


def unread(request: GenerationRequest, folders: Sequence[Path]) -> dict[str, str]:
    """The ends of a request's prompts that a model does not read: "" where all of it is read.

    Without guidance no negative prompt is read at all. `folders` are those of the model's tokenizers, and the
    request's defaults are filled in.
    """
    negative = request.negative_prompt
    return {
        "prompt": read_text(request.prompt, folders).unread,
        "negative_prompt": read_text(negative, folders).unread if request.guidance > 1 else negative,
    }
