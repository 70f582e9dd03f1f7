"""The layers of a U-Net that a LoRA in training adapts (koala.lora.training.TARGETS), by arithmetic on a spec."""

from collections.abc import Iterator
from dataclasses import dataclass

from koala.unet.costs import TOKENS, Block, blocks
from koala.unet.specs import UNetSpec


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A linear layer (kernel 1) or convolution: its channels, and the positions of one picture that come out of it."""

    inside: int
    outside: int
    kernel: int = 1
    rows: int

    def parameters(self, rank: int) -> int:
        """Of both factors."""
        return rank * (self.inside * self.kernel**2 + self.outside)

    def flops(self, rank: int) -> int:
        """Of both factors in one forward pass."""
        return 2 * self.parameters(rank) * self.rows


def layers(block: Block, spec: UNetSpec) -> Iterator[Layer]:
    """Those of one block."""
    inside, channels, rows = block.inside, block.channels, block.tokens
    if block.kind == "resnet":
        yield Layer(inside=inside, outside=channels, kernel=3, rows=rows)
        yield Layer(inside=4 * spec.channels[0], outside=channels, rows=1)  # the time's embedding
        yield Layer(inside=channels, outside=channels, kernel=3, rows=rows)
        if inside != channels:
            yield Layer(inside=inside, outside=channels, rows=rows)
    elif block.kind == "attention":
        square = Layer(inside=channels, outside=channels, rows=rows)
        text = Layer(inside=spec.cross_attention_dim, outside=channels, rows=TOKENS)
        widened = Layer(inside=channels, outside=8 * channels, rows=rows)
        back = Layer(inside=4 * channels, outside=channels, rows=rows)
        yield from (square, square)  # in and out
        for _ in range(block.depth):
            yield from (*[square] * 6, *[text] * 2, widened, back)
    elif block.kind.endswith("sampler"):
        rows = rows // 4 if block.kind == "downsampler" else rows * 4
        yield Layer(inside=channels, outside=channels, kernel=3, rows=rows)


def lora_parameters(spec: UNetSpec, rank: int) -> int:
    """How many numbers the factors of a whole U-Net have."""
    return sum(layer.parameters(rank) for b in blocks(spec, width=0, height=0) for layer in layers(b, spec))


def lora_flops(spec: UNetSpec, rank: int, *, width: int, height: int) -> int:
    """Of the factors in one forward pass for one picture of this size in px."""
    return sum(x.flops(rank) for b in blocks(spec, width=width, height=height) for x in layers(b, spec))


def between(spec: UNetSpec, rank: int, *, width: int, height: int) -> dict[str, int]:
    """Block -> elements between the factors of its layers, of one picture: what `up` learns from."""
    every = blocks(spec, width=width, height=height)
    return {b.path: rank * sum(layer.rows for layer in layers(b, spec)) for b in every}


def running(spec: UNetSpec, rank: int, *, width: int, height: int) -> int:
    """Elements that the factors of one layer take while they run, of one picture: the most of any layer.

    They are twice what is between the factors, and what is added.
    """
    every = blocks(spec, width=width, height=height)
    return max((2 * rank + x.outside) * x.rows for b in every for x in layers(b, spec))
