"""The error of the clean latents that U-Nets predict, on 64 scenes of two objects that no stage of training saw.

    python recipes/embedded/validate.py --models koala/embedded/tiny-sdxl --unets WORK/c WORK/d --out FILE.json

Mean squared error of x0 per timestep, on fixed scenes, captions and noise, and the same with every relation reversed
("left of" for "right of"): what the network takes from the caption's relation. They move long before scores do.
"""

import argparse
import datetime
import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from unet import text_encoders

from koala.files.outputs import new_file
from koala.hardware.timing import device_name
from koala.models.measured import weights
from koala.sampling.noising import straight
from koala.shapes.captions import STYLES, caption
from koala.shapes.render import render_array
from koala.shapes.scene import random_scene

TIMESTEPS = (999, 950, 850, 700, 500, 250, 100, 40)
SCENES = 64
OTHER_SIDE = {"left": "right", "right": "left", "above": "below", "below": "above", "under": "above", "over": "below"}


def reversed_relation(text: str) -> str:
    """The caption of the same objects with the first on the second one's other side."""
    return re.sub(r"\b(left|right|above|below|under|over)\b", lambda m: OTHER_SIDE[m[0]], text)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="pipeline folder with text encoders and VAE")
    parser.add_argument("--unets", type=Path, nargs="+", required=True, help="U-Net folders, in the order of training")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    rng, generator = random.Random("validation"), torch.Generator().manual_seed(0)
    scenes = [random_scene(rng, 2) for _ in range(SCENES)]
    captions = [caption(s, STYLES[i % 2], rng) for i, s in enumerate(scenes)]
    encoders = text_encoders(args.models)
    true = encoders.captions(captions)
    false = encoders.captions([reversed_relation(c) for c in captions])
    vae = AutoencoderKL.from_pretrained(args.models / "vae", torch_dtype=torch.float32)
    pictures = torch.from_numpy(np.stack([render_array(s) for s in scenes])).permute(0, 3, 1, 2) * 2 - 1
    latents = torch.cat([vae.encode(p).latent_dist.mode() for p in pictures.split(8)]) * vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=generator)
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    time_ids = torch.tensor([[256, 256, 0, 0, 256, 256]]).repeat(SCENES, 1)
    errors_by_model = {}
    for folder in args.unets:
        unet = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32)
        errors = {}
        for t in TIMESTEPS:
            timesteps = torch.full((SCENES,), t)
            noisy, wanted = straight(latents, noise, timesteps, schedule.alphas_cumprod)
            signal = schedule.alphas_cumprod[t]
            errors[t] = {}
            for kind, (context, pooled) in (("caption", true), ("reversed", false)):
                added = {"text_embeds": pooled, "time_ids": time_ids}
                predicted = unet(noisy, timesteps, context, added_cond_kwargs=added).sample
                error = (predicted - wanted).square().mean() * (1 - signal) / signal
                errors[t][kind] = round(error.item(), 4)
        errors_by_model[folder.name] = errors
        print(folder.name, errors, flush=True)
    report = {
        "clean_latent_error": errors_by_model,
        "command": " ".join(["python recipes/embedded/validate.py", *(Path(a).name for a in sys.argv[1:])]),
        "device": device_name(torch.device("cpu")),
        "date": datetime.date.today().isoformat(),
        "weights": weights([args.models, *args.unets]),
    }
    with new_file(args.out) as file:
        file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
