"""KOALA's own U-Nets, at full size with random weights, on a machine without a GPU. Some 10 GB of disk."""

import json
import subprocess
import sys

import pytest

from koala.unet.costs import parameters
from koala.unet.specs import SPECS

pytestmark = pytest.mark.slow

MINUTES, MEMORY = 15, 8e9  # within which KOALA-700M is exported and has passed its gates
FILES = {"koala-700m": ["unet/model.onnx"], "koala-1b": ["unet/model.onnx", "unet/model.onnx_data"]}


@pytest.mark.parametrize("name", FILES)
def test_a_full_size_unet_is_exported_and_computes_what_torch_computes(name, tmp_path):
    out = tmp_path / "found.json"
    recipe = ["-m", "recipes.measure.full_size_export", "--work", str(tmp_path), "--models", name, "--out", str(out)]
    subprocess.run([sys.executable, *recipe], check=True)
    result = json.loads(out.read_text())["models"][name]
    print(json.dumps(result))
    assert list(result["files"]) == FILES[name]
    assert sum(result["files"].values()) == pytest.approx(2 * parameters(SPECS[name]), rel=0.01)
    assert {"structure", "numbers"} <= set(result["parity"]["passed"])
    if name == "koala-700m":
        assert result["seconds"] < 60 * MINUTES and result["peak_memory_bytes"] < MEMORY
