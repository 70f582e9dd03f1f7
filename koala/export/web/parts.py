"""What the page needs to know about a model, read from its export; models that it would draw wrongly are refused."""

import gzip
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from koala.errors import UserError
from koala.files.fields import Fields
from koala.files.reading import read_object
from koala.models.export_manifest import Exported
from koala.models.layout import TOKENIZERS
from koala.models.semantics import INDEX, SCHEDULER, zeros_for_empty
from koala.words import gigabytes

SAMPLERS = ("euler-trailing", "euler-ancestral-trailing")  # that the page has, euler.js
PARTS = ("unet", "text_encoder", "text_encoder_2", "vae_decoder")
LARGEST = 2_000_000_000  # bytes of a file that a browser takes as one array
SHARED = {"text_encoder": "text_encoder", "text_encoder_2": "text_encoder_2", "vae_decoder": "vae"}

# What a tokenizer.json must say to match clip.js.
_CLIP = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ],
    },
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {
                    "Regex": r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|"
                    r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
                },
                "behavior": "Removed",
                "invert": True,
            },
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
}
_BPE = {"type": "BPE", "continuing_subword_prefix": "", "end_of_word_suffix": "</w>", "dropout": None}
_SCHEDULE = {
    "beta_schedule": ("scaled_linear", "linear"),
    "prediction_type": ("epsilon", "epsilon"),
    "trained_betas": (None, None),
    "rescale_betas_zero_snr": (False, False),
    "use_karras_sigmas": (False, False),
    "use_exponential_sigmas": (False, False),
    "use_beta_sigmas": (False, False),
}  # key -> the value that euler.js follows, what a config means that does not say


def entry_of(folder: Path, exported: Exported, files: "Files", known: dict[tuple, str]) -> dict[str, object]:
    """A model's entry in site.json; writes its files, except those that `known` has from the same source."""
    schedule, defaults = _schedule(folder), dict(exported.defaults)
    if defaults["scheduler"] not in SAMPLERS:
        raise UserError(
            f"{exported.title} is drawn with {defaults['scheduler']}, and the page only has {' and '.join(SAMPLERS)}; "
            "take another model"
        )
    vae = read_object(folder / "vae_decoder" / "config.json")
    mean, std = vae.get("latents_mean"), vae.get("latents_std")
    return {
        "name": exported.model,
        "title": exported.title,
        "parameters": exported.components["unet"].parameters,
        "licence": exported.licence,
        "revision": exported.revision,
        "dtype": exported.dtype,
        "half": exported.stored_dtype == "float16",
        "source": dict(exported.source),
        "defaults": defaults,
        "schedule": schedule,
        "latents": {"scaling_factor": vae["scaling_factor"]} | ({"mean": mean, "std": std} if mean and std else {}),
        "zeros": zeros_for_empty(folder / INDEX),
        "inputs": {
            part: {name: kind for name, (kind, _) in exported.components[part].inputs.items()} for part in PARTS
        },
        "parts": {part: _graph(folder, exported, part, files, known) for part in PARTS},
        "tokenizers": [files.enclose(name, _tokenizer(folder / name), ".json") for name in TOKENIZERS],
    }


def _graph(folder: Path, exported: Exported, part: str, files: "Files", known: dict[tuple, str]) -> str:
    """A component's file; models share a file made from the same weights in the same type."""
    owner = SHARED.get(part, part)
    source = tuple(sorted((n, sha) for n, sha in exported.source.items() if n.startswith(f"{owner}/")))
    key = (part, exported.components[part].dtype, source)
    if part == "unet" or not source or key not in known:
        names = list(exported.components[part].files)
        if len(names) != 1:
            raise UserError(f"{exported.title} has its {part} in {len(names)} files, and a browser opens only one")
        content = (folder / names[0]).read_bytes()
        if len(content) > LARGEST:
            raise UserError(
                f"{names[0]} of {exported.title} has {gigabytes(len(content))}, and a browser takes "
                f"{gigabytes(LARGEST, 0)} at most; take a smaller model"
            )
        known[key] = files.enclose(part, content, ".onnx")
    return known[key]


def _schedule(folder: Path) -> dict[str, object]:
    file = folder / SCHEDULER
    config = read_object(file)
    for key, (wanted, default) in _SCHEDULE.items():
        if (value := config.get(key, default)) != wanted:
            raise UserError(f"{file} says {key} {value!r}, and the page only supports {wanted!r}; take another model")
    own = Fields(values=config, file=str(file))
    return {
        "num_train_timesteps": own.whole("num_train_timesteps", 2, 10_000, 1000),
        "beta_start": own.number("beta_start", 1e-8, 0.999),
        "beta_end": own.number("beta_end", 1e-8, 0.999),
    }


def _tokenizer(folder: Path) -> bytes:
    """What clip.js reads: vocabulary, merges, special tokens and the four ids. tokenizer_2 pads with `!`."""
    file = folder / "tokenizer.json"
    own, settings = read_object(file), read_object(folder / "tokenizer_config.json")
    model = Fields(values=own, file=str(file)).object("model").values
    different = [key for key, wanted in _CLIP.items() if own.get(key) != wanted]
    different += [f"model.{key}" for key, wanted in _BPE.items() if model.get(key) != wanted]
    if different:
        raise UserError(f"{file} is not CLIP's tokenizer ({', '.join(different)}); take another model")

    def token(name: str) -> int:  # some files have the word alone, some a table that holds it
        entry = settings[name]
        return model["vocab"][entry["content"] if isinstance(entry, dict) else entry]

    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    vocabulary = {
        "vocab": model["vocab"],
        "merges": merges,
        "special": {one["content"]: one["id"] for one in own["added_tokens"]},
        "start": token("bos_token"),
        "end": token("eos_token"),
        "pad": token("pad_token"),
        "unknown": model["vocab"][model["unk_token"]],
    }
    return json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")).encode()


# --- A site's large files: compressed, named by their hash, each written once

FOLDER = "files"  # of the site
_LEVEL = 6  # 9 takes three times as long for half a percent


@dataclass(frozen=True, kw_only=True)
class Files:
    """Files that the page's worker fetches, in a site that is being written."""

    site: Path
    listed: dict[str, dict[str, object]] = field(default_factory=dict)  # path -> size, compressed size, SHA-256

    def enclose(self, stem: str, content: bytes, ending: str) -> str:
        """Write a file, gzipped, unless it is there; its path in the site.

        The page unpacks it itself, so that the way is short from a host that compresses nothing, too.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        name = f"{FOLDER}/{stem}-{sha256[:12]}{ending}.gz"
        if name not in self.listed:
            packed = gzip.compress(content, _LEVEL, mtime=0)
            (self.site / FOLDER).mkdir(exist_ok=True)
            (self.site / name).write_bytes(packed)
            self.listed[name] = {"bytes": len(content), "sent": len(packed), "sha256": sha256}
        return name

    def sent(self, names: set[str]) -> int:
        """Compressed bytes of these files."""
        return sum(self.listed[name]["sent"] for name in names)
