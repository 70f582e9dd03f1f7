"""UNetSpec: the topology of an SDXL-family U-Net as data, and the paper's stage names for diffusers' modules."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from koala.errors import UserError

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
_SKIPS = (("DW-1", "UP-3"), ("DW-2", "UP-2"), ("DW-3", "UP-1"))


@dataclass(frozen=True, kw_only=True)
class UNetSpec:
    """An SDXL-family U-Net. Depths count transformer blocks: one entry per residual block, 0 for no attention."""

    name: str
    channels: tuple[int, int, int]  # of DW-1, DW-2, DW-3
    heads: tuple[int, int, int]
    down_depths: tuple[tuple[int, ...], ...]  # DW-1, DW-2, DW-3
    mid_depth: int | None  # None: the stage is absent; 0: one residual block alone
    up_depths: tuple[tuple[int, ...], ...]  # UP-1, UP-2, UP-3
    cross_attention_dim: int
    pooled_dim: int
    time_id_dim: int  # sinusoid width of each of the six size and crop numbers
    norm_num_groups: int

    def __post_init__(self) -> None:
        for stage, depths in self.depths().items():
            if not depths or min(depths) < 0:
                raise UserError(f"{self.name}: {stage} needs one depth of 0 or more per residual block")
            if min(depths) == 0 < max(depths):
                raise UserError(f"{self.name}: the blocks of {stage} all have attention or none has, not {depths}")
        if self.mid_depth and self.down_depths[-1][0] not in (0, self.mid_depth):
            raise UserError(
                f"{self.name}: MID is as deep as DW-3's first block ({self.down_depths[-1][0]}), 0 or absent; "
                f"diffusers has no setting for {self.mid_depth}"
            )
        for down, up, (lower, upper) in zip(self.down_depths, self.up_depths[::-1], _SKIPS, strict=True):
            if len(up) != len(down) + 1:
                raise UserError(
                    f"{self.name}: {upper} needs {len(down) + 1} residual blocks, one more than {lower}, for its skips"
                )

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

    @property
    def notation(self) -> str:
        """The depths as text that `student` reads: "0,2,5/-/5+5,2+2,0+0" is KOALA-700M."""
        down, up = (",".join("+".join(map(str, d)) for d in stages) for stages in (self.down_depths, self.up_depths))
        return f"{down}/{'-' if self.mid_depth is None else self.mid_depth}/{up}"

    def config(self) -> dict:
        """Keyword arguments of diffusers.UNet2DConditionModel that build exactly this network."""
        layers = tuple(len(d) for d in self.down_depths)
        even = all(len(set(d)) == 1 for d in (*self.down_depths, *self.up_depths))
        # diffusers wants a depth for stages without attention too: it takes MID's from DW-3's and ignores the others
        mirrored = even and [d[0] for d in self.up_depths] == [d[0] for d in reversed(self.down_depths)]
        settings = {
            "sample_size": 128 if self.channels[0] == 320 else 32,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": tuple("CrossAttnDownBlock2D" if d[0] else "DownBlock2D" for d in self.down_depths),
            "mid_block_type": {None: None, 0: "UNetMidBlock2D"}.get(self.mid_depth, "UNetMidBlock2DCrossAttn"),
            "up_block_types": tuple("CrossAttnUpBlock2D" if d[0] else "UpBlock2D" for d in self.up_depths),
            "block_out_channels": self.channels,
            "layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
            "transformer_layers_per_block": tuple(
                (d[0] if mirrored else d) if d[0] else unread
                for d, unread in zip(self.down_depths, (1, 1, self.mid_depth or 1), strict=True)
            ),
            "attention_head_dim": self.heads,  # diffusers' name for the number of heads
            "cross_attention_dim": self.cross_attention_dim,
            "use_linear_projection": True,
            "norm_num_groups": self.norm_num_groups,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": self.time_id_dim,
            "projection_class_embeddings_input_dim": self.pooled_dim + 6 * self.time_id_dim,
        }
        if not mirrored:
            settings["reverse_transformer_layers_per_block"] = tuple(d if d[0] else 1 for d in self.up_depths)
        return settings


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
BK_SDXL = koala("bk-sdxl", SDXL, depth=10, mid=True)  # the baseline of KOALA's table 2: blocks removed, depth kept
SSD_1B = replace(
    SDXL,
    name="ssd-1b",
    down_depths=((0, 0), (2, 2), (4, 4)),
    mid_depth=0,
    up_depths=((4, 4, 10), (2, 1, 1), (0, 0, 0)),
)
VEGA = replace(
    SDXL,
    name="segmind-vega",
    down_depths=((0, 0), (1, 1), (2, 2)),
    mid_depth=0,
    up_depths=((2, 2, 2), (1, 1, 1), (0, 0, 0)),
)

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

SPECS = {
    s.name: s for s in (SDXL, KOALA_1B, KOALA_700M, BK_SDXL, SSD_1B, VEGA, TINY_SDXL, TINY_KOALA_1B, TINY_KOALA_700M)
}


def student(text: str, teacher: UNetSpec) -> UNetSpec:
    """A spec of the teacher's widths: a name ("koala-700m") or depths down/mid/up ("0,2,5/-/5+5,2+2,0+0").

    In the notation a comma separates stages, + residual blocks; MID is one depth, 0 for no attention, - for no MID.
    """
    known = SPECS.get(text)
    if known:
        down, mid, up = known.down_depths, known.mid_depth, known.up_depths
    else:
        try:
            first, middle, last = text.split("/")
            down, up = (tuple(tuple(map(int, s.split("+"))) for s in part.split(",")) for part in (first, last))
            mid = None if middle == "-" else int(middle)
        except ValueError:
            down = up = ()
        if len(down) != 3 or len(up) != 3:
            names = ", ".join(n for n in SPECS if not n.startswith("tiny"))
            raise UserError(
                f"{text!r} is not a spec; give a name ({names}) or the depths of DW-1,DW-2,DW-3/MID/UP-1,UP-2,UP-3, "
                f"for example {KOALA_700M.notation} for koala-700m"
            )
    spec = replace(teacher, name=text, down_depths=down, mid_depth=mid, up_depths=up)
    return next((s for s in SPECS.values() if replace(s, name=text) == spec), spec)
