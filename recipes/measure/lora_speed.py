"""How long a LoRA of every attention and feed-forward layer of SDXL takes to put into the weights, on this machine.

    python -m recipes.measure.lora_speed --out docs/measurements/lora-speed.json

The U-Net has SDXL's full width in float16 with random weights; the LoRA adapts 722 layers. Best of three.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from koala.evaluate.reports import circumstances
from koala.files.outputs import new_file
from koala.models.measured import RANDOM
from koala.sampling.adapters import changed
from koala.unet.specs import SDXL

RANK = 64
LIMIT = 10.0  # s
TAKES = 3


def full_size() -> torch.nn.Module:
    """SDXL's U-Net in float16; its weights are one constant, which takes no time to draw."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL.config()).half()
    unet = unet.to_empty(device="cpu")
    for parameter in unet.parameters():
        parameter.data.fill_(0.02)
    return unet.requires_grad_(False)


def lora(unet: torch.nn.Module, rank: int = RANK) -> dict[str, dict[str, torch.Tensor]]:
    """Factors in float16 for every linear layer of the transformers."""
    generator, layers = torch.Generator().manual_seed(0), {}
    for path, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear) and ("transformer_blocks" in path or "proj_" in path):
            down = torch.randn(rank, module.in_features, generator=generator)
            up = torch.randn(module.out_features, rank, generator=generator)
            layers[path] = {"down": down.half(), "up": up.half(), "alpha": torch.tensor(rank / 2)}
    return layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    args = parser.parse_args()
    unet, took = full_size(), []
    layers = lora(unet)
    for _ in range(TAKES):
        begun = time.perf_counter()
        for _ in changed(unet, layers, 0.8):
            pass
        took.append(time.perf_counter() - begun)
    report = {
        "layers": len(layers),
        "rank": RANK,
        "weights_adapted": sum(unet.get_parameter(f"{path}.weight").numel() for path in layers),
        "seconds": round(min(took), 2),
        "all_seconds": [round(t, 2) for t in took],
        "threads": torch.get_num_threads(),
    }
    report |= circumstances(sys.argv[1:], torch.device("cpu"), program="recipes.measure.lora_speed", weights=RANDOM)
    with new_file(args.out) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{len(layers)} layers of rank {RANK}: {min(took):.1f} s")
    if min(took) > LIMIT:
        sys.exit(f"that is more than {LIMIT:g} s")


if __name__ == "__main__":
    main()
