"""Accounts for every tensor of a component's files: used, left out with a warning, or a reason to refuse the files.

It compares names only; no tensor is read. Prefixes that wrappers (torch.compile, several processes) add to names are
removed.
"""

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from koala.errors import UserError
from koala.models.semantics import EDM_MARKERS, MARKERS

log = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]  # tensor -> shape
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|^(?:module\.)+")
# Quantised weights, which need their scale factors or their code book.
_SCALES = re.compile(
    r"(^|\.)(scale_weight|scale_input|input_scale|weight_scale\w*|weight_scale_inv|scaled_fp8|comfy_quant|absmax|"
    r"quant_map|nested_absmax|nested_quant_map|quant_state\..*|SCB|qweight|qzeros|_scale|weight_zero_point)$"
)
_LORA = re.compile(r"(^|[._])lora(_|\.|$)|\.alpha$")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of a VAE's, until 2023
_OLD = re.compile(rf"(mid_block\.attentions\.\d+)\.({'|'.join(_OLD_ATTENTION)})\.")
# Optional parts that change what a network computes; any other unknown top-level name is a leftover.
_OPTIONAL = {
    "unet": ("mid_block", "encoder_hid_proj", "class_embedding", "add_embedding", "time_embedding", "position_net")
    + ("input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"),
    "vae": ("quant_conv", "post_quant_conv"),
    "text_encoder": (),
    "text_encoder_2": (),
}


@dataclass(frozen=True, kw_only=True)
class Account:
    """The tensors of a component's files."""

    names: dict[str, str]  # the network's tensor -> its name in the files
    markers: tuple[str, ...]  # of semantics.MARKERS
    left_out: tuple[str, ...]  # names in the files that the network has no place for

    def say(self, place: Path) -> None:
        """A warning for what was left out."""
        if self.left_out:
            log.warning("%s: left out, as the network has no place for it: %s", place, _count(self.left_out))


def unwrapped(key: str) -> str:
    """A tensor's name without the modules that wrapped its network when it was saved."""
    return _WRAPPERS.sub("", key)


def account(part: str, place: Path, network: Shapes, stored: Shapes) -> Account:
    """The tensors of `network` (by the names that diffusers and transformers save) among those of its files.

    UserError in one sentence for files of another network: missing tensors, other shapes, a deeper or a quantised
    network. `place` is the folder or file that an error names.
    """
    alone = place.suffix.lower() == ".safetensors"
    again = "copy or download the file again" if alone else "copy or download its weights and its config.json again"
    asks = "a network of its depths has" if alone else "its config.json describes"
    names: dict[str, str] = {}
    inside = {name.split(".")[1] for name in network if name.startswith("text_model.")}
    for key in stored:
        own = _own(key, network, inside)
        if own in names:
            raise UserError(f"{place} holds {own} twice, as {names[own]} and as {key}; {again}")
        names[own] = key
    extra = [own for own in names if own not in network and not own.endswith("position_ids")]  # a buffer: 0 .. 76
    _refuse_meanings(place, extra)
    missing = [own for own in network if own not in names]
    if len(missing) == len(network):
        raise UserError(f"{place} has none of the tensors that {asks}, but {_count(sorted(stored))}; {again}")
    if missing:
        raise UserError(f"{place} lacks {_count(missing)}; {again}")
    if wrong := [own for own, shape in network.items() if tuple(stored[names[own]]) != tuple(shape)]:
        one = wrong[0]
        raise UserError(
            f"{place} has {_count(wrong)}, in another shape than {asks}: {list(stored[names[one]])} "
            f"instead of {list(network[one])}; {again}"
        )
    tops = {name.split(".")[0] for name in network} | set(_OPTIONAL[part])
    if deeper := [own for own in extra if own.split(".")[0] in tops and not _LORA.search(own)]:
        raise UserError(f"{place} has {_count(deeper)}, beyond what {asks}; {again}")
    return Account(
        names={own: names[own] for own in network},
        markers=tuple(m for m in MARKERS if m in extra),
        left_out=tuple(sorted(names[own] for own in extra if own not in MARKERS)),
    )


def _own(key: str, network: Shapes, inside: Collection[str]) -> str:
    """The name that a network's tensor has where diffusers and transformers save it today.

    `inside` are the modules of a text encoder's text_model, a prefix that transformers 5 drops in memory.
    """
    own = unwrapped(key)
    if own in network:
        return own
    if own.split(".")[0] in inside:
        return f"text_model.{own}"
    return _OLD.sub(lambda match: f"{match[1]}.{_OLD_ATTENTION[match[2]]}.", own)


def _refuse_meanings(place: Path, extra: Iterable[str]) -> None:
    """UserError for tensors that mark the others as quantised, or as weights of another kind of model."""
    if scales := [own for own in extra if _SCALES.search(own)]:
        raise UserError(
            f"{place} is quantised: it has {_count(scales)}, without which its weights mean nothing, and which are not "
            "applied here; take a float16 or float32 file of the model"
        )
    if edm := [own for own in extra if own in EDM_MARKERS]:
        raise UserError(
            f"{place} is marked {edm[0]}: it learned with EDM noise, which no scheduler here follows; take another "
            "model, or draw it with a program that knows EDM"
        )


def _count(keys: Iterable[str]) -> str:
    """The number of tensors, and an example."""
    keys = list(keys)
    if len(keys) < 2:
        return f"one tensor, {keys[0]}" if keys else "nothing"
    return f"{len(keys):,} tensors, for example {keys[0]}"
