r"""Latents as a U-Net leaves them: stored ones, noised to one of the sampler's last steps and drawn again from there.

    python recipes/embedded/redraw.py --models koala/embedded --name tiny-sdxl --set WORK/latents/256x256-2 \
        --shards 0040 0041 --out WORK/redrawn/tiny-sdxl/256x256-2

The scene is still known, so the decoder can be taught (vae.py --sets) what such latents should have shown: an edge
where the U-Net left a ragged one. Sampler and guidance are those that the embedded models are drawn with.
"""

import argparse
import random
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from latents import LatentSet
from safetensors.torch import save_file
from unet import text_encoders

from koala.files.outputs import new_file
from koala.models.cards import CARDS
from koala.models.schedulers import build
from koala.sampling.noising import straight
from koala.shapes.captions import STYLES, caption

LAST_STEPS = 7  # of 25: from t = 279 down a shape stays what it was, and where it was
BATCH = 16


class Redrawing:
    """One U-Net's last steps, with the embedded models' sampler and guidance."""

    def __init__(self, models: Path, name: str, unet: Path | None):
        self.card, folder = CARDS[name], models / name
        self.encoders = text_encoders(folder)
        self.unet = UNet2DConditionModel.from_pretrained(unet or folder / "unet", torch_dtype=torch.float32).eval()
        self.schedule = DDPMScheduler.from_pretrained(folder / "scheduler")

    def __call__(
        self, latents: torch.Tensor, captions: list[str], steps: int, generator: torch.Generator
    ) -> torch.Tensor:
        """(B, 4, h, w) noised to the start of the last `steps` steps, and what these make of them."""
        sampler = build(self.card.scheduler, self.schedule.config)
        sampler.set_timesteps(self.card.steps)
        timesteps = sampler.timesteps[-steps:]
        noise = torch.randn(latents.shape, generator=generator)
        begin = timesteps[:1].long().expand(len(latents))
        noisy, _ = straight(latents, noise, begin, self.schedule.alphas_cumprod)
        x = noisy / self.schedule.alphas_cumprod[begin[0]].sqrt()  # Euler's samplers leave the signal as large as it is
        context, pooled = self.encoders.captions([*captions, *[""] * len(captions)])
        height, width = (8 * n for n in latents.shape[-2:])
        time_ids = torch.tensor([[height, width, 0, 0, height, width]]).repeat(len(context), 1)
        added = {"text_embeds": pooled, "time_ids": time_ids}
        for t in timesteps:
            both = sampler.scale_model_input(x, t).repeat(2, 1, 1, 1)
            prompted, unguided = self.unet(both, t, context, added_cond_kwargs=added).sample.chunk(2)
            x = sampler.step(
                unguided + self.card.guidance * (prompted - unguided), t, x, generator=generator
            ).prev_sample
        return x


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder of the embedded models")
    parser.add_argument("--name", choices=("tiny-sdxl", "tiny-koala-1b", "tiny-koala-700m"), required=True)
    parser.add_argument("--unet", type=Path, help="its U-Net's folder, where that is not packed yet")
    parser.add_argument("--set", type=Path, required=True, help="a folder of stored latents")
    parser.add_argument("--shards", nargs="+", required=True, metavar="NUMBER", help="which of its files")
    parser.add_argument("--out", type=Path, required=True, help="folder named as the set's")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    redraw, stored = Redrawing(args.models, args.name, args.unet), LatentSet(args.set)
    args.out.mkdir(parents=True, exist_ok=True)
    for shard in args.shards:
        rng, generator = random.Random(f"{args.name}/{shard}"), torch.Generator().manual_seed(int(shard))
        latents, scenes = stored.shard(shard)
        redrawn = []
        for rows in torch.arange(len(scenes)).split(BATCH):
            captions = [caption(scenes[i], rng.choice(STYLES), rng) for i in rows]
            redrawn.append(redraw(latents[rows].float(), captions, rng.randint(1, LAST_STEPS), generator))
        path = args.out / f"{shard}.safetensors"
        with new_file(path) as file:
            save_file({"latents": torch.cat(redrawn).contiguous().half()}, file)
        print(path, flush=True)


if __name__ == "__main__":
    main()
