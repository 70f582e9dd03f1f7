"""UNetSpec: the topology of an SDXL-family U-Net as data, and the paper's stage names for diffusers' modules."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

# The paper's stages (KOALA, section 3.1.1) from input to output, and the diffusers module that each one is.
STAGES = {
    "DW-1": "down_blocks.0",
    "DW-2": "down_blocks.1",
    "DW-3": "down_blocks.2",
    "MID": "mid_block",
    "UP-1": "up_blocks.0",
    "UP-2": "up_blocks.1",
    "UP-3": "up_blocks.2",
}


@dataclass(frozen=True, kw_only=True)
class UNetSpec:
    """An SDXL-family U-Net. Depths count transformer blocks: one entry per residual block, 0 for no attention."""

    name: str
    channels: tuple[int, int, int]  # of DW-1, DW-2, DW-3
    heads: tuple[int, int, int]
    down_depths: tuple[tuple[int, ...], ...]  # DW-1, DW-2, DW-3
    mid_depth: int | None  # None: the stage is absent
    up_depths: tuple[tuple[int, ...], ...]  # UP-1, UP-2, UP-3
    cross_attention_dim: int
    pooled_dim: int
    time_id_dim: int  # sinusoid width of each of the six size and crop numbers
    norm_num_groups: int

    def depths(self) -> dict[str, tuple[int, ...]]:
        """Stage name -> transformer depth of each residual block of the stage; absent stages are left out."""
        middle = () if self.mid_depth is None else ((self.mid_depth,),)
        names = [s for s in STAGES if s != "MID" or middle]
        return dict(zip(names, (*self.down_depths, *middle, *self.up_depths), strict=True))

    def self_attentions(self) -> Iterator[tuple[str, str]]:
        """Every self-attention layer as (stage, diffusers module path of its attn1), in forward order."""
        for stage, depths in self.depths().items():
            for layer, depth in enumerate(depths):
                for block in range(depth):
                    yield stage, f"{STAGES[stage]}.attentions.{layer}.transformer_blocks.{block}.attn1"

    def config(self) -> dict:
        """Keyword arguments of diffusers.UNet2DConditionModel that build exactly this network."""
        for depths in (*self.down_depths, *self.up_depths):
            if len(set(depths)) != 1:
                raise ValueError(f"{self.name}: residual blocks of one stage differ in depth: {depths}")
        if [d[0] for d in self.up_depths] != [d[0] for d in reversed(self.down_depths)]:
            raise ValueError(f"{self.name}: the decoder's depths do not mirror the encoder's")
        attends = [d[0] > 0 for d in self.down_depths]
        return {
            "sample_size": 128 if self.channels[0] == 320 else 32,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            "mid_block_type": None if self.mid_depth is None else "UNetMidBlock2DCrossAttn",
            "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            "block_out_channels": self.channels,
            "layers_per_block": len(self.down_depths[0]),
            # diffusers wants a depth for stages without attention too, and never reads it: SDXL's own file says 1
            "transformer_layers_per_block": tuple(d[0] or 1 for d in self.down_depths),
            "attention_head_dim": self.heads,  # diffusers' name for the number of heads
            "cross_attention_dim": self.cross_attention_dim,
            "use_linear_projection": True,
            "norm_num_groups": self.norm_num_groups,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": self.time_id_dim,
            "projection_class_embeddings_input_dim": self.pooled_dim + 6 * self.time_id_dim,
        }


SDXL = UNetSpec(
    name="sdxl",
    channels=(320, 640, 1280),
    heads=(5, 10, 20),
    down_depths=((0, 0), (2, 2), (10, 10)),
    mid_depth=10,
    up_depths=((10, 10, 10), (2, 2, 2), (0, 0, 0)),
    cross_attention_dim=2048,
    pooled_dim=1280,
    time_id_dim=256,
    norm_num_groups=32,
)


def koala(name: str, teacher: UNetSpec, *, depth: int, mid: bool) -> UNetSpec:
    """KOALA's cut of a teacher: one pair per encoder stage, two per decoder stage, `depth` blocks (section 3.1.1)."""
    return replace(
        teacher,
        name=name,
        down_depths=((0,), (2,), (depth,)),
        mid_depth=depth if mid else None,
        up_depths=((depth,) * 2, (2,) * 2, (0,) * 2),
    )


KOALA_1B = koala("koala-1b", SDXL, depth=6, mid=True)
KOALA_700M = koala("koala-700m", SDXL, depth=5, mid=False)

# SDXL with every width divided by about 20 and its topology untouched. Four groups: with one group per channel
# DW-1 would normalise every channel alone and lose the picture's mean colour.
TINY_SDXL = replace(
    SDXL,
    name="tiny-sdxl",
    channels=(16, 32, 64),
    heads=(1, 2, 4),
    cross_attention_dim=96,
    pooled_dim=64,
    time_id_dim=16,
    norm_num_groups=4,
)
TINY_KOALA_1B = koala("tiny-koala-1b", TINY_SDXL, depth=6, mid=True)
TINY_KOALA_700M = koala("tiny-koala-700m", TINY_SDXL, depth=5, mid=False)

SPECS = {s.name: s for s in (SDXL, KOALA_1B, KOALA_700M, TINY_SDXL, TINY_KOALA_1B, TINY_KOALA_700M)}
