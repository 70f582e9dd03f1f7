"""How accurate the judge is: scenes of known content, read from clean renders and after a VAE round trip.

The judge's accuracy after the round trip is the ceiling for any model that decodes with that VAE. Results are plain
dicts for JSON.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from diffusers import AutoencoderKL

from koala.sampling.nan_causes import check_picture
from koala.shapes.colour import delta_e_2000, lab
from koala.shapes.reading import Found, Reading, read
from koala.shapes.render import object_mask, render_array
from koala.shapes.scene import COLOURS, SHAPES, Scene, SceneObject, random_scene

BATCH = 8
CANVASES = ((256, 256), (256, 256), (320, 192), (192, 320))  # width, height; one per batch, in turn
ALL_PAIRS = tuple((s, c) for s in SHAPES for c in COLOURS)  # including the held-out pairs: the judge must read them too
NEAR = 6.0  # px from its true place within which an object counts as read


def scenes(num_scenes: int, seed: int) -> Iterator[list[Scene]]:
    """Batches of random scenes of one, two and three objects in turn; one canvas per batch."""
    rng = random.Random(seed)
    for start in range(0, num_scenes, BATCH):
        width, height = CANVASES[start // BATCH % len(CANVASES)]
        yield [
            random_scene(rng, 1 + i % 3, width=width, height=height, pairs=ALL_PAIRS)
            for i in range(start, min(start + BATCH, num_scenes))
        ]


def _words(o: SceneObject | Found, background: str) -> str:
    return f"{o.size} {o.colour} {o.shape} on {background}"


def confusions(scene: Scene, reading: Reading) -> list[str]:
    """What a reading got wrong about a scene, in words; empty if nothing."""
    wrong = []
    if reading.background != scene.background:
        wrong.append(f"background {scene.background} read as {reading.background}")
    left = list(reading.objects)
    for o in scene.objects:
        nearest = min(left, key=lambda f: math.hypot(f.x - o.x, f.y - o.y), default=None)
        if nearest is None or math.hypot(nearest.x - o.x, nearest.y - o.y) > NEAR:
            wrong.append(f"missed {_words(o, scene.background)}")
            continue
        left.remove(nearest)
        for what in ("shape", "colour", "size"):
            truth, seen = getattr(o, what), getattr(nearest, what)
            if truth != seen:
                wrong.append(f"{truth} read as {seen}")
    return wrong + [f"imagined {_words(f, scene.background)}" for f in left]


@torch.no_grad()
def round_trip(vae: AutoencoderKL, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (B, H, W, 3) in 0..1 -> (the same after encoding to the mode and decoding, latents (B, C, h, w))."""
    weight = next(vae.parameters())
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(weight.device, weight.dtype) * 2 - 1
    latents = vae.encode(x).latent_dist.mode()
    decoded = vae.decode(latents).sample
    check_picture(decoded, vae)
    y = decoded.clamp(-1, 1).permute(0, 2, 3, 1) / 2 + 0.5
    return y.float().cpu().numpy(), latents.float().cpu().numpy()


def _bytes(picture: np.ndarray) -> np.ndarray:
    return np.round(picture * 255).astype(np.uint8)


def measure(num_scenes: int = 2000, seed: int = 20240, vae: AutoencoderKL | None = None) -> dict:
    """The fraction of scenes read perfectly and all confusions: clean, and after the round trip of `vae` if given."""
    perfect: Counter[str] = Counter()
    wrong: dict[str, Counter[str]] = {"clean": Counter()} | ({"round_trip": Counter()} if vae else {})
    seconds = 0.0
    for batch in scenes(num_scenes, seed):
        pictures = {"clean": np.stack([render_array(s) for s in batch])}
        if vae:
            pictures["round_trip"] = round_trip(vae, pictures["clean"])[0]
        for name, drawn in pictures.items():
            for scene, picture in zip(batch, drawn, strict=True):
                start = time.process_time()
                reading = read(_bytes(picture))
                seconds += time.process_time() - start
                errors = confusions(scene, reading)
                perfect[name] += not errors
                wrong[name].update(errors)
    result: dict = {
        "num_scenes": num_scenes,
        "seed": seed,
        "ms_per_picture": 1e3 * seconds / (num_scenes * len(wrong)),
    }
    for name, counter in wrong.items():
        result[name] = {"perfect": perfect[name] / num_scenes, "confusions": dict(counter.most_common())}
    return result


def vae_fidelity(vae: AutoencoderKL, num_scenes: int = 200, seed: int = 20241) -> dict:
    """What a VAE round trip preserves: PSNR in dB, mean over pictures; dE2000, mean over objects; latent statistics."""
    whole, inside, colour, latents = [], [], [], []
    for batch in scenes(num_scenes, seed):
        pictures = np.stack([render_array(s) for s in batch])
        restored, z = round_trip(vae, pictures)
        latents.append(z.transpose(0, 2, 3, 1).reshape(-1, z.shape[1]))  # (B, C, h, w) -> (B h w, C)
        squared = np.square(pictures - restored).mean(-1)  # (B, H, W)
        for scene, before, after, error in zip(batch, pictures, restored, squared, strict=True):
            whole.append(_psnr(error))
            inside.append(_psnr(error[object_mask(scene) > 0.99]))
            for o in scene.objects:
                own = object_mask(replace(scene, objects=(o,))) > 0.99
                colour.append(float(delta_e_2000(lab(before[own].mean(0)), lab(after[own].mean(0)))))
    values = np.concatenate(latents)
    return {
        "num_scenes": num_scenes,
        "seed": seed,
        "psnr_db": float(np.mean(whole)),
        "psnr_objects_db": float(np.mean(inside)),
        "object_delta_e_2000": float(np.mean(colour)),
        "latent_mean": values.mean(0).tolist(),
        "latent_std": values.std(0).tolist(),
    }


def _psnr(squared: np.ndarray) -> float:
    return float(-10 * np.log10(squared.mean()))
