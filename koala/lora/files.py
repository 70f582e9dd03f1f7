"""LoRA files of other tools: which layer each tensor belongs to, and its role there.

Layers are named in kohya's style (lora_unet_*, original or diffusers' numbers), in those of diffusers and peft
(unet.*, base_model.model.*), in ComfyUI's (diffusion_model.*), OneTrainer's and LyCORIS'.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from koala.errors import UserError
from koala.files.hashing import digest
from koala.files.reading import read_object
from koala.files.tensorfiles import StoredTensor, refuse_pickle, stored_tensors

Weights = Mapping[str, torch.Tensor]

KOHYA = "lora_unet_"
SETTINGS = "lora_adapter_metadata"  # in a file's metadata: peft's settings, as JSON
DRAWING = "koala_drawing"  # in a file's metadata: how a model is drawn with it (koala.models.lora_drawing)
_PEFT_FILE = "adapter_config.json"  # next to a file that peft saved: the same settings
_PEFT = "base_model.model."
_PARTS = (_PEFT, "unet.", "text_encoder.", "text_encoder_2.")  # prefixes under which PEFT's settings may be kept apart
_BEFORE = (_PEFT, "model.diffusion_model.", "diffusion_model.", "unet.", KOHYA, "lycoris_unet_", "lycoris_")
_TEXT = re.compile(r"(base_model\.model\.)?(lora_te|lycoris_te|te\d?_|text_encoder|text_model\.|clip_[lg]\b)")
_EMBEDDINGS = re.compile(r"(bundle_emb\.|emb_params$)")  # new words for the prompt, which OneTrainer adds

# Key ending -> role of the tensor. We write the first ending of each role in kohya's style, the second in peft's.
ENDINGS = {
    "down": (".lora_down.weight", ".lora_A.weight", ".lora.down.weight", "_lora.down.weight"),  # (rank, inputs, ...)
    "up": (".lora_up.weight", ".lora_B.weight", ".lora.up.weight", "_lora.up.weight"),  # (outputs, rank, ...)
    "mid": (".lora_mid.weight",),
    "up_bias": (".lora_up.bias", ".lora_B.bias"),
    "alpha": (".alpha", ".alpha"),  # the LoRA's scale times its rank
    "dora_scale": (".dora_scale",),
    "magnitude": (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight"),
    **{
        role: (f".{role}",)
        for role in (
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
            *("diff", "diff_b", "w_norm", "b_norm"),
        )
    },
}
_ROLES = {
    ending: role
    for role, endings in ENDINGS.items()
    for ending in endings
    if (role, ending) != ("magnitude", ".dora_scale")
}
_LONGEST_FIRST = sorted(_ROLES, key=len, reverse=True)
# The other roles that a layer needs, by the role that identifies its format.
_WHOLE = {
    "down": [{"up"}], "up": [{"down"}], "mid": [{"down", "up"}], "up_bias": [{"down", "up"}],
    "dora_scale": [{"down", "up"}, {"hada_w1_a"}, {"lokr_w1"}, {"lokr_w1_a"}, {"diff"}], "magnitude": [{"down", "up"}],
    **{role: [{"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}] for role in ENDINGS if role.startswith("hada_w")},
    "hada_t1": [{"hada_w1_a", "hada_t2"}], "hada_t2": [{"hada_w1_a", "hada_t1"}],
    "lokr_w1": [{"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}], "lokr_w2": [{"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"}],
    "lokr_w1_a": [{"lokr_w1_b"}], "lokr_w1_b": [{"lokr_w1_a"}], "lokr_t2": [{"lokr_w2_a", "lokr_w2_b"}],
    "lokr_w2_a": [{"lokr_w2_b"}], "lokr_w2_b": [{"lokr_w2_a"}],
}  # fmt: skip

_ADAPTER = re.compile(r"\.(lora_[AB]|lora_magnitude_vector)\.(?!weight$|bias$)[\w-]+(\.weight|\.bias|)$", re.ASCII)
_NAME = re.compile(r"[\w.-]+", re.ASCII)  # of a tensor, in all styles
_DAMAGED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)  # by hostile JSON


def is_text(key: str) -> bool:
    """Whether a tensor belongs to a text encoder, in any style."""
    return _TEXT.match(key) is not None


def is_embedding(key: str) -> bool:
    """Whether a tensor is a new word of the prompt rather than part of a LoRA."""
    return _EMBEDDINGS.match(key) is not None


def metadata(path: Path) -> dict[str, str]:
    """A safetensors file's own."""
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def stored_lora(path: Path) -> dict[str, StoredTensor]:
    """A LoRA's stored tensors by key; UserError for an incomplete file, and for keys that name no layer."""
    refuse_pickle(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    tensors = stored_tensors(path)
    for key in tensors:
        if not _NAME.fullmatch(key):  # it is displayed, and used in module paths
            raise UserError(f"the key {key[:80]!r} in {path} names no layer; get the LoRA from its source again")
    return tensors


def content(path: Path) -> str:
    """Hash of a LoRA's content: its file's, and that of peft's settings next to it."""
    own = path.parent / _PEFT_FILE
    return ":".join(digest(file) for file in (path, own) if file.is_file())


def read_lora(path: Path) -> dict[str, torch.Tensor]:
    """A LoRA's tensors; a scale from peft's settings becomes an `alpha` tensor of its layer.

    Raises UserError for a file that is not a whole safetensors file, for keys and scales that no LoRA has, and for
    values that are not finite.
    """
    stored_lora(path)
    weights = load_file(path)
    for key, tensor in weights.items():
        if not tensor.is_floating_point() and tensor.dtype != torch.int64:  # quantised codes, not values
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{key} in {path} is of {kind}, and a LoRA is of floats; take it in float16 or float32")
        if key.endswith(".alpha"):
            if not (tensor.numel() == 1 and _is_scale(tensor.float().item())):
                raise UserError(
                    f"{key} in {path} is not a scale: one number is, finite and not below 0; download it again"
                )
        elif not torch.isfinite(tensor.float()).all():
            raise UserError(f"{key} in {path} holds NaN or infinity; download it again, or train it again")
    try:
        _add_scales(weights, _settings(path, weights))
    except (*_DAMAGED, re.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the settings in {path} are damaged ({error}); download it again") from error
    return weights


def _settings(path: Path, weights: Weights) -> dict:
    """peft's settings by part, from the file's metadata or from peft's own file next to it."""
    if text := metadata(path).get(SETTINGS):
        settings = json.loads(text)
        _check_kind(path, next((kind for name, kind in settings.items() if name.endswith("peft_type")), "LORA"))
        return settings
    own = path.parent / _PEFT_FILE
    if own.is_file() and any(key.startswith(_PEFT) for key in weights):
        settings = read_object(own, f"correct it, or copy {path.name} to a folder of its own")
        _check_kind(path, settings.get("peft_type", "LORA"))
        return {f"{_PEFT}{name}": value for name, value in settings.items()}
    return {}


def assumed(path: Path, weights: Weights) -> tuple[str, ...]:
    """What was assumed in reading the file, and what it says of its use, as sentences."""
    return (*_scale_words(path, weights), *_drawing_words(path))


def _drawing_words(path: Path) -> tuple[str, ...]:
    """In how many steps a few-step LoRA draws, which its tensors do not say."""
    try:
        own = json.loads(metadata(path)[DRAWING])["defaults"]
        return (f"it draws in {own['steps']:d} steps with guidance {own['guidance']:g} and {own['scheduler']:.40}",)
    except _DAMAGED:
        return ()


def _scale_words(path: Path, weights: Weights) -> tuple[str, ...]:
    if metadata(path).get(SETTINGS) or not any(key.startswith(_PEFT) for key in weights):
        return ()
    if (path.parent / _PEFT_FILE).is_file():
        return ()
    return (f"{_PEFT_FILE}, which has its alpha, is not next to it, so its scale is taken as 1; put it there",)


def _check_kind(path: Path, kind: object) -> None:
    """UserError for peft's other adapters, which store and compute their scale differently."""
    if kind != "LORA":
        raise UserError(
            f"{path} is peft's {str(kind)[:20]!r}, whose scale is not known here; take a LoRA, or save it in "
            "LyCORIS' format, which has alpha in the file"
        )


def _add_scales(weights: dict[str, torch.Tensor], settings: Mapping) -> None:
    """Write peft's scale of each layer as kohya does: as alpha, where alpha / rank is the scale."""
    for key in [k for k in weights if _ADAPTER.sub(r".\1\2", k).endswith(".lora_A.weight")]:
        plain = _ADAPTER.sub(r".\1\2", key).removesuffix(".lora_A.weight")
        part = next((p for p in _PARTS if plain.startswith(p)), "")
        module = plain.removeprefix(part)
        if part in ("", "unet.") and f"{part}lora_alpha" not in settings:
            part = "" if part else "unet."  # diffusers' unet.save_lora_adapter leaves it out, and its pipelines do not
        patterns = settings.get(f"{part}alpha_pattern") or {}
        if tried := [pattern for pattern in patterns if re.search(r"[*+?{(]", pattern)]:
            raise ValueError(f"{tried[0][:80]!r} could take hours to match; a pattern of a scale names its layers")
        special = (alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module))
        rank = weights[key].shape[0]
        alpha = next(special, settings.get(f"{part}lora_alpha", rank))
        if not _is_scale(alpha):
            raise ValueError(f"{str(alpha)[:80]!r} is not a scale of {key}; one number is, finite and not below 0")
        if settings.get(f"{part}use_rslora"):
            alpha = alpha * rank**0.5  # so that alpha / rank is alpha / sqrt(rank)
        if alpha != rank and f"{part}lora_alpha" in settings and f"{plain}.alpha" not in weights:
            weights[f"{plain}.alpha"] = torch.tensor(float(alpha))


def _is_scale(alpha: object) -> bool:
    return isinstance(alpha, int | float) and 0 <= alpha < math.inf


def flat(module: str) -> str:
    """A module's path with underscores, as kohya writes it."""
    return module.replace(".", "_")


def split(weights: Weights) -> Iterator[tuple[str, str, str]]:
    """(layer's name with underscores, what the tensor is, its key) for every key of the U-Net."""
    for key in weights:
        if is_text(key) or is_embedding(key):
            continue
        plain = _ADAPTER.sub(r".\1\2", key)
        ending = next((e for e in _LONGEST_FIRST if plain.endswith(e)), None)
        if ending is None:
            raise UserError(
                f"{key} is not part of a LoRA that is known here: LoRA, DoRA, LoCon, LoHa, LoKr, and whole changes "
                "(diff) are. A whole model is not a LoRA; other adapters are used by the tool that made them"
            )
        name = plain.removesuffix(ending)
        while before := next((b for b in _BEFORE if name.startswith(b)), ""):
            name = name.removeprefix(before)
        if ".processor." in name:  # diffusers' first style: attn1.processor.to_q_lora.down.weight
            name = name.replace(".processor.", ".")
            name += ".0" if name.endswith("to_out") else ""
        yield flat(name), _ROLES[ending], key


def lacking(parts: Weights) -> str | None:
    """The role that a layer lacks in its format; None for a complete layer."""
    for role in parts:
        needs = _WHOLE.get(role, [set()])
        if not any(need <= parts.keys() for need in needs):
            return min(needs[0] - parts.keys())
    return None
