"""Give the VAE's latents zero mean, unit variance and no correlation, by maps folded into its two 1x1 convolutions.

    python recipes/embedded/whiten.py --vae WORK/vae --out WORK/vae-white

From here on the encoder is fixed: `vae.py --freeze-encoder` may go on sharpening the decoder while a U-Net learns.
"""

import argparse
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from vae import batch

from koala.files.outputs import new_folder


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=192)
    args = parser.parse_args()

    vae = AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32)
    pictures, _ = batch(random.Random(99), args.count, 256)
    latents = torch.cat([vae.encode(p).latent_dist.mode() for p in pictures.split(8)])
    flat = latents.permute(1, 0, 2, 3).flatten(1).double()  # (4, values)
    mean, (values, vectors) = flat.mean(1), torch.linalg.eigh(torch.cov(flat))
    white = vectors @ torch.diag(values.rsqrt()) @ vectors.T  # symmetric: the map that changes the latents least
    back = torch.linalg.inv(white)

    quant, post = vae.quant_conv, vae.post_quant_conv
    weight, bias = quant.weight[:4, :, 0, 0].double(), quant.bias[:4].double()
    quant.weight[:4, :, 0, 0] = (white @ weight).float()
    quant.bias[:4] = (white @ (bias - mean)).float()
    quant.weight[4:] = 0  # the posterior is a point for all that follows: a constant, very small variance
    quant.bias[4:] = -12
    post.bias += (post.weight[:, :, 0, 0].double() @ mean).float()
    post.weight[:, :, 0, 0] = (post.weight[:, :, 0, 0].double() @ back).float()
    vae.register_to_config(scaling_factor=1.0)
    with new_folder(args.out, 0, replace=True) as folder:
        vae.save_pretrained(folder)
    again = torch.cat([vae.encode(p).latent_dist.mode() for p in pictures[:32].split(8)])
    change = (vae.decode(again[:4]).sample - AutoencoderKL.from_pretrained(args.vae).decode(latents[:4]).sample).abs()
    print(f"eigenvalues before {values.tolist()}; after: mean {again.mean((0, 2, 3)).tolist()}")
    print(f"std {again.std((0, 2, 3)).tolist()}; largest change of a decoded value {change.max():.2e}")


if __name__ == "__main__":
    main()
