"""A CLIP that is small enough for a test: random weights, the embedded models' own tokenizer."""

import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from koala.models.cards import EMBEDDED


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """A folder that transformers reads as CLIP."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tiny-sdxl" / "tokenizer")
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**layers, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 77, "projection_dim": 24}
    vision = {**layers, "image_size": 32, "patch_size": 8, "projection_dim": 24}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
