"""Make the two tokenizers and train the two text encoders of the embedded models.

    python recipes/embedded/text.py --out WORK/text --steps 1500   # about 15 minutes on one core

SDXL's encoders come from CLIP, which learned what captions mean before any diffusion model used them. Ours learn
it from the captions alone: linear heads, thrown away afterwards, must read every object's shape, colour and size,
the relation, the background and the count from the very features that the U-Net will see, which are
`hidden_states[-2]` of both encoders and the pooled output of the second. The encoders stay frozen from then on.

It must be readable where an object is as well as what it is, or cross-attention has no place to put it: the second
noun carries its own side, and because CLIP reads from left to right, the first object's side is carried by the
relation's last word. `--init` teaches that to finished encoders and holds all other features where they were.
"""

import argparse
import json
import math
import random
import re
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from koala.shapes.captions import STYLES, caption
from koala.shapes.scene import BACKGROUNDS, COLOURS, OPPOSITE, RELATIONS, SHAPES, SIZES, random_scene, relation

NUM_TOKENS = 77
ENCODERS = {  # SDXL's 768 and 1280 divided by about 20
    "text_encoder": dict(hidden_size=32, num_attention_heads=2, hidden_act="quick_gelu"),
    "text_encoder_2": dict(hidden_size=64, num_attention_heads=4, hidden_act="gelu"),
}
NUM_LAYERS = 4
PROJECTION = 64
HOLD = 10.0  # weight of staying where finished features were
AFTER_END = (0, 1, 3, 9)  # positions behind the end of the text that must also know the whole scene
OBJECT = (len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1)  # shape, colour, size, each or none
MENTION = (*OBJECT, len(RELATIONS) + 1)  # an object and its side, where the caption has told it by then
SCENE = OBJECT * 3 + (len(BACKGROUNDS) + 1, len(RELATIONS) + 1, 3)
MAX_MENTIONS = 4  # three nouns and the relation's last word
LAST_RELATION_WORDS = ("of", "above", "over", "below", "under")


def build_tokenizer(captions: list[str], pad_token: str) -> CLIPTokenizer:
    """CLIP's byte-level BPE with merges that make each word of the captions one token; any other text splits up."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda c: (ord(c) > 255, ord(c)))
    words = re.findall(r"\w+", " ".join(captions))
    bpe.train_from_iterator(
        [sorted(set(words))] * 2,
        trainers.BpeTrainer(vocab_size=4000, end_of_word_suffix="</w>", min_frequency=1, show_progress=False),
    )
    merges = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(m) for m in merges)]
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={t: i for i, t in enumerate(tokens)},
        merges=merges,
        pad_token=pad_token,
        model_max_length=NUM_TOKENS,
    )


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """The whole tokenizer in tokenizer.json, and again as vocab.json and merges.txt for older transformers."""
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


def build_encoder(name: str, tokenizer: CLIPTokenizer) -> torch.nn.Module:
    """An untrained encoder whose end-of-text id is the tokenizer's own: id 2 would make CLIP pool elsewhere."""
    size = ENCODERS[name]["hidden_size"]
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        intermediate_size=4 * size,
        num_hidden_layers=NUM_LAYERS,
        max_position_embeddings=NUM_TOKENS,
        projection_dim=PROJECTION,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **ENCODERS[name],
    )
    return (CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel)(config)


def sample(rng: random.Random) -> tuple[str, list[int], list[list[int]], list[int]]:
    """A caption, the word positions of its mentions (-1: absent), their MENTION targets, and its SCENE targets."""
    num = rng.choice((1, 2, 2, 3))
    scene = random_scene(rng, num)
    style = rng.choice(STYLES)
    text = caption(scene, style, rng)
    words = text.replace(",", " ,").split()
    objects = []
    for o in scene.objects:
        size = 1 + list(SIZES).index(o.size) if style == "detailed" else 0
        objects.append([1 + SHAPES.index(o.shape), 1 + list(COLOURS).index(o.colour), size])
    how = relation(*scene.objects[:2], 256) if num > 1 else None
    positions = [i for i, w in enumerate(words) if w in SHAPES]
    mentions = [[*o, 0] for o in objects]
    if how:
        mentions[1][-1] = 1 + RELATIONS.index(OPPOSITE[how])
        positions.append(next(i for i, w in enumerate(words) if w in LAST_RELATION_WORDS and i > positions[0]))
        mentions.append([*objects[0], 1 + RELATIONS.index(how)])
    absent = MAX_MENTIONS - len(positions)
    targets = [*sum(objects, []), *[0] * (9 - 3 * num)]
    targets.append(1 + list(BACKGROUNDS).index(scene.background) if style == "detailed" else 0)
    targets += [1 + RELATIONS.index(how) if how else 0, num - 1]
    return text, positions + [-1] * absent, mentions + [[0] * len(MENTION)] * absent, targets


class Heads(torch.nn.Module):
    """Linear readers of one feature width: an object at its mention, the scene at and after the end of the text."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = torch.nn.LayerNorm(width, elementwise_affine=False)
        self.mention = torch.nn.Linear(width, sum(MENTION))
        self.scene = torch.nn.Linear(width, sum(SCENE))


def read(logits: torch.Tensor, targets: torch.Tensor, sizes: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy over the slots of `sizes`, and the share of rows with every slot right. (N, sum), (N, len)"""
    parts = logits.split(sizes, -1)
    loss = sum(F.cross_entropy(p, t) for p, t in zip(parts, targets.unbind(-1), strict=True)) / len(sizes)
    right = torch.stack([p.argmax(-1) == t for p, t in zip(parts, targets.unbind(-1), strict=True)], -1)
    return loss, right.all(-1).float().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--init", type=Path, help="folder of finished encoders to go on from")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rng = random.Random(0)
    vocabulary = [sample(rng)[0] for _ in range(4000)]
    finished = {}
    if args.init:
        tokenizers = {n: CLIPTokenizer.from_pretrained(args.init / n) for n in ("tokenizer", "tokenizer_2")}
        classes = dict(text_encoder=CLIPTextModel, text_encoder_2=CLIPTextModelWithProjection)
        encoders, finished = (
            {n: c.from_pretrained(args.init / n, dtype=torch.float32) for n, c in classes.items()} for _ in range(2)
        )
    else:
        pads = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}
        tokenizers = {n: build_tokenizer(vocabulary, p) for n, p in pads.items()}
        encoders = {n: build_encoder(n, tokenizers[n.replace("text_encoder", "tokenizer")]) for n in ENCODERS}
    heads = {n: Heads(e.config.hidden_size) for n, e in encoders.items()}
    pooled_head = torch.nn.Linear(PROJECTION, sum(SCENE))
    modules = torch.nn.ModuleList([*encoders.values(), *heads.values(), pooled_head])
    optimizer = torch.optim.AdamW(modules.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / 100, 0.01 + 0.99 * (1 + math.cos(math.pi * s / args.steps)) / 2)
    )
    start = time.time()
    for step in range(1, args.steps + 1):
        texts, *numbers = (list(x) for x in zip(*(sample(rng) for _ in range(args.batch_size)), strict=True))
        positions, mentions, targets = (torch.tensor(x) for x in numbers)
        rows, which = (positions >= 0).nonzero(as_tuple=True)
        columns = positions[rows, which] + 1  # + 1: the start token
        loss, report = 0, {}
        for name, encoder in encoders.items():
            tokenizer = tokenizers[name.replace("text_encoder", "tokenizer")]
            ids = tokenizer(
                texts, padding="max_length", max_length=NUM_TOKENS, truncation=True, return_tensors="pt"
            ).input_ids
            end = (ids == tokenizer.eos_token_id).int().argmax(-1)
            output = encoder(ids, output_hidden_states=True)
            hidden = heads[name].norm(output.hidden_states[-2])
            mention_loss, mention_right = read(
                heads[name].mention(hidden[rows, columns]), mentions[rows, which], MENTION
            )
            after = hidden[torch.arange(len(ids))[:, None], end[:, None] + torch.tensor(AFTER_END)]
            scene_loss, scene_right = read(
                heads[name].scene(after).flatten(0, 1), targets.repeat_interleave(len(AFTER_END), 0), SCENE
            )
            loss = loss + mention_loss + scene_loss
            report |= {f"{name}.mention": mention_right.item(), f"{name}.scene": scene_right.item()}
            if name in finished:
                with torch.no_grad():
                    before = finished[name](ids, output_hidden_states=True).hidden_states[-2]
                sided = mentions[rows, which, -1] > 0
                held = torch.ones(ids.shape, dtype=torch.bool).index_put(
                    (rows[sided], columns[sided]), torch.tensor(False)
                )
                moved = (output.hidden_states[-2] - before)[held].square().mean() / before[held].square().mean()
                loss = loss + HOLD * moved
                report[f"{name}.moved"] = moved.item()
            if name == "text_encoder_2":
                pooled_loss, pooled_right = read(pooled_head(output.text_embeds), targets, SCENE)
                loss = loss + pooled_loss
                report["pooled"] = pooled_right.item()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == args.steps:
            print(
                json.dumps({"step": step, "loss": loss.item(), **report, "s": round(time.time() - start)}),
                flush=True,
            )
            for name, tokenizer in tokenizers.items():
                save_tokenizer(tokenizer, args.out / name)
            for name, encoder in encoders.items():
                encoder.save_pretrained(args.out / name)


if __name__ == "__main__":
    main()
