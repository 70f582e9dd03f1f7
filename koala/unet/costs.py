"""Exact parameters and FLOPs of a spec by arithmetic: whole, per stage and block by block.

A FLOP is half a multiply-add, as in KOALA's and diffusers' figures: convolutions, linear layers and attention's two
products count, elementwise work does not.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from koala.unet.specs import STAGES, UNetSpec

TOKENS = 77  # of a prompt
LATENT_FACTOR = 8  # px per latent
LATENT_CHANNELS = 4


@dataclass(frozen=True, kw_only=True)
class Block:
    """One part of a stage: `path` is its diffusers module, `tokens` the positions that it works on."""

    stage: str  # of STAGES, or "in" and "out" for what comes before and after them
    kind: str  # embedding, convolution, resnet, attention, downsampler, upsampler
    path: str
    inside: int  # channels that come in; more than `channels` in a residual block that takes a skip
    channels: int
    depth: int  # transformer blocks; 0 where there is no attention
    tokens: int
    parameters: int
    flops: int  # of one forward pass of one sample


def convolution(inside: int, outside: int, tokens: int, kernel: int = 3) -> tuple[int, int]:
    """(parameters, FLOPs) of a convolution over so many tokens."""
    weights = inside * outside * kernel**2
    return weights + outside, 2 * weights * tokens


def linear(inside: int, outside: int, rows: int, bias: bool = True) -> tuple[int, int]:
    """(parameters, FLOPs) of a linear layer over so many rows."""
    return inside * outside + bias * outside, 2 * inside * outside * rows


def norm(channels: int) -> tuple[int, int]:
    """(parameters, FLOPs) of a norm, whose FLOPs are not counted."""
    return 2 * channels, 0


def add(*parts: tuple[int, int]) -> tuple[int, int]:
    """(parameters, FLOPs) of all these together."""
    return sum(p for p, _ in parts), sum(f for _, f in parts)


def _resnet(inside: int, outside: int, embedding: int, tokens: int) -> tuple[int, int]:
    return add(
        norm(inside),
        convolution(inside, outside, tokens),
        linear(embedding, outside, 1),
        norm(outside),
        convolution(outside, outside, tokens),
        convolution(inside, outside, tokens, kernel=1) if inside != outside else (0, 0),
    )


def _transformer(channels: int, depth: int, context: int, tokens: int) -> tuple[int, int]:
    square = linear(channels, channels, tokens, bias=False)
    out = linear(channels, channels, tokens)
    text = linear(context, channels, TOKENS, bias=False)
    products = (0, 4 * channels * tokens * (tokens + TOKENS))  # q k^T and p v, of self- and of cross-attention
    feed_forward = linear(channels, 8 * channels, tokens), linear(4 * channels, channels, tokens)  # GEGLU
    block = add(*[norm(channels)] * 3, *[square] * 4, *[text] * 2, *[out] * 2, products, *feed_forward)
    return add(norm(channels), *[out] * 2, *[block] * depth)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """The parts of one network with their costs; `at` counts resolutions from the finest, `tokens` has each one's."""

    spec: UNetSpec
    tokens: tuple[int, ...]

    @property
    def embedding(self) -> int:
        """Width of the embedding of time, size and text."""
        return 4 * self.spec.channels[0]

    def part(
        self,
        stage: str,
        kind: str,
        path: str,
        at: int,
        cost: tuple[int, int],
        depth: int = 0,
        inside: int | None = None,
    ) -> Block:
        return Block(
            stage=stage,
            kind=kind,
            path=path,
            inside=inside or self.spec.channels[at],
            channels=self.spec.channels[at],
            depth=depth,
            tokens=self.tokens[at],
            parameters=cost[0],
            flops=cost[1],
        )

    def resnet(self, stage: str, index: int, at: int, inside: int) -> Block:
        cost = _resnet(inside, self.spec.channels[at], self.embedding, self.tokens[at])
        return self.part(stage, "resnet", f"{STAGES[stage]}.resnets.{index}", at, cost, inside=inside)

    def attention(self, stage: str, index: int, at: int, depth: int) -> Iterator[Block]:
        if depth:
            cost = _transformer(self.spec.channels[at], depth, self.spec.cross_attention_dim, self.tokens[at])
            yield self.part(stage, "attention", f"{STAGES[stage]}.attentions.{index}", at, cost, depth)

    def sampler(self, stage: str, kind: str, at: int, to: int) -> Block:
        cost = convolution(self.spec.channels[at], self.spec.channels[at], self.tokens[to])
        return self.part(stage, kind, f"{STAGES[stage]}.{kind}s.0", at, cost)

    def embeddings(self) -> Iterator[Block]:
        """Of the time, and of size and pooled text."""
        for path, inside in (
            ("time_embedding", self.spec.channels[0]),
            ("add_embedding", self.spec.pooled_dim + 6 * self.spec.time_id_dim),
        ):
            cost = add(linear(inside, self.embedding, 1), linear(self.embedding, self.embedding, 1))
            yield self.part("in", "embedding", path, 0, cost)


def blocks(spec: UNetSpec, *, width: int, height: int) -> Iterator[Block]:
    """Every part in forward order, for a picture of this size in px."""
    sides = [(width // LATENT_FACTOR) // 2**k for k in range(3)], [(height // LATENT_FACTOR) // 2**k for k in range(3)]
    make = _Parts(spec=spec, tokens=tuple(w * h for w, h in zip(*sides, strict=True)))
    first, depths = spec.channels[0], spec.depths()

    yield from make.embeddings()
    yield make.part("in", "convolution", "conv_in", 0, convolution(LATENT_CHANNELS, first, make.tokens[0]))
    inside = first
    for at, stage in enumerate(("DW-1", "DW-2", "DW-3")):
        for index, depth in enumerate(depths[stage]):
            yield make.resnet(stage, index, at, inside)
            yield from make.attention(stage, index, at, depth)
            inside = spec.channels[at]
        if at < 2:
            yield make.sampler(stage, "downsampler", at, at + 1)
    if spec.mid_depth is not None:
        yield make.resnet("MID", 0, 2, inside)
        if spec.mid_depth:
            yield from make.attention("MID", 0, 2, spec.mid_depth)
            yield make.resnet("MID", 1, 2, inside)
    for at, stage in zip((2, 1, 0), ("UP-1", "UP-2", "UP-3"), strict=True):
        own, from_below = spec.channels[at], spec.channels[max(at - 1, 0)]
        for index, depth in enumerate(depths[stage]):
            skip = from_below if index == len(depths[stage]) - 1 else own
            yield make.resnet(stage, index, at, inside + skip)
            yield from make.attention(stage, index, at, depth)
            inside = own
        if at:
            yield make.sampler(stage, "upsampler", at, at - 1)
    yield make.part("out", "convolution", "conv_norm_out", 0, norm(first))
    yield make.part("out", "convolution", "conv_out", 0, convolution(first, LATENT_CHANNELS, make.tokens[0]))


def parameters(spec: UNetSpec) -> int:
    """Exactly those of the network that `spec.config()` builds."""
    return sum(b.parameters for b in blocks(spec, width=0, height=0))


def flops(spec: UNetSpec, *, width: int, height: int, batch: int = 1) -> int:
    """Of one forward pass for pictures of this size in px; guidance makes a batch of two."""
    return batch * sum(b.flops for b in blocks(spec, width=width, height=height))


def by_stage(spec: UNetSpec, *, width: int, height: int) -> dict[str, tuple[int, int]]:
    """Stage -> (parameters, FLOPs of one forward pass), with "in" first and "out" last."""
    totals: dict[str, tuple[int, int]] = {}
    for block in blocks(spec, width=width, height=height):
        totals[block.stage] = add(totals.get(block.stage, (0, 0)), (block.parameters, block.flops))
    return totals
