"""Module names of SDXL's original layout ("input_blocks.4.1"), as single files and kohya's LoRAs use them.

The original U-Net numbers its encoder and its decoder through: a residual block and the transformer after it share
one number, and so do a stage's downsampler and its own, an upsampler and the stage's last residual block.
"""

from koala.unet.specs import STAGES, UNetSpec

PREFIX = "model.diffusion_model."  # of the U-Net's keys in a file that holds the whole model

LORA_NAMES = ("kohya", "peft")  # styles of a LoRA file's names; of a KOALA's layers ComfyUI reads all in the first only

_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def original_names(spec: UNetSpec) -> dict[str, str]:
    """diffusers' module path -> the original one, for `koala.unet.layer_map.renamed`."""
    names = dict(_ENDS)

    def resnet(name: str, original_name: str) -> None:
        names.update({f"{name}.{part}": f"{original_name}.{original}" for part, original in _RESNET.items()})

    number = {"input_blocks": 1, "output_blocks": 0}
    for stage, depths in spec.depths().items():
        block = STAGES[stage]
        if stage == "MID":
            resnet(f"{block}.resnets.0", "middle_block.0")
            if spec.mid_depth:
                names[f"{block}.attentions.0"] = "middle_block.1"
                resnet(f"{block}.resnets.1", "middle_block.2")
            continue
        side = "input_blocks" if stage.startswith("DW") else "output_blocks"
        for layer, depth in enumerate(depths):
            resnet(f"{block}.resnets.{layer}", f"{side}.{number[side]}.0")
            if depth:
                names[f"{block}.attentions.{layer}"] = f"{side}.{number[side]}.1"
            number[side] += 1
        if stage in ("DW-1", "DW-2"):
            names[f"{block}.downsamplers.0.conv"] = f"{side}.{number[side]}.0.op"
            number[side] += 1
        elif stage in ("UP-1", "UP-2"):
            names[f"{block}.upsamplers.0.conv"] = f"{side}.{number[side] - 1}.{2 if depths[-1] else 1}.conv"
    return names
