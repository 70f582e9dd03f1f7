"""Reading a model's files with libraries: errors over damaged files become a UserError that names the place."""

import json
import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from diffusers import ConfigMixin, EulerDiscreteScheduler
from transformers import CLIPTokenizer, PretrainedConfig

from koala.errors import UserError
from koala.files.reading import read_object
from koala.hardware.shortage import ran_out
from koala.models.schedulers import build
from koala.models.semantics import SCHEDULER, check_config, with_class_defaults
from koala.request import SCHEDULERS
from koala.unet.costs import TOKENS

log = logging.getLogger(__name__)

_TOKENIZER = "tokenizer_config.json"
_START, _END = "<|startoftext|>", "<|endoftext|>"
_PADS = {"tokenizer_2": "!"}  # SDXL's second tokenizer pads with the first word, the first with the end of text
_OURS = ("koala.", "export.")
_LONGEST = 400  # characters quoted of a library's message
_MISFITS = {
    "missing_keys": "its config.json describes {}, which its weights lack",
    "mismatched_keys": "its config.json describes {} in another shape than its weights have",
    "unexpected_keys": "its weights have {}, which its config.json does not describe",
}


@contextmanager
def from_files(what: str, place: Path) -> Iterator[None]:
    """Around a call that reads `place`; `what` is read from there.

    Damaged files make libraries raise anything. So every error is taken for the files' fault, but a shortage of memory
    and one that our own code raised.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):  # of a library in Rust
            raise
        if ran_out(error) or _is_ours(error):
            raise
        words = " ".join(str(error).split()) or type(error).__name__
        words = words if len(words) <= _LONGEST else f"{words[:_LONGEST]}..."
        raise UserError(
            f"{what} could not be loaded from {place}: {words}. Copy or download its files again"
        ) from error


def _is_ours(error: BaseException) -> bool:
    """Whether our own code raised the error, inside the call that read the files."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return len(frames) > 1 and frames[-1].startswith(_OURS)


def check_complete(loading_info: Mapping[str, Sequence], folder: Path) -> None:
    """UserError where weights and config are of different networks; libraries would fill in random weights."""
    for why, words in _MISFITS.items():
        names = (
            key[0] if isinstance(key, tuple) else key for key in loading_info.get(why) or ()
        )  # with shapes, or alone
        keys = sorted(name for name in names if not name.endswith("position_ids"))  # a buffer
        if keys:
            which = keys[0] + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
            raise UserError(f"{folder} is damaged: {words.format(which)}; copy both again")


def say_ignored(kind: type[ConfigMixin], file: Path) -> None:
    """Warn about settings in a config that diffusers does not know and ignores."""
    _, unknown, _ = kind.extract_init_dict(dict(read_object(file)))
    if names := sorted(name for name in unknown if not name.startswith("_")):
        log.warning("%s says %s, which is unknown to %s and has no effect", file, ", ".join(names), kind.__name__)


def tokenizer_defaults(folder: Path) -> dict[str, object]:
    """The settings of CLIP's tokenizer that a folder lacks, as SDXL has them; empty where it has them.

    The padding token is read from special_tokens_map.json or tokenizer.json where they have it.
    """
    given = read_object(folder / _TOKENIZER) if (folder / _TOKENIZER).is_file() else {}
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


def complete_tokenizer(folder: Path) -> None:
    """Write the missing settings into a folder of ours, so that every program reads it alike."""
    if missing := tokenizer_defaults(folder):
        given = read_object(folder / _TOKENIZER) if (folder / _TOKENIZER).is_file() else {}
        (folder / _TOKENIZER).write_text(json.dumps(given | missing, indent=2) + "\n")


def load_tokenizer(folder: Path, vocabulary: int) -> CLIPTokenizer:
    """A tokenizer whose tokens are all among the `vocabulary` of its text encoder."""
    for file in sorted(folder.glob("*.json")):
        read_object(file)
    if missing := tokenizer_defaults(folder):
        shown = ", ".join(f"{name} {value!r}" for name, value in missing.items())
        log.warning("%s does not say all of its tokenizer's settings; SDXL's are assumed: %s", folder, shown)
    with from_files("the tokenizer", folder):
        tokenizer = CLIPTokenizer.from_pretrained(folder, **missing)
        whole = tokenizer("a", padding="max_length", max_length=TOKENS, truncation=True).input_ids
    if tokenizer.model_max_length != TOKENS or len(whole) != TOKENS:
        raise UserError(
            f"{folder} is damaged: its tokenizer gives {tokenizer.model_max_length:,} tokens, not {TOKENS}; "
            "copy it again"
        )
    if len(tokenizer) > vocabulary or not all(isinstance(token, int) and token < vocabulary for token in whole):
        raise UserError(f"{folder} is damaged: it has more words than its text encoder, {vocabulary:,}; copy it again")
    return tokenizer


def check_widths(folder: Path, unet: Mapping[str, int], text: Sequence[PretrainedConfig]) -> None:
    """UserError where a U-Net's text width is not that of its two text encoders."""
    width, pooled = sum(config.hidden_size for config in text), text[1].projection_dim
    reads = unet["cross_attention_dim"]
    added = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
    if (reads, added) != (width, pooled):
        raise UserError(
            f"{folder} is damaged: its U-Net reads text {reads} wide and pooled text {added} wide, its text encoders "
            f"write {width} and {pooled}; copy the folder again"
        )


def load_noising(folder: Path) -> EulerDiscreteScheduler:
    """A pipeline's own scheduler, on whose noise schedule every scheduler of a request can be built."""
    file = folder / "scheduler_config.json"
    config = read_object(file)
    check_config(SCHEDULER, config, str(file))
    say_ignored(EulerDiscreteScheduler, file)
    assumed_by_class = {name: value for name, value in with_class_defaults(config).items() if name not in config}
    with from_files("the scheduler", folder):
        scheduler = EulerDiscreteScheduler.from_pretrained(folder, **assumed_by_class)
        for name in SCHEDULERS:
            build(name, scheduler.config).set_timesteps(2)
    return scheduler
