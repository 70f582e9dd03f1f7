r"""Pack trained parts into the self-contained diffusers folders that the package ships, in fp16.

    python recipes/embedded/assemble.py --text WORK/text --vae WORK/vae --unet tiny-sdxl=WORK/teacher ... \
        --out koala/embedded

Tokenizers, text encoders and VAE are byte-identical copies in every folder: the app recognises them by hash and
loads them once. hashes.json holds the SHA-256 of every file, against which the app holds them.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from koala.models.cards import CARDS, ModelCard
from koala.models.layout import DRAWING
from koala.models.registry import drawing_of
from koala.models.shipped import write_hashes

TEXT = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
SCHEDULERS = {
    "euler-ancestral-trailing": EulerAncestralDiscreteScheduler,
    "euler-trailing": EulerDiscreteScheduler,
}
PREFIX, PROJECTION = "text_model.", "text_projection.weight"
MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.35.0",
    "feature_extractor": [None, None],
    "force_zeros_for_empty_prompt": True,
    "image_encoder": [None, None],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def edit(path: Path, *remove: str, **change) -> None:
    """Remove and change keys of a JSON file. A null stays: `mid_block_type: null` is how a U-Net has no MID."""
    values = {k: v for k, v in json.loads(path.read_text()).items() if k not in remove}
    path.write_text(json.dumps(values | change, indent=2) + "\n")


def save_text(source: Path, folder: Path) -> None:
    for name, kind in TEXT.items():
        kind.from_pretrained(source / name, dtype=torch.float16).save_pretrained(folder / name)
        name_as_of_old(folder / name / "model.safetensors")
        # transformers loads what its config says, diffusers loads fp32: the config must agree with diffusers
        edit(folder / name / "config.json", dtype="float32")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(source / name, folder / name, dirs_exist_ok=True)


def name_as_of_old(file: Path) -> None:
    """transformers 5 saves a CLIPTextModel without the prefix that it reads too, and that older ones need."""
    tensors = {f"{PREFIX}{k.removeprefix(PREFIX)}" if k != PROJECTION else k: v for k, v in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def save_sampling(card: ModelCard, folder: Path) -> None:
    """How the model is sampled: for diffusers its scheduler, and the koala.json of a few-step model."""
    kind = SCHEDULERS[card.scheduler]
    kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        prediction_type="epsilon",
    ).save_pretrained(folder / "scheduler")
    index = dict(sorted((MODEL_INDEX | {"scheduler": ["diffusers", kind.__name__]}).items()))
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    if card.steps < ModelCard.steps:  # a copy elsewhere is not told from the models of 25 steps by its networks
        drawing = drawing_of(card) | {"teacher": card.teacher or ""}
        (folder / DRAWING).write_text(json.dumps(drawing, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--vae", type=Path)
    parser.add_argument("--unet", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--names", nargs="+", default=[card.name for card in CARDS.values() if card.embedded])
    args = parser.parse_args()

    first = args.out / args.names[0]
    if args.text:
        save_text(args.text, first)
    if args.vae:
        AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32).half().save_pretrained(first / "vae")
        edit(first / "vae" / "config.json", "_name_or_path")
    for name in args.names:
        for part in ("vae", *TEXT, "tokenizer", "tokenizer_2"):
            if name != args.names[0]:
                shutil.copytree(first / part, args.out / name / part, dirs_exist_ok=True)
        save_sampling(CARDS[name], args.out / name)
    for entry in args.unet:
        name, _, folder = entry.partition("=")
        unet = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32).half()
        unet.save_pretrained(args.out / name / "unet")
        edit(args.out / name / "unet" / "config.json", "_name_or_path")
    write_hashes(args.out)


if __name__ == "__main__":
    main()
