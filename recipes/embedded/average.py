r"""The mean of U-Nets' weights, of one before a short stage of training and the one after it.

    python recipes/embedded/average.py --unets WORK/before WORK/after --out WORK/mean

A stage that starts over leaves the valley's floor and has little time to come back to it; the mean of both ends lies
lower than either wherever neither has a lead (Izmailov et al. 2018, Wortsman et al. 2022). validate.py shows it.
"""

import argparse
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from koala.files.outputs import new_folder


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unets", type=Path, nargs="+", required=True, help="U-Net folders of one architecture")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    unets = [UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32) for folder in args.unets]
    for weights in zip(*(unet.parameters() for unet in unets), strict=True):
        weights[0].copy_(torch.stack(weights).mean(0))
    with new_folder(args.out, 0, replace=True) as folder:
        unets[0].save_pretrained(folder)


if __name__ == "__main__":
    main()
