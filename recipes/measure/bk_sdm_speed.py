"""Pictures per second of the trainer and of BK-SDM's training loop, on the same pictures, batch and machine, in turns.

    python -m recipes.measure.bk_sdm_speed --out docs/measurements/distill-speed.json

The loop is that of BK-SDM's kd_train_text_to_image.py (Kim et al., 2024), restated on SDXL's conditioning: every step
reads its pictures, encodes them with the VAE and their captions with both text encoders; forward hooks keep the output
of every down and up block of both networks; the teacher runs in fp32; the loss is task + output + the sum of the
blocks' mean squared errors; AdamW, clipping and a moving average. Leave its encoders out and what remains is the loss.
"""

import argparse
import json
import logging
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from PIL import Image

from koala.console import no_bars
from koala.distill.config import DistillConfig
from koala.distill.run.folder import RunFolder
from koala.distill.trainer import train
from koala.evaluate.reports import circumstances
from koala.files.outputs import new_file
from koala.hardware.cuda import cards
from koala.hardware.timing import synchronize
from koala.models.locate import locate
from koala.models.registry import find
from koala.shapes.captions import caption
from koala.shapes.render import render
from koala.shapes.scene import random_scene

PICTURES = 64
LEARNING_RATE = 5e-5  # BK-SDM's


class Clock:
    """CPU seconds where one thread does all the work, so that other programs do not count; else wall-clock seconds."""

    def __init__(self, device: torch.device):
        self.device = device
        self.alone = device.type == "cpu" and torch.get_num_threads() == 1

    def __call__(self) -> float:
        synchronize(self.device)
        return time.process_time() if self.alone else time.perf_counter()


class BkLoop:
    """BK-SDM's loop from a student's U-Net folder; `encoding` adds up the seconds of what it never caches."""

    def __init__(self, config: DistillConfig, pictures: Path, student: Path, clock: Clock):
        self.config, self.clock, self.device = config, clock, clock.device
        device = clock.device
        self.half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
        folder = locate(find(config.teacher)).folder
        self.pipeline = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(device)
        self.teacher = self.pipeline.unet.requires_grad_(False)
        self.student = UNet2DConditionModel.from_pretrained(student, torch_dtype=torch.float32).to(device).train()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        self.ema = EMAModel(self.student.parameters(), decay=0.9999)
        self.schedule = DDPMScheduler.from_config(self.pipeline.scheduler.config)
        self.files = self._endless(sorted(pictures.glob("*.png")))
        self.blocks = [f"{way}_blocks.{k}" for way in ("down", "up") for k in range(3)]
        self.outputs = {"student": {}, "teacher": {}}
        for whose, unet in (("student", self.student), ("teacher", self.teacher)):
            for name in self.blocks:
                unet.get_submodule(name).register_forward_hook(self._keep(self.outputs[whose], name))
        self.encoding = 0.0

    @staticmethod
    def _keep(outputs: dict, name: str):
        def hook(module, inputs, output):
            outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook

    @staticmethod
    def _endless(files: list[Path]) -> Iterator[Path]:
        generator = torch.Generator().manual_seed(0)
        while True:
            yield from (files[k] for k in torch.randperm(len(files), generator=generator).tolist())

    @torch.no_grad()
    def _encode(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents (B, 4, h, w), context (B, 77, C) and pooled (B, P) of the next pictures."""
        side = self.config.resolution
        files = [next(self.files) for _ in range(self.config.batch_size)]
        pixels = []
        for file in files:
            picture = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
            pixels.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1)
        vae = self.pipeline.vae
        posterior = vae.encode(torch.stack(pixels).to(self.device)).latent_dist
        texts = [file.with_suffix(".txt").read_text() for file in files]
        context, _, pooled, _ = self.pipeline.encode_prompt(texts, do_classifier_free_guidance=False)
        return posterior.sample() * vae.config.scaling_factor, context, pooled

    def step(self) -> None:
        began = self.clock()
        latents, context, pooled = self._encode()
        self.encoding += self.clock() - began
        count, side = len(latents), self.config.resolution
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, self.schedule.config.num_train_timesteps, (count,), device=self.device)
        noisy = self.schedule.add_noise(latents, noise, timesteps)
        time_ids = torch.tensor([[side, side, 0, 0, side, side]], device=self.device).repeat(count, 1)
        added = {"text_embeds": pooled, "time_ids": time_ids}
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            predicted = self.student(noisy, timesteps, context, added_cond_kwargs=added).sample
        with torch.no_grad():
            target = self.teacher(noisy, timesteps, context, added_cond_kwargs=added).sample
        loss = F.mse_loss(predicted.float(), noise) + F.mse_loss(predicted.float(), target)
        for name in self.blocks:
            loss = loss + F.mse_loss(self.outputs["student"][name].float(), self.outputs["teacher"][name])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.student.parameters())
        loss.item()  # logged in every step


def write_pictures(folder: Path, side: int) -> None:
    """Scenes of the shapes world as K.png, with their captions in K.txt."""
    rng = random.Random("speed")
    for k in range(PICTURES):
        scene = random_scene(rng, 1 + k % 2, width=side, height=side)
        render(scene).save(folder / f"{k:03}.png")
        (folder / f"{k:03}.txt").write_text(caption(scene, "short", rng))


def koala_rate(run: RunFolder, config: DistillConfig, done: int, clock: Clock) -> float:
    """Pictures per second of the trainer from step `done` to the config's last, the first of them left out."""
    marks = []

    def say(message: str) -> None:
        if message.startswith("step "):  # the trainer says one line at the end of each
            marks.append(clock())

    train(run, config, resume_from=done or None, say=say)
    return (len(marks) - 1) * config.batch_size / (marks[-1] - marks[0])


def bk_rate(loop: BkLoop, steps: int) -> tuple[float, float]:
    """Pictures per second of BK-SDM's loop, and the share of its time that goes into encoding."""
    loop.encoding, began = 0.0, loop.clock()
    for _ in range(steps):
        loop.step()
    seconds = loop.clock() - began
    return steps * loop.config.batch_size / seconds, loop.encoding / seconds


def measure(config: DistillConfig, pictures: Path, work: Path, rounds: int, steps: int, clock: Clock) -> dict:
    """Rates of both in turns of `steps` steps; the first round warms up and does not count."""
    run, loop, ours, theirs, shares = RunFolder(path=work / "run"), None, [], [], []
    for turn in range(rounds + 1):
        until = DistillConfig.from_dict(config.to_dict() | {"num_steps": (turn + 1) * (steps + 1)})
        rate = koala_rate(run, until, turn * (steps + 1), clock)
        loop = loop or BkLoop(config, pictures, run.student / "unet", clock)
        bk, share = bk_rate(loop, steps)
        print(f"round {turn}: {rate:.2f} and {bk:.2f} pictures per second", flush=True)
        if turn:
            ours.append(rate)
            theirs.append(bk)
            shares.append(share)
    bk, share = statistics.median(theirs), statistics.median(shares)
    return {
        "pictures_per_second": {"koala": statistics.median(ours), "bk_sdm": bk},
        "ratio": statistics.median(ours) / bk,
        "ratio_of_each_round": [a / b for a, b in zip(ours, theirs, strict=True)],
        "bk_sdm_share_of_encoding": share,
        "bk_sdm_pictures_per_second_without_encoding": bk / (1 - share),
        "seconds": "of the CPU, one thread" if clock.alone else "of the wall",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--teacher", default="tiny-sdxl")
    parser.add_argument("--spec", default="koala-700m")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--resolution", type=int, default=256, metavar="PX")
    parser.add_argument("--steps", type=int, default=4, help="of a round, of each of the two")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    no_bars()
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    gpu = cards().available()
    clock = Clock(torch.device("cuda" if gpu else "cpu"))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        pictures = work / "pictures"
        pictures.mkdir()
        write_pictures(pictures, min(args.resolution, 256))
        config = DistillConfig(
            teacher=args.teacher,
            student_spec=args.spec,
            data=str(pictures),
            captions="short",
            short_caption="txt",
            cache=str(work / "cache"),
            resolution=args.resolution,
            batch_size=args.batch_size,
            learning_rate=LEARNING_RATE,
            precision="bf16" if gpu else "fp32",
            teacher_precision="bf16" if gpu else "fp32",
            threads=args.threads,
            validate_every=0,
            validation_pictures=1,
            checkpoint_every=args.steps + 1,
            log_every=1,
        )
        figures = measure(config, pictures, work, args.rounds, args.steps, clock)
    report = circumstances(
        sys.argv[1:], clock.device, program="recipes.measure.bk_sdm_speed", weights=[config.teacher]
    ) | {
        "student": config.student_spec,
        "features": list(config.features),
        "precision": {"koala": config.precision, "koala_teacher": config.teacher_precision, "bk_sdm_teacher": "fp32"},
        **figures,
    }
    with new_file(args.out) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{figures['ratio']:.2f} times BK-SDM's loop", flush=True)


if __name__ == "__main__":
    main()
