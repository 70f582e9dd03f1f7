"""Train the embedded VAE: an SDXL-shaped AutoencoderKL, eight-fold, four latent channels, for the shapes world.

    python recipes/embedded/vae.py --out WORK/vae --steps 1300 --crop 64 --batch-size 16 --learning-rate 2e-3

`--init` starts from weights with a fresh optimizer; the weights of the best validation score are kept. Whole
pictures (`--crop 256`) come last: GroupNorm's statistics of a crop are not those of a picture. At the very end the
decoder alone also learns what the U-Nets' latents should have shown (`--freeze-encoder --redrawn FOLDER ...`, folders
of redraw.py). The commands that made the shipped weights, with times and scores, stand in recipes/embedded/README.md.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from latents import LatentSet

from koala.files.outputs import new_folder
from koala.shapes.render import object_mask, render_array
from koala.shapes.scene import Scene, random_scene

CONFIG = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(16, 32, 64, 96),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=2,
    sample_size=256,
    force_upcast=False,
)
OBJECT_WEIGHT = 3.0
KL_WEIGHT = 1e-4  # of the mean over latent values
CROPS_PER_SCENE = 2
REDRAWN = 2 / 3  # share of batches, where there are redrawn latents
HELD = 24  # pictures of a validation, of each kind


@torch.no_grad()
def colour_path(vae: AutoencoderKL) -> None:
    """Start as a blur instead of as noise: latents hold each 8x8 cell's mean colour, the decoder spreads it out.

    Every residual branch starts at zero. Channels 0-2 carry +RGB and 3-5 carry -RGB, since silu(v) - silu(-v) = v
    passes the last nonlinearity; channels 6 and 7 hold constants, against which GroupNorm keeps the absolute
    colour. What remains to be learned is sharpness, and the latents stay as smooth as a small picture.
    """
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.zero_()
            module.conv2.bias.zero_()
            if module.conv_shortcut is not None:
                torch.nn.init.dirac_(module.conv_shortcut.weight)
                module.conv_shortcut.bias.zero_()
        elif isinstance(module, Attention):
            module.to_out[0].weight.zero_()
            module.to_out[0].bias.zero_()
        elif isinstance(module, Downsample2D | Upsample2D):
            down = isinstance(module, Downsample2D)  # mean of 2x2, and a tent after nearest neighbours
            line = torch.tensor([1.0, 1.0, 0.0] if down else [1.0, 2.0, 1.0])
            identity = torch.eye(module.conv.out_channels)[:, :, None, None]
            module.conv.weight.mul_(0.1).add_(identity * (line[:, None] * line) / line.sum() ** 2)
            module.conv.bias.zero_()
    for part in (vae.encoder, vae.decoder):
        part.conv_in.weight[:8] = 0
        part.conv_in.bias[:8] = 0
        part.conv_out.weight.mul_(0.1)
        part.conv_out.bias.zero_()
        for k in range(3):
            part.conv_in.weight[k, k, 1, 1], part.conv_in.weight[k + 3, k, 1, 1] = 1, -1
            part.conv_out.weight[k] = 0
            part.conv_out.weight[k, k, 1, 1], part.conv_out.weight[k, k + 3, 1, 1] = 1.5, -1.5
        part.conv_in.bias[6], part.conv_in.bias[7] = 3, -3
    vae.encoder.conv_out.weight[4:] = 0
    vae.encoder.conv_out.bias[4:] = -8  # log variance
    torch.nn.init.dirac_(vae.quant_conv.weight)
    torch.nn.init.dirac_(vae.post_quant_conv.weight)
    vae.quant_conv.bias.zero_()
    vae.post_quant_conv.bias.zero_()


def batch(rng: random.Random, size: int, crop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (B, 3, crop, crop) in -1..1 and object masks (B, 1, crop, crop)."""
    pictures, masks = [], []
    while len(pictures) < size:
        scene = random_scene(rng, rng.randint(1, 3))
        picture, mask = render_array(scene), object_mask(scene)
        for _ in range(1 if crop == 256 else CROPS_PER_SCENE):
            o = rng.choice(scene.objects)  # most crops hold (part of) an object
            x = min(max(o.x - rng.randint(0, crop), 0), scene.width - crop)
            y = min(max(o.y - rng.randint(0, crop), 0), scene.height - crop)
            pictures.append(picture[y : y + crop, x : x + crop])
            masks.append(mask[y : y + crop, x : x + crop])
    x = torch.from_numpy(np.stack(pictures[:size])).permute(0, 3, 1, 2) * 2 - 1
    return x, torch.from_numpy(np.stack(masks[:size]))[:, None]


def shown(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole pictures (B, 3, H, W) in -1..1 of these scenes, and their object masks (B, 1, H, W)."""
    pictures, masks = [render_array(s) for s in scenes], [object_mask(s) for s in scenes]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2 - 1, torch.from_numpy(np.stack(masks))[:, None]


class Redrawn:
    """Latents as U-Nets leave them, of several folders, with the scenes that they should show."""

    def __init__(self, folders: list[Path], scaling_factor: float):
        self.sets, self.scaling_factor = [LatentSet(f) for f in folders], scaling_factor
        for each in self.sets:
            if len(each.scenes) <= HELD:
                raise SystemExit(f"{each.folder} holds {len(each.scenes)} pictures; redraw more than {HELD}")

    def batch(self, rng: random.Random, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents for the decoder, pictures and object masks; never of those that are held back for validation."""
        chosen = rng.choice(self.sets)
        return self._rows(chosen, [rng.randrange(len(chosen.scenes) - HELD) for _ in range(size)])

    def held(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same of the last ones, from every folder in turn."""
        share = -(-HELD // len(self.sets))
        parts = [self._rows(s, list(range(len(s.scenes) - share, len(s.scenes)))) for s in self.sets]
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))

    def _rows(self, chosen: LatentSet, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return chosen.latents[rows].float() / self.scaling_factor, *shown([chosen.scenes[i] for i in rows])


@torch.no_grad()
def validate(vae: AutoencoderKL, redrawn: Redrawn | None = None) -> dict[str, float]:
    """PSNR in dB over whole pictures and inside objects, after the round trip through the latent mode.

    With redrawn latents the same of what the decoder makes of them.
    """
    x, mask = batch(random.Random(12345), HELD, 256)
    figures = fidelity(vae, torch.cat([vae.encode(p).latent_dist.mode() for p in x.split(4)]), x, mask)
    if redrawn:
        figures |= {f"{name}_redrawn": value for name, value in fidelity(vae, *redrawn.held()).items()}
    return figures


def fidelity(vae: AutoencoderKL, latents: torch.Tensor, x: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """PSNR in dB of decoded latents, over whole pictures and inside objects."""
    y = torch.cat([vae.decode(z).sample for z in latents.split(4)]).clamp(-1, 1)
    squared = ((x - y) / 2).square().mean(1, keepdim=True)
    return {
        "psnr": float((-10 * squared.mean((1, 2, 3)).log10()).mean()),
        "psnr_objects": float(-10 * squared[mask > 0.99].mean().log10()),
    }


def quality(score: dict[str, float]) -> float:
    """What decides which weights are kept: the PSNR, and that of redrawn latents alike."""
    return score["psnr"] + score.get("psnr_redrawn", 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--crop", type=int, choices=(64, 128, 256), required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--freeze-encoder", action="store_true", help="sharpen the decoder of latents already in use")
    parser.add_argument("--redrawn", type=Path, nargs="+", help="folders of redraw.py; only the decoder learns of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate-every", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.redrawn and not (args.freeze_encoder and args.crop == 256):
        parser.error("--redrawn needs --freeze-encoder and --crop 256: redrawn latents are of whole pictures")

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    if args.init:
        vae = AutoencoderKL.from_pretrained(args.init, torch_dtype=torch.float32)
    else:
        vae = AutoencoderKL(**CONFIG)
        colour_path(vae)
    vae = vae.to(memory_format=torch.channels_last)
    redrawn = Redrawn(args.redrawn, vae.config.scaling_factor) if args.redrawn else None
    score = validate(vae, redrawn)
    best = quality(score)
    with new_folder(args.out, 0, replace=True) as folder:
        vae.save_pretrained(folder)
    print(json.dumps({"step": 0, **score}), flush=True)
    if args.freeze_encoder:
        for part in (vae.encoder, vae.quant_conv):
            part.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [p for p in vae.parameters() if p.requires_grad],
        lr=args.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=0.0,
    )
    warmup = max(1, min(100, args.steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, 0.02 + 0.98 * (1 + math.cos(math.pi * s / args.steps)) / 2)
    )
    start = time.time()
    for step in range(1, args.steps + 1):
        if redrawn and rng.random() < REDRAWN:
            z, x, mask = redrawn.batch(rng, args.batch_size)
            kl, squares = torch.zeros(()), 0.0  # where an edge may be here or there, the mean of both is a blur
        else:
            x, mask = batch(rng, args.batch_size, args.crop)
            posterior = vae.encode(x.to(memory_format=torch.channels_last)).latent_dist
            z = posterior.sample()
            kl, squares = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean(), 5.0
        error = vae.decode(z.to(memory_format=torch.channels_last)).sample - x
        weight = 1 + (OBJECT_WEIGHT - 1) * mask
        loss = (weight * (error.abs() + squares * error.square())).mean() + KL_WEIGHT * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % args.validate_every == 0 or step == args.steps:
            score = validate(vae, redrawn)
            better = quality(score) > best
            if better:
                best = quality(score)
                with new_folder(args.out, 0, replace=True) as folder:
                    vae.save_pretrained(folder)
            print(
                json.dumps(
                    {
                        "step": step,
                        "loss": loss.item(),
                        "kl": kl.item(),
                        **score,
                        "kept": better,
                        "s": round(time.time() - start),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
