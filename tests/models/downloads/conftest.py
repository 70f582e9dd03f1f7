"""A hub of our own on the loopback, models as it has them, and Python in a process that knows no other hub.

Each command is a process of its own, as huggingface_hub reads its environment once.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from koala.models.cards import EMBEDDED
from tests.models.downloads.hub_server import Hub

OWN = "someone/small-koala"
SMALL = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{part}/config.json" for part in ("text_encoder", "text_encoder_2", "unet")),
    *(
        f"{folder}/{file}"
        for folder in ("tokenizer", "tokenizer_2")
        for file in ("merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json")
    ),
]
TEXT = ["text_encoder/model.fp16.safetensors", "text_encoder_2/model.fp16.safetensors"]
UNET, VAE = (f"{part}/diffusion_pytorch_model.fp16.safetensors" for part in ("unet", "vae"))
CHUNK = 10 * 2**20  # bytes that huggingface_hub writes at once


def published(model: str, folder: Path) -> Path:
    """An embedded model as the hub has one: half-precision files among every other format, which is not wanted."""
    shutil.copytree(EMBEDDED / model, folder)
    for file in list(folder.glob("*/*.safetensors")):
        file.rename(file.with_suffix(".fp16.safetensors"))
        for suffix in (".safetensors", ".bin", ".fp16.bin", ".onnx", ".msgpack"):
            file.with_suffix(suffix).write_bytes(b"not wanted" + suffix.encode())
    for extra in ("vae_decoder/model.onnx", "sd_xl_base_1.0.safetensors", "README.md", "unet/openvino.bin"):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_bytes(b"not wanted " + extra.encode())
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return published("tiny-koala-700m", tmp_path_factory.mktemp("hub") / "student")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return published("tiny-sdxl", tmp_path_factory.mktemp("hub") / "teacher")


@pytest.fixture
def hub():
    with Hub() as result:
        yield result


@pytest.fixture
def run(hub, tmp_path):
    """Run Python, with this hub and an empty cache: run("-m", "koala", ...); a dead hub or none by `environment`."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        own = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "",
        }
        removed = ("HF_HUB_CACHE", "TRANSFORMERS_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
        inherited = {k: v for k, v in os.environ.items() if k not in removed}
        command = [sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=inherited | own | environment, timeout=120)

    return run


def blobs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "home" / "hub").glob("models--*/blobs/*"))
