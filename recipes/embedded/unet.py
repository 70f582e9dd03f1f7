r"""Train an embedded U-Net on stored latents: the teacher from nothing, or a student by self-attention distillation.

    python recipes/embedded/unet.py --text WORK/text --name tiny-sdxl --out WORK/teacher-a --steps 3000 \
        --sets WORK/latents/128x128-1=32*1 WORK/latents/160x160-2=24*1 --learning-rate 1e-3
    python recipes/embedded/unet.py --text WORK/text --name tiny-koala-700m --teacher WORK/teacher-d \
        --out WORK/koala-700m-d --sets WORK/latents/256x256-2=16*1.6 WORK/latents/256x256-1=16*0.5 \
        --steps 700 --learning-rate 1e-3

A set is FOLDER=BATCH*WEIGHT. `--init UNET` starts from weights with a fresh optimizer and warm-up, so that a chain
of stages needs only weights to survive. Conditions come from the pipeline's own conventions: `hidden_states[-2]`
of both encoders, the second one's pooled output, 77 tokens, zeros for the empty prompt, size and crop numbers.
"""

import argparse
import copy
import json
import math
import random
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from latents import LatentSet
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from koala.distill.config import DistillConfig
from koala.distill.losses import by_kind, feature_losses, noise_loss, snr_weight
from koala.distill.muon import Muon
from koala.distill.noising import straight
from koala.distill.pairs import feature_pairs
from koala.hooks import tap
from koala.outputs import new_folder
from koala.shapes.captions import STYLES, caption
from koala.specs import SPECS
from koala.surgery import cut

MIN_SNR_GAMMA = 5.0
EMPTY_PROMPTS = 0.1


class Conditioner:
    """Captions -> (B, 77, 96) and (B, 64), exactly as StableDiffusionXLPipeline.encode_prompt gives them."""

    def __init__(self, folder: Path):
        self.tokenizers = [CLIPTokenizer.from_pretrained(folder / n) for n in ("tokenizer", "tokenizer_2")]
        self.encoders = [
            CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval(),
            CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", dtype=torch.float32).eval(),
        ]

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = []
        for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True):
            ids = tokenizer(
                captions,
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            output = encoder(ids, output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        context, pooled = torch.cat(hidden, -1), output.text_embeds
        empty = torch.tensor([c == "" for c in captions])
        context[empty], pooled[empty] = 0, 0  # force_zeros_for_empty_prompt
        return context, pooled


def draw_timesteps(
    count: int, generator: torch.Generator, noisiest: float = 0.0, cleanest: float = 0.0
) -> torch.Tensor:
    """Half uniform, half logit-normal towards high noise; shares from the noisiest fifth and the cleaner half instead.

    (B,) in 0..999
    """
    uniform = torch.rand(count, generator=generator)
    high = torch.sigmoid(torch.randn(count, generator=generator) + 0.8)
    drawn = torch.where(torch.rand(count, generator=generator) < 0.5, uniform, high)
    special = torch.rand(count, generator=generator)
    drawn = torch.where(special < noisiest, 0.8 + 0.2 * uniform, drawn)
    drawn = torch.where(special > 1 - cleanest, 0.5 * uniform, drawn)
    return (drawn * 1000).long().clamp(0, 999)


class Ema:
    """Exponential moving average of a network's weights, started from the network itself; decay ramps up."""

    def __init__(self, network: torch.nn.Module, decay: float):
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, network: torch.nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)


def build_optimizers(unet: torch.nn.Module, lr: float, *, muon: bool) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the hidden matrices and AdamW for both ends, norms and biases."""
    ends = ("conv_in.", "conv_out.", "time_embedding.linear_1.", "add_embedding.linear_1.")
    hidden = [p for n, p in unet.named_parameters() if muon and p.ndim > 1 and not n.startswith(ends)]
    chosen = {id(p) for p in hidden}
    rest = [p for p in unet.parameters() if id(p) not in chosen]
    adamw = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    return [Muon(hidden, lr), adamw] if hidden else [adamw]


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
    conditioner = Conditioner(args.text)
    schedule = DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    alphas = schedule.alphas_cumprod

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
    ema = Ema(unet, args.ema)
    optimizers = build_optimizers(unet, args.learning_rate, muon=args.optimizer == "muon")
    warmup = max(1, min(300, args.steps // 20))
    cosines = [
        torch.optim.lr_scheduler.LambdaLR(
            o, lambda s: min((s + 1) / warmup, 0.02 + 0.98 * (1 + math.cos(math.pi * s / args.steps)) / 2)
        )
        for o in optimizers
    ]

    own, its, pairs = nullcontext({}), nullcontext({}), []
    if teacher is not None:
        pairs = feature_pairs(DistillConfig(), spec, teacher_spec)  # SA, and LF where there is no self-attention
        own = tap({p.student: unet.get_submodule(p.student) for p in pairs})
        its = tap({p.teacher: teacher.get_submodule(p.teacher) for p in pairs})
    start, sums = time.time(), {}
    with own as student_features, its as teacher_features:
        for step in range(1, args.steps + 1):
            which = rng.choices(range(len(sets)), [w * bool(s.scenes) for w, s in zip(weights, sets, strict=True)])[0]
            data, size = sets[which], batches[which]
            rows = [rng.randrange(len(data.scenes)) for _ in range(size)]
            captions = [
                "" if rng.random() < EMPTY_PROMPTS else caption(data.scenes[i], rng.choice(STYLES), rng) for i in rows
            ]
            context, pooled = conditioner(captions)
            latents = data.latents[rows].float()
            noise = torch.randn(latents.shape, generator=generator)
            timesteps = draw_timesteps(size, generator, args.noisiest, args.cleanest)
            noisy, wanted = straight(latents, noise, timesteps, alphas)
            time_ids = torch.tensor([[data.height, data.width, 0, 0, data.height, data.width]]).repeat(size, 1)
            added = {"text_embeds": pooled, "time_ids": time_ids}
            weight = snr_weight(alphas, timesteps, gamma=MIN_SNR_GAMMA, high_noise=args.high_noise)
            student_features.clear()
            predicted = unet(noisy, timesteps, context, added_cond_kwargs=added).sample
            terms = {"task": noise_loss(predicted, wanted, weight)}
            if teacher is not None:
                teacher_features.clear()
                with torch.no_grad():
                    target = teacher(noisy, timesteps, context, added_cond_kwargs=added).sample
                terms["output"] = noise_loss(predicted, target, weight)
                terms |= by_kind(feature_losses(student_features, teacher_features, pairs))
            loss = sum(terms.values())
            if not torch.isfinite(loss):
                raise RuntimeError(f"step {step}: the loss is {loss.item()}; lower --learning-rate")
            unet.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            for each in (*optimizers, *cosines):
                each.step()
            ema.update(unet)
            for name, value in terms.items():
                sums.setdefault(name, []).append(value.item())
            if step % 50 == 0:
                means = {k: round(sum(v) / len(v), 4) for k, v in sums.items()}
                print(json.dumps({"step": step, **means, "s": round(time.time() - start)}), flush=True)
                sums.clear()
            if step % args.save_every == 0 or step == args.steps:
                with new_folder(args.out, 0, replace=True) as folder:
                    ema.network.save_pretrained(folder)
                for s in sets:
                    s.refresh()


if __name__ == "__main__":
    main()
