"""Render scenes and store their latents, made once: shards of 1,024 scenes, posterior mode, fp16.

    python recipes/embedded/latents.py --vae WORK/vae --out WORK/latents/128x128-1 --count 16384

Objects keep their pixel size on every canvas, so a small canvas with one object is a cheap first lesson: the same
circle as at 256 px in a quarter of the latents. Scene i comes from the seed "{seed}/{i}" alone, so a shard stores
only latents, and a caption is drawn anew each time that it is shown. Held-out pairs never appear.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from koala.files.outputs import new_file
from koala.shapes.render import render_array
from koala.shapes.scene import Scene, random_scene


def scene(seed: str, index: int, num_objects: int, width: int, height: int) -> Scene:
    """Scene `index` of a set."""
    return random_scene(random.Random(f"{seed}/{index}"), num_objects, width=width, height=height)


class LatentSet:
    """All shards of one folder named WIDTHxHEIGHT-OBJECTS, whichever there are; `refresh` finds those added since."""

    def __init__(self, folder: Path):
        self.folder = folder
        size, objects = folder.name.split("-")
        self.width, self.height = map(int, size.split("x"))
        self.num_objects = int(objects)
        self.latents = torch.empty(0, 4, self.height // 8, self.width // 8, dtype=torch.float16)
        self.scenes: list[Scene] = []
        self._known: set[Path] = set()
        self.refresh()

    def refresh(self) -> None:
        for path in sorted(set(self.folder.glob("*.safetensors")) - self._known):
            latents, scenes = self.shard(path.stem)
            self.latents = torch.cat([self.latents, latents])
            self.scenes += scenes
            self._known.add(path)

    def shard(self, number: str) -> tuple[torch.Tensor, list[Scene]]:
        """Latents (N, 4, h, w) and scenes of one file."""
        latents = load_file(self.folder / f"{number}.safetensors")["latents"]
        indices = range(int(number) * len(latents), (int(number) + 1) * len(latents))
        return latents, [scene(self.folder.name, i, self.num_objects, self.width, self.height) for i in indices]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder named WIDTHxHEIGHT-OBJECTS")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--first", type=int, default=0, help="scene to begin with, a multiple of --shard")
    parser.add_argument("--shard", type=int, default=1024, help="scenes per file")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    vae = AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32).to(memory_format=torch.channels_last)
    size, objects = args.out.name.split("-")
    width, height = map(int, size.split("x"))
    args.out.mkdir(parents=True, exist_ok=True)
    for start in range(args.first, args.first + args.count, args.shard):
        path = args.out / f"{start // args.shard:04d}.safetensors"
        if path.exists():
            continue
        latents = []
        for first in range(start, start + args.shard, 16):
            scenes = [scene(args.out.name, i, int(objects), width, height) for i in range(first, first + 16)]
            pictures = torch.from_numpy(np.stack([render_array(s) for s in scenes])).permute(0, 3, 1, 2) * 2 - 1
            pictures = pictures.to(memory_format=torch.channels_last)
            latents.append(vae.encode(pictures).latent_dist.mode() * vae.config.scaling_factor)
        with new_file(path) as file:
            save_file({"latents": torch.cat(latents).contiguous().half()}, file)
        print(path, flush=True)


if __name__ == "__main__":
    main()
