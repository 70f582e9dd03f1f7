"""Names of SDXL's text encoders and VAE in the original layout; the U-Net's are in `koala.unet.original_layout`.

The first text encoder keeps transformers' names, the second has OpenCLIP's, where q, k and v are one tensor.
"""

import re

TEXT_PREFIX, TEXT_2_PREFIX = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
VAE_PREFIX = "first_stage_model."


def text_name(key: str) -> str | None:
    """transformers' name of a tensor of CLIP-L -> its name in the file; None where the file has no place for it."""
    name = key.removeprefix("text_model.")
    return TEXT_PREFIX + name if name.startswith(("embeddings.", "encoder.", "final_layer_norm.")) else None


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")  # in the order in which OpenCLIP stacks them
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def text_2_name(key: str) -> str | None:
    """transformers' name of a CLIP text encoder's tensor -> OpenCLIP's; q, k and v share one."""
    name = key.removeprefix("text_model.")
    if layer := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
        number, module, kind = layer.groups()
        if module in _QKV:
            return f"{TEXT_2_PREFIX}transformer.resblocks.{number}.attn.in_proj_{kind}"
        original = _OPEN_CLIP_LAYER.get(module)
        return original and f"{TEXT_2_PREFIX}transformer.resblocks.{number}.{original}.{kind}"
    original = _OPEN_CLIP.get(name)
    return original and TEXT_2_PREFIX + original


_FROM_OPEN_CLIP = {its: own for own, its in _OPEN_CLIP.items()} | {"text_projection.weight": "text_projection.weight"}
_LAYER_FROM_OPEN_CLIP = {its: own for own, its in _OPEN_CLIP_LAYER.items()}


def text_2_names(key: str) -> tuple[str, ...]:
    """A tensor's name in the file -> transformers' name, three of them for q, k and v in one; none for others.

    Some programs write the projection as transformers has it, as text_projection.weight.
    """
    name = key.removeprefix(TEXT_2_PREFIX)
    if layer := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
        number, kind = layer.groups()
        return tuple(f"text_model.encoder.layers.{number}.{module}.{kind}" for module in _QKV)
    if layer := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)", name):
        number, module, kind = layer.groups()
        own = _LAYER_FROM_OPEN_CLIP.get(module)
        return (f"text_model.encoder.layers.{number}.{own}.{kind}",) if own else ()
    own = _FROM_OPEN_CLIP.get(name)
    return () if own is None else (own if own.startswith("text_projection") else f"text_model.{own}",)


_VAE_ENDS = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OLD_VAE_ATTENTION = {"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}  # of diffusers before 0.18


def vae_names(levels: int, layers: int, *, old: bool = True) -> dict[str, str]:
    """diffusers' module path of an AutoencoderKL -> the original one, for `koala.unet.layer_map.renamed`.

    With `old` also the paths of diffusers before 0.18; without it no two paths lead to one.
    """
    attention = _VAE_ATTENTION | (_OLD_VAE_ATTENTION if old else {})
    names = {name: name for name in ("quant_conv", "post_quant_conv")}

    def resnet(module: str, original: str) -> None:
        names.update({module: original, f"{module}.conv_shortcut": f"{original}.nin_shortcut"})

    for side in ("encoder", "decoder"):
        names |= {f"{side}.{module}": f"{side}.{original}" for module, original in _VAE_ENDS.items()}
        names |= {f"{side}.mid_block.attentions.0.{m}": f"{side}.mid.attn_1.{o}" for m, o in attention.items()}
        for block in (0, 1):
            resnet(f"{side}.mid_block.resnets.{block}", f"{side}.mid.block_{block + 1}")
    for level in range(levels):
        back = levels - 1 - level  # the original numbers a decoder's levels from the picture inwards
        names[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
        names[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"decoder.up.{back}.upsample.conv"
        for block in range(layers):
            resnet(f"encoder.down_blocks.{level}.resnets.{block}", f"encoder.down.{level}.block.{block}")
        for block in range(layers + 1):
            resnet(f"decoder.up_blocks.{level}.resnets.{block}", f"decoder.up.{back}.block.{block}")
    return names
