"""A model's tensors -> a folder that plain diffusers loads: each tensor is a range of bytes, and none is decoded."""

import codecs
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from koala.files.reading import read_object
from koala.files.tensorfiles import StoredTensor, check_values, stored_tensors, write_tensors
from koala.models.checkpoints import UNetCheckpoint
from koala.models.layout import STEMS, TOKENIZERS
from koala.models.networks import StoredNetwork
from koala.models.reading import complete_tokenizer
from koala.unet.specs import UNetSpec

_TEXT_CONFIGS = ("text_encoder/config.json", "text_encoder_2/config.json")


def network_like(spec: UNetSpec, config: Mapping[str, object]) -> UNet2DConditionModel:
    """A U-Net of this spec without weights; settings outside the spec come from another U-Net's config."""
    own = spec.config()
    settings = {k: v for k, v in config.items() if not k.startswith("_") and not k.startswith("reverse_transformer")}
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(
            settings | own | {"sample_size": config.get("sample_size", own["sample_size"])}
        )


def folder_bytes(original: UNetCheckpoint, unet: Mapping[str, StoredTensor]) -> int:
    """The bytes that `write_folder` writes."""
    parts = (tensor for part in original.parts.values() for tensor in part.tensors.values())
    weights = sum(tensor.size for tensor in (*unet.values(), *original.markers.values(), *parts))
    return weights + sum(file.stat().st_size for file in (original.pipeline or {}).values())


def write_folder(
    folder: Path, original: UNetCheckpoint, network: UNet2DConditionModel, unet: Mapping[str, StoredTensor]
) -> None:
    """The U-Net `network` with these weights, in the pipeline of `original`; of a U-Net alone a U-Net's folder."""
    rest = original.pipeline or {}
    inside = folder / "unet" if rest else folder
    network.save_config(inside)
    write_tensors(inside / f"{STEMS['unet']}.safetensors", {**unet, **original.markers})
    for name, file in rest.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(file.read_bytes().removeprefix(codecs.BOM_UTF8))  # diffusers does not read a BOM
        if name in _TEXT_CONFIGS:
            _load_in_single(folder / name)
    for part, stored in original.parts.items():
        _write_part(folder / part / f"{STEMS[part]}.safetensors", stored)
    for name in TOKENIZERS if rest else ():
        complete_tokenizer(folder / name)


def _write_part(file: Path, stored: StoredNetwork) -> None:
    """A component's weights as one file: a copy of its own file, or its tensors under today's names."""
    files = {tensor.file for tensor in stored.tensors.values()}
    if len(files) == 1 and stored_tensors(next(iter(files))) == stored.tensors:
        check_values(stored.tensors.values())
        shutil.copyfile(files.pop(), file)
    else:
        write_tensors(file, stored.tensors)


def _load_in_single(config: Path) -> None:
    """Have transformers load half-precision text encoders in float32, as diffusers does the rest by default.

    It would keep the precision that the config names, and the pipeline would then fail at its first linear layer.
    """
    values = read_object(config)
    if {values.get("dtype"), values.get("torch_dtype")} - {None, "float32"}:
        values.pop("torch_dtype", None)
        config.write_text(json.dumps(values | {"dtype": "float32"}, indent=2) + "\n")
