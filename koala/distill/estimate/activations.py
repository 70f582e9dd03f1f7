"""Bytes that a training step keeps between forward and backward, per picture, by arithmetic on a spec.

Every term is one tensor that autograd saves in diffusers' modules, with fused attention: the tests count them there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from koala.distill.loss.pairs import Pair
from koala.unet.costs import TOKENS, Block, blocks
from koala.unet.specs import STAGES, UNetSpec


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Bytes per element of what is saved: `value` of most tensors, `norm` of what goes into and out of a norm.

    Under autocast a GPU normalises in fp32, and every linear layer keeps its own half-precision copy of a norm's
    output; a CPU does neither.
    """

    value: int
    norm: int

    @property
    def mixed(self) -> bool:
        """Whether norms run in another precision than the rest."""
        return self.norm != self.value


def widths(precision: str, device: str) -> Widths:
    """Of a config's precision, under autocast on this kind of device."""
    value = 4 if precision == "fp32" else 2
    return Widths(value=value, norm=value if device == "cpu" else 4)


def _resnet(block: Block, w: Widths) -> int:
    """Input, and what goes into activation and convolution, of both halves; the shortcut's own input if it is cast."""
    inside, outside = block.inside * block.tokens, block.channels * block.tokens
    shortcut = w.value * inside if w.mixed and inside != outside else 0
    return (2 * w.norm + w.value) * (inside + outside) + shortcut


def _transformer_block(spec: UNetSpec, block: Block, w: Widths) -> int:
    """One transformer block: self-attention, cross-attention, GEGLU (C -> 8C -> 4C -> C)."""
    heads = spec.heads[spec.channels.index(block.channels)]
    tokens = block.channels * block.tokens
    norms = 3 * w.norm * tokens
    self_attention = (3 if w.mixed else 1) + 4  # what q, k and v are made from; q, k, v and the output
    cross_attention = 1 + 2  # what q is made from; q and the output
    feed_forward = 1 + 8 + 4 + 4  # its input, both halves of GEGLU, gelu(gate), the product
    text = 2 * TOKENS * (block.channels + (spec.cross_attention_dim if w.value == 2 else 0))  # k, v; what is cast
    sums = 2 * heads * block.tokens * 4  # of each row of attention, in fp32
    return norms + w.value * ((self_attention + cross_attention + feed_forward) * tokens + text) + sums


def saved_bytes(spec: UNetSpec, *, width: int, height: int, w: Widths, checkpointing: bool = False) -> int:
    """Of one picture of this size in px, kept from the forward pass; with checkpointing the blocks' inputs alone."""
    total = 0
    for block in blocks(spec, width=width, height=height):
        tokens = block.channels * block.tokens
        if block.kind == "resnet":
            alone = checkpointing and block.path != "mid_block.resnets.0"  # which diffusers does not checkpoint
            total += w.value * block.inside * block.tokens if alone else _resnet(block, w)
        elif block.kind == "attention":
            each = w.value * tokens if checkpointing else _transformer_block(spec, block, w)
            total += (w.norm + 2 * w.value) * tokens + block.depth * each  # norm, projections in and out
        elif block.kind.endswith("sampler"):
            total += w.value * tokens * (4 if block.kind == "upsampler" else 1)
        elif block.path == "conv_out":
            total += (2 * w.norm + w.value) * tokens  # norm, activation, convolution
    return total


def recomputed_bytes(spec: UNetSpec, *, width: int, height: int, w: Widths) -> int:
    """Of one picture: the largest block that checkpointing has in memory whole, in the backward pass."""
    own = [b for b in blocks(spec, width=width, height=height) if b.kind in ("resnet", "attention")]
    return max(_resnet(b, w) if b.kind == "resnet" else _transformer_block(spec, b, w) for b in own)


def flowing_bytes(spec: UNetSpec, *, width: int, height: int, w: Widths, lora: bool = False) -> int:
    """Of one picture: gradients on their way through the largest residual block, where a GPU normalises in fp32.

    Those of its convolution's input and of its skip (two each, with a LoRA one more) in the precision of the passes,
    those of activation and norm in fp32, and the output's. Elsewhere each is gone when the next one comes.
    """
    if not w.mixed:
        return 0
    own = [b for b in blocks(spec, width=width, height=height) if b.kind == "resnet"]
    inputs = 2 * w.norm + (4 + lora) * w.value
    return max((inputs * b.inside + w.value * b.channels) * b.tokens for b in own)


def feature_elements(spec: UNetSpec, pairs: Sequence[Pair], *, width: int, height: int) -> list[int]:
    """Elements of every pair's output, of one picture."""
    return [_output_elements(spec, p, width=width, height=height) for p in pairs]


def _output_elements(spec: UNetSpec, pair: Pair, *, width: int, height: int) -> int:
    own = [b for b in blocks(spec, width=width, height=height) if b.stage == pair.stage]
    if pair.kind != "LF":
        block = next(b for b in own if f"{pair.student}.".startswith(f"{b.path}."))
        return block.channels * block.tokens
    last = own[-1]  # DW ends in a downsampler, UP in an upsampler
    assert pair.student == STAGES[pair.stage]
    scale = {"downsampler": 1 / 4, "upsampler": 4}.get(last.kind, 1)
    return int(last.channels * last.tokens * scale)
