r"""Train an embedded U-Net on stored latents: the teacher from scratch, or a student by self-attention distillation.

    python recipes/embedded/unet.py --text WORK/text --name tiny-sdxl --out WORK/teacher-a --steps 3000 \
        --sets WORK/latents/128x128-1=32*1 WORK/latents/160x160-2=24*1 --learning-rate 1e-3
    python recipes/embedded/unet.py --text WORK/text --name tiny-koala-700m --teacher WORK/teacher-d \
        --out WORK/koala-700m-d --sets WORK/latents/256x256-2=16*1.6 WORK/latents/256x256-1=16*0.5 \
        --steps 700 --learning-rate 1e-3

A set is FOLDER=BATCH*WEIGHT. `--init UNET` starts from weights with a fresh optimizer and warm-up, so that a chain
of stages needs only weights to survive. Everything that a step computes is the product's own: conditions as the
pipeline makes them, draws, loss, optimizers, learning rate and moving average are those of `koala distill`.
"""

import argparse
import copy
import dataclasses
import json
import random
import time
from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from latents import LatentSet
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from koala.compress.surgery import cut
from koala.distill.config import DistillConfig
from koala.distill.data.encoded import Batch
from koala.distill.data.encoders import Encoders
from koala.distill.draws import draw
from koala.distill.loss.pairs import feature_pairs
from koala.distill.loss.step import DistillationStep
from koala.distill.optimizers import Ema, build_optimizers, learning_rate
from koala.files.outputs import new_folder
from koala.sampling.noising import straight
from koala.shapes.captions import STYLES, caption
from koala.unet.specs import SPECS


def text_encoders(folder: Path) -> Encoders:
    """The two text encoders of a folder, in fp32 and without a VAE."""
    pipeline = StableDiffusionXLPipeline(
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval(),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(
            folder / "text_encoder_2", dtype=torch.float32
        ).eval(),
        unet=None,
        vae=None,
        scheduler=None,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    return Encoders(pipeline, "cpu")


def shifted(timesteps: torch.Tensor, generator: torch.Generator, *, noisiest: float, cleanest: float) -> torch.Tensor:
    """Timesteps (B,) with a share drawn anew from the noisiest fifth, and another from the cleaner half."""
    special, uniform = torch.rand(2, len(timesteps), generator=generator)
    drawn = torch.where(special < noisiest, (800 + 200 * uniform).long(), timesteps)
    return torch.where(special > 1 - cleanest, (500 * uniform).long(), drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder with tokenizers and text encoders")
    parser.add_argument("--name", choices=("tiny-sdxl", "tiny-koala-1b", "tiny-koala-700m"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="U-Net folder to go on from")
    parser.add_argument("--teacher", type=Path, help="U-Net folder of the teacher: distil instead of train")
    parser.add_argument("--sets", nargs="+", required=True, metavar="FOLDER=BATCH*WEIGHT")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--high-noise", type=float, default=0.5, help="lift of the loss where count is decided")
    parser.add_argument("--noisiest", type=float, default=0.0, help="share of t from 800 up, which decide layout")
    parser.add_argument("--cleanest", type=float, default=0.0, help="share of t below 500, which decide edges")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng, generator = random.Random(args.seed), torch.Generator().manual_seed(args.seed)
    sets, batches, weights = [], [], []
    for entry in args.sets:
        folder, _, numbers = entry.partition("=")
        batch, _, weight = numbers.partition("*")
        sets.append(LatentSet(Path(folder)))
        batches.append(int(batch))
        weights.append(float(weight or 1))
    if not any(s.scenes for s in sets):
        parser.error("no set holds a shard; make some with recipes/embedded/latents.py")
    config = DistillConfig(
        lf_at_ends=True,
        normalisation="per-kind",
        output_weight=1.0 if args.teacher else 0.0,
        feature_weight=1.0 if args.teacher else 0.0,
        min_snr_gamma=5.0,
        high_noise_lift=args.high_noise,
        timesteps="high-noise",
        empty_prompts=0.1,
        num_steps=args.steps,
        optimizer=args.optimizer,
        learning_rate=args.learning_rate,
        schedule="cosine",
        warmup_steps=max(1, min(300, args.steps // 20)),
        ema_decay=args.ema,
        seed=args.seed,
    )
    encoders = text_encoders(args.text)
    schedule = DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    spec, teacher_spec = SPECS[args.name], SPECS["tiny-sdxl"]
    teacher = None
    if args.teacher:
        teacher = UNet2DConditionModel.from_pretrained(args.teacher, torch_dtype=torch.float32).requires_grad_(False)
    if args.init:
        unet = UNet2DConditionModel.from_pretrained(args.init, torch_dtype=torch.float32)
    elif teacher is not None:
        unet = cut(teacher.state_dict(), spec, teacher_spec)
    else:
        unet = UNet2DConditionModel(**spec.config())
    unet.train()
    ema, averaged = Ema(unet, config.ema_decay), copy.deepcopy(unet)
    optimizers = build_optimizers(unet, config)
    pairs = feature_pairs(config, spec, teacher_spec) if args.teacher else []
    distillation = DistillationStep(config, teacher, pairs, schedule.alphas_cumprod, straight)

    start, sums, seen = time.time(), {}, 0
    with distillation.hooked(unet) as losses_of:
        for step in range(1, args.steps + 1):
            which = rng.choices(range(len(sets)), [w * bool(s.scenes) for w, s in zip(weights, sets, strict=True)])[0]
            data, size = sets[which], batches[which]
            rows = [rng.randrange(len(data.scenes)) for _ in range(size)]
            draws = draw(config, range(seen, seen + size), data.latents.shape[1:])
            seen += size
            captions = [
                "" if pick < 0 else caption(data.scenes[i], rng.choice(STYLES), rng)
                for i, pick in zip(rows, draws.picks, strict=True)
            ]
            timesteps = shifted(draws.timesteps, generator, noisiest=args.noisiest, cleanest=args.cleanest)
            context, pooled = encoders.captions(captions)
            time_ids = torch.tensor([[data.height, data.width, 0, 0, data.height, data.width]]).repeat(size, 1)
            batch = Batch(latents=data.latents[rows].float(), context=context, pooled=pooled, time_ids=time_ids)
            losses = losses_of(unet, batch, dataclasses.replace(draws, timesteps=timesteps))
            losses.check(step)
            unet.zero_grad()
            losses.total.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), config.max_grad_norm)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, step - 1)
                optimizer.step()
            ema.update(unet)
            for name, value in losses.terms.items():
                sums.setdefault(name, []).append(value.item())
            if step % 50 == 0:
                means = {k: round(sum(v) / len(v), 4) for k, v in sums.items()}
                print(json.dumps({"step": step, **means, "s": round(time.time() - start)}), flush=True)
                sums.clear()
            if step % args.save_every == 0 or step == args.steps:
                averaged.load_state_dict(ema.weights)
                with new_folder(args.out, 0, replace=True) as folder:
                    averaged.save_pretrained(folder)
                for s in sets:
                    s.refresh()


if __name__ == "__main__":
    main()
