"""The files that the other recipes of this folder give to other programs. Runs in this project's environment:

    python -m recipes.clients.files --out work/clients

Full-size checkpoints are names and shapes over zeros that take no room on the disk: enough for what a program detects
and loads. Numbers are compared on a small random U-Net of KOALA-700M's depths, with what diffusers' gives for some
inputs: Forge knows no norm of fewer than 32 groups, so the embedded models' cannot be built there.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from koala.convert.to_single_file import identity_middle, write_single_file
from koala.lora.moving import remap_file
from koala.models.single_file.part_names import VAE_PREFIX, text_2_name, text_name, vae_names
from koala.unet.layer_map import renamed
from koala.unet.original_layout import LORA_NAMES, PREFIX, original_names
from koala.unet.parts import SDXL_PARTS
from koala.unet.specs import KOALA_1B, KOALA_700M, SDXL, TINY_KOALA_700M, UNetSpec

SPECS = {"sdxl": SDXL, "koala-700m": KOALA_700M, "koala-1b": KOALA_1B}
TINY = "tiny-koala-700m"
SMALL = replace(TINY_KOALA_700M, name="small", channels=(32, 64, 128), norm_num_groups=32)


def shapes_of(spec: UNetSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of a whole single file of SDXL's widths, by its original name."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**spec.config()).state_dict()
        text = CLIPTextModel(CLIPTextConfig(**SDXL_PARTS.text.config())).state_dict()
        text_2 = CLIPTextModelWithProjection(CLIPTextConfig(**SDXL_PARTS.text_2.config())).state_dict()
        vae = AutoencoderKL(**SDXL_PARTS.vae.config()).state_dict()
    table, vae_table = original_names(spec), vae_names(4, 2)
    shapes = {PREFIX + renamed(key, table): tuple(t.shape) for key, t in unet.items()}
    shapes |= {key: tensor.shape for key, tensor in identity_middle(spec).items()}
    shapes |= {name: tuple(t.shape) for key, t in text.items() if (name := text_name(f"text_model.{key}"))}
    for key, tensor in text_2.items():
        name = text_2_name(key) or text_2_name(f"text_model.{key}")
        if name:
            three = 3 if ".in_proj_" in name else 1  # q, k and v are one tensor
            shapes[name] = (three * tensor.shape[0], *tensor.shape[1:])
    for key, tensor in vae.items():
        shape = tuple(tensor.shape)
        is_attention = ".attentions." in key and len(shape) == 2
        shapes[VAE_PREFIX + renamed(key, vae_table)] = (*shape, 1, 1) if is_attention else shape
    return shapes


def write_zeros(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of zeros in fp16, as a hole on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": (end, end + size)}
        end += size
    encoded = json.dumps(header).encode()
    with open(file, "wb") as out:
        out.write(len(encoded).to_bytes(8, "little") + encoded)
        out.truncate(8 + len(encoded) + end)


def write_loras(folder: Path) -> None:
    """A LoRA of all of SDXL's attention layers, moved onto KOALA-700M in each style of names."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL.config())
    layers = {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear) and ".attentions." in name
    }
    weights = {}
    for name, module in layers.items():
        weights[f"unet.{name}.lora_A.weight"] = torch.ones(1, module.in_features)
        weights[f"unet.{name}.lora_B.weight"] = torch.ones(module.out_features, 1)
    save_file(weights, folder / "lora.safetensors")
    for names in LORA_NAMES:
        remap_file(folder / "lora.safetensors", "koala-700m", folder / f"lora-{names}.safetensors", names=names)


@torch.inference_mode()
def write_small(folder: Path) -> None:
    """A small U-Net in the original layout, with inputs of it and what diffusers' gives for them in fp32."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SMALL.config()).eval()
    table = original_names(SMALL)
    weights = {PREFIX + renamed(key, table): tensor for key, tensor in unet.state_dict().items()}
    for name, tensor in identity_middle(SMALL).items():
        weights[name] = torch.full(tensor.shape, tensor.value)
    save_file(weights, folder / "small.safetensors")
    sample, context = torch.randn(2, 4, 32, 32), torch.randn(2, 77, SMALL.cross_attention_dim)
    pooled, sizes = torch.randn(2, SMALL.pooled_dim), torch.tensor([[256.0, 256, 0, 0, 256, 256]] * 2)
    out = unet(sample, 500, context, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}).sample
    numbers = unet.add_time_proj(sizes.flatten()).reshape(2, -1)
    given = {"sample": sample, "timestep": torch.tensor([500.0, 500.0]), "context": context, "out": out}
    save_file(given | {"vector": torch.cat([pooled, numbers], dim=1)}, folder / "small-call.safetensors")


def main() -> None:
    """Write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, spec in SPECS.items():
        write_zeros(args.out / f"{name}.safetensors", shapes_of(spec))
    write_loras(args.out)
    write_small(args.out)
    write_single_file(TINY, args.out / f"{TINY}.safetensors")
    print(f"{args.out}: {', '.join(sorted(file.name for file in args.out.iterdir()))}")


if __name__ == "__main__":
    main()
