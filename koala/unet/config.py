"""A diffusers U-Net's config.json as a spec: every field that decides the network is checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from koala.errors import UserError
from koala.files.fields import Fields, is_whole, shown
from koala.request import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE
from koala.unet.specs import SPECS, UNetSpec

# What every U-Net of SDXL's family has, whether its config.json says so or leaves it to diffusers' default.
_ALWAYS = {
    "addition_embed_type": ("text_time",),
    "use_linear_projection": (True,),
    "in_channels": (4,),
    "out_channels": (4,),
}
_OTHERWISE_SO = {
    "act_fn": ("silu",),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dropout": (0.0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "norm_eps": (1e-5,),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "upcast_attention": (None, False, True),
}
_KINDS = {  # what another value means
    ("in_channels", 8): "one that edits a picture (InstructPix2Pix)",
    ("in_channels", 9): "one for inpainting",
    "encoder_hid_dim": "one with text of another encoder (Kolors, DeepFloyd)",
    "encoder_hid_dim_type": "one with text of another encoder (Kolors, DeepFloyd)",
    "addition_embed_type": "one that does not take the picture's size, as Stable Diffusion 1 and 2",
}
_REFINER = [384, 768, 1536, 1536]
_DOWN, _UP = (("CrossAttnDownBlock2D", "DownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D"))
_MIDDLES = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")
# The largest values that a config may have: far above SDXL's, far below what would exhaust memory.
_WIDEST, _MOST_BLOCKS, _DEEPEST = 16_384, 16, 64
_NATIVE = 128  # latents per side where a config lacks sample_size


def native_size(config: Mapping[str, object], file: str) -> tuple[int, int]:
    """(width, height) in px of a U-Net's own pictures; its sample_size is one side, or [height, width]."""
    side = config.get("sample_size")
    side = _NATIVE if side is None else side
    sides = tuple(side) if isinstance(side, list | tuple) else (side, side)
    least, most = MIN_SIDE // 8, MAX_SIDE // 8
    if len(sides) != 2 or not all(is_whole(s, least, most) and 8 * s % SIDE_MULTIPLE == 0 for s in sides):
        raise UserError(
            f"{file} is damaged: its sample_size is {shown(side)}, not one side or [height, width] in latents, "
            f"multiples of {SIDE_MULTIPLE // 8} from {least} to {most}; copy the file again"
        )
    return 8 * sides[1], 8 * sides[0]


def from_config(config: Mapping[str, object], name: str, file: str = "") -> UNetSpec:
    """The spec of a diffusers U-Net's config.json. `file` is what an error names, else `name`.

    UserError for a network that is not of SDXL's family, and for a damaged config.
    """
    own = Fields(values=config, file=file or name)
    for key, allowed in (_ALWAYS | _OTHERWISE_SO).items():
        value = config.get(key, allowed[0] if key in _OTHERWISE_SO else None)
        if not any(value == one and isinstance(value, str) == isinstance(one, str) for one in allowed):
            what = _KINDS.get((key, value) if isinstance(value, int) else key, "another kind of network")
            raise UserError(
                f"{own.file} is not a U-Net of SDXL's family: its {key} is {shown(value)}, not {allowed[0]!r}; it is "
                f"{what}, so take a text-to-image model of SDXL's family"
            )
    native_size(config, own.file)
    if config.get("time_cond_proj_dim") is not None:  # a network that takes the guidance as an input
        own.whole("time_cond_proj_dim", 1, _WIDEST)
    if config.get("block_out_channels") == _REFINER:
        raise UserError(
            f"{own.file} is the U-Net of SDXL's refiner, which only finishes a picture; take the base model, sdxl-base "
            "for example"
        )
    down_types = own.each("down_block_types", _DOWN.__contains__, " and ".join(_DOWN))
    up_types = own.each("up_block_types", _UP.__contains__, " and ".join(_UP))
    for key, types in (("encoder", down_types), ("decoder", up_types)):
        if len(types) != 3:
            raise UserError(
                f"{own.file} is not a U-Net of SDXL's family: it has {len(types)} {key} stages, not 3; take a model of "
                "SDXL's family"
            )

    def whole(value: object) -> bool:
        return is_whole(value, 1, _WIDEST)

    blocks = _each_stage(own, "layers_per_block", lambda v: is_whole(v, 1, _MOST_BLOCKS))
    depths = _each_stage(own, "transformer_layers_per_block", _is_depth)
    back = config.get("reverse_transformer_layers_per_block")
    back = _each_stage(own, "reverse_transformer_layers_per_block", _is_depth) if back else depths[::-1]
    mid_type = config.get("mid_block_type", _MIDDLES[0])
    if mid_type is not None:
        own.text("mid_block_type", _MIDDLES[0], of=_MIDDLES)
    mid = {None: None, "UNetMidBlock2D": 0}.get(mid_type, depths[-1])
    channels = own.each("block_out_channels", whole, "three whole numbers")
    heads = _each_stage(own, "attention_head_dim", whole)
    groups = own.whole("norm_num_groups", 1, _WIDEST)
    if len(channels) != 3 or any(c % groups for c in channels):
        raise own.wrong("block_out_channels", f"three multiples of norm_num_groups, {groups}")
    if any(c % h for c, h in zip(channels, heads, strict=True)):
        raise own.wrong("attention_head_dim", f"numbers of heads that divide {channels}")
    tid = own.whole("addition_time_embed_dim", 2, _WIDEST)
    spec = UNetSpec(
        name=name,
        channels=channels,
        heads=heads,
        down_depths=_depths(own, "transformer_layers_per_block", down_types, depths, blocks),
        mid_depth=mid[0] if isinstance(mid, list | tuple) else mid,
        up_depths=_depths(own, "up_block_types", up_types, back, [b + 1 for b in blocks[::-1]]),
        cross_attention_dim=own.whole("cross_attention_dim", 1, _WIDEST),
        pooled_dim=own.whole("projection_class_embeddings_input_dim", 6 * tid + 1, 8 * _WIDEST) - 6 * tid,
        time_id_dim=tid,
        norm_num_groups=groups,
    )
    return next((s for s in SPECS.values() if replace(s, name=name) == spec), spec)


def _is_depth(value: object) -> bool:
    """Whether a value is a depth, or a list of one per residual block; some configs write 0 for no attention."""
    depths = value if isinstance(value, list | tuple) else [value]
    return 0 < len(depths) <= _MOST_BLOCKS and all(is_whole(d, 0, _DEEPEST) for d in depths)


def _each_stage(own: Fields, key: str, right: Callable[[object], bool]) -> tuple:
    """A field that is one value for all three stages, or a list of three."""
    value = own.values.get(key)
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    if len(values) != 3 or not all(map(right, values)):
        raise own.wrong(key, "one whole number that fits, or three")
    return values


def _depths(own: Fields, key: str, types: tuple, depths: tuple, blocks: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The depth of each residual block, stage by stage."""
    per_stage = []
    for kind, depth, count in zip(types, depths, blocks, strict=True):
        each = tuple(depth) if isinstance(depth, list | tuple) else (depth,) * count
        if not kind.startswith("CrossAttn"):
            each = (0,) * count
        elif len(each) != count or min(each) < 1:
            raise own.wrong(key, f"one depth of 1 or more for each of the {count} residual blocks of a {kind}")
        per_stage.append(each)
    return tuple(per_stage)
