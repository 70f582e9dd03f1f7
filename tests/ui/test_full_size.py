"""SDXL and KOALA-700M at full size, random weights in the hub's layout: loaded, compared, measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from gradio_client import Client

from koala.models.random_weights import random_library

ROOT = Path(__file__).parents[2]
NAMES = ("sdxl-base", "koala-700m")

pytestmark = pytest.mark.slow  # ten minutes on one core, 11 GB of disk, 12 GB of memory


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Both pipelines as their authors published them: half precision, `.fp16.` in the names of the weights."""
    result, folder = [], tmp_path_factory.mktemp("full-size")
    for name in NAMES:  # one at a time: each is freed before the next is built
        pipeline = random_library("cpu", dtype="float16").get(name).pipeline
        pipeline.save_pretrained(folder / name, variant="fp16", max_shard_size="100GB")
        result.append(folder / name)
        del pipeline
    yield result
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def test_the_pair_is_compared_on_a_cpu_in_less_than_16_gb(folders, tmp_path):
    command = [sys.executable, "-m", "koala", "compare", "--models", *map(str, folders), "--prompt", "a red circle"]
    command += ["--steps", "2", "--width", "256", "--height", "256", "--dtype", "bfloat16", "--json"]
    done = subprocess.run([*command, "--out", tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    teacher, student = result["models"]
    assert (teacher["parameters"], student["parameters"]) == (2_567_463_684, 782_822_724)
    assert {m["dtype"] for m in result["models"]} == {"bfloat16"}
    peak = max(m["timing"]["peak_memory_bytes"] for m in result["models"])
    predicted = teacher["plan"]["predicted_peak_bytes"]
    print(f"peak {peak / 1e9:.2f} GB, predicted {predicted / 1e9:.2f} GB; {result['speedup']}")
    assert peak < 16e9
    assert peak == pytest.approx(predicted, rel=0.25)
    assert result["speedup"]["models"][0]["per_call"] > 1.5


def test_the_app_compares_the_pair_in_the_precision_that_fits(folders, serve, tmp_path):
    names = [str(f) for f in folders]
    client = Client(serve("--vram", "16", "--models", *names).url, verbose=False, download_files=str(tmp_path))
    asked = dict(models=names, prompt="a red circle", steps=2, width=256, height=256)
    files, result = client.predict(**asked, api_name="/compare")
    assert len(files) == 2
    for entry in result["models"]:
        assert entry["dtype"] == "bfloat16"
        peak, plan = entry["timing"]["peak_memory_bytes"], entry["plan"]
        print(f"peak {peak / 1e9:.2f} GB, predicted {plan['predicted_peak_bytes'] / 1e9:.2f} GB")
        assert peak < 16e9


@pytest.mark.parametrize(("which", "parameters"), [(0, 2_567_463_684), (1, 782_822_724)], ids=NAMES)
def test_both_load_in_plain_diffusers(folders, which, parameters):
    pipeline = StableDiffusionXLPipeline.from_pretrained(folders[which], variant="fp16", torch_dtype=torch.float16)
    assert sum(p.numel() for p in pipeline.unet.parameters()) == parameters
    assert (pipeline.unet.mid_block is None) == (which == 1)
