"""The report of a card: every section on small models, what does not fit, and the command."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from koala.cli.gpu_report import _exports
from koala.cli.main import main
from koala.gpu_report import distillation, exports, memory
from koala.gpu_report.budget import DONE, FAILED, NOT_HERE, Limit, NotHere
from koala.gpu_report.drawing import against_stock
from koala.gpu_report.report import run
from koala.gpu_report.scale import Scale
from koala.gpu_report.tables import FORMAT, TABLES, markdown
from koala.hardware.cuda import Card, DescribedCards, in_place
from koala.models.cards import CARDS
from koala.models.library import Library
from koala.models.random_weights import random_library
from koala.presets import PRESETS

CPU = torch.device("cpu")
TINY = "tiny-koala-700m"
SMALL = Scale(
    groups=(("tiny-sdxl", TINY), ("tiny-koala-1b",)),
    group_shares=(0.5, 1),
    sizes=(64,),
    preset_models=(TINY,),
    preset_size=64,
    plan_models=(TINY,),
    plan_size=64,
    plan_memories=(10**15, 2 * 10**9, 10**8),
    attention_model=TINY,
    attention_size=64,
    attention_steps=2,
    teacher="tiny-sdxl",
    student="koala-700m",
    resolution=64,
    batches=(2, 1),
    exported=TINY,
    steps=2,
    repeats=1,
    clicks=2,
)


# --- the budget, by a clock of our own


# --- the sections, on small models


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("report") / "gpu.json"


@pytest.fixture(scope="module")
def report(written) -> dict:
    """All of it on the CPU, as the verb measures a card; what is exported has tests of its own, which cost more."""

    def refuses(unet, folder):
        raise NotHere("nothing is exported here")

    def without_exports(folder: Path) -> exports.Exports:
        return dataclasses.replace(_exports(folder), write=refuses, builds=lambda: False)

    settings = dict(exports=without_exports, arguments=["gpu-report", "--out", "gpu.json"], minutes=120)
    return run(SMALL, CPU, written, say=lambda text: None, **settings)


def of(report: dict, name: str) -> dict:
    one = report["sections"][name]
    assert one["status"] == DONE, one["reason"]
    assert one["seconds"] > 0
    return one["found"]


@pytest.mark.slow
def test_the_file_is_the_report_and_says_how_it_was_made(report, written):
    assert json.loads(written.read_text()) == json.loads(json.dumps(report))
    assert written.with_suffix(".md").read_text() == markdown(report) + "\n"
    assert sorted(p.name for p in written.parent.iterdir()) == ["gpu.json", "gpu.md"]
    assert report["format"] == FORMAT and report["weights"] == "random" and report["seed"] == 0
    assert report["command"] == "python -m koala gpu-report --out gpu.json"
    assert {"torch", "diffusers", "transformers"} <= report["versions"].keys() and report["date"]
    assert report["card"].keys() == {
        "name", "capability", "driver", "cuda", "system", "free_bytes", "memory_bytes",
    }  # fmt: skip
    assert list(report["sections"]) == list(TABLES) and report["seconds"] > 0


@pytest.mark.slow
def test_every_number_of_the_report_is_one(report):
    """NaN and infinity are no JSON, and no measurement."""

    def numbers(value):
        if isinstance(value, dict | list | tuple):
            for one in value.values() if isinstance(value, dict) else value:
                yield from numbers(one)
        elif isinstance(value, float):
            yield value

    assert all(map(math.isfinite, numbers(report)))


@pytest.mark.slow
def test_latencies_are_of_every_model_at_every_size(report):
    rows = of(report, "latencies")["rows"]
    assert [r["model"] for r in rows] == ["tiny-sdxl", TINY, "tiny-koala-1b"]
    assert all(r["size"] == 64 and r["steps"] == 2 and r["total_ms"] > 0 for r in rows)
    assert [r["parameters"] for r in rows] == [CARDS[r["model"]].parameters for r in rows]


@pytest.mark.slow
def test_presets_are_measured_against_stock(report):
    own = of(report, "presets")
    (turbo,) = own["not_measured"]  # this model needs guidance, and turbo draws without
    assert turbo["preset"] == "turbo" and "needs guidance" in turbo["reason"] and not turbo["out_of_memory"]
    allowed = [name for name in PRESETS if name != "turbo"]
    assert [r["preset"] for r in own["rows"]] == ["stock", *allowed]
    assert [r["preset"] for r in own["against_stock"]] == allowed
    stock, quality = own["rows"][:2]
    assert own["against_stock"][0]["total"] == pytest.approx(stock["total_ms"] / quality["total_ms"])


def test_a_preset_without_stock_beside_it_has_no_ratio():
    row = {"model": "a", "preset": "fast", "total_ms": 50.0, "unet_step_ms": 4.0, "peak_memory_bytes": 3}
    stock = row | {"preset": "stock", "total_ms": 100.0, "unet_step_ms": 6.0, "peak_memory_bytes": 4}
    assert against_stock([row]) == []
    (ratio,) = against_stock([stock, row, row | {"model": "b"}])
    assert ratio == {"model": "a", "preset": "fast", "total": 2.0, "unet_step": 1.5, "peak_memory": 0.75}
    assert against_stock([stock, row | {"peak_memory_bytes": None}])[0]["peak_memory"] is None


@pytest.mark.slow
def test_plans_are_held_against_the_peak_and_a_refusal_is_a_row(report):
    own = of(report, "plans")
    assert [r["card_bytes"] for r in own["rows"]] == [2 * 10**9, 10**8]
    fits, refused = own["rows"]
    assert fits["refused"] is None and fits["predicted_bytes"] > fits["live_bytes"] > 0 and fits["peak_bytes"] > 0
    assert not fits["ran_out"] and fits["plan"]["text"] == "resident"
    assert "at the least" in refused["refused"] and "peak_bytes" not in refused
    (left,) = own["not_measured"]
    assert left["card_bytes"] == 10**15 and "of this card are free" in left["reason"]


@pytest.mark.slow
def test_distillation_takes_the_largest_batch_that_fits(report):
    rows = of(report, "distillation")["rows"]
    assert [r["gradient_checkpointing"] for r in rows] == [True, False]
    for row in rows:
        assert row["batch"] == 2 and row["precision"] == "fp32" and row["steps"] == distillation.STEPS
        assert row["pictures_per_second"] == pytest.approx(2000 / row["step_ms"])
        assert row["peak_bytes"] > 0 and row["predicted_bytes"] > 0


@pytest.mark.slow
def test_recording_and_a_click_are_timed(report):
    own = of(report, "attention")
    assert own["overhead"] == pytest.approx(own["recorded_ms"] / own["plain_ms"] - 1) and own["runs"] == 1
    assert own["record_bytes"] == own["planned_bytes"]
    assert own["click"]["grid"] == [4, 4] and own["click"]["stage"] in ("DW-2", "UP-2")
    assert 0 < own["click"]["one_step"]["median_ms"] <= own["click"]["one_step"]["most_ms"]


@pytest.mark.slow
def test_what_is_not_here_is_said_with_what_brings_it(report):
    reasons = {"onnx-runtime": "nothing is exported here", "tensorrt-rtx": "not installed; pip install tensorrt-rtx"}
    for name, reason in reasons.items():
        one = report["sections"][name]
        assert one["status"] == NOT_HERE and reason in one["reason"]
    assert "Not measured: not here. TensorRT-RTX is not installed" in markdown(report)


def computes_alike(library: Library, files: exports.Exports) -> None:
    own: dict = {}
    exports.onnx_runtime(SMALL, library, files, own, Limit(600), lambda text: None)
    assert own["provider"] == "CPUExecutionProvider"
    (row,) = own["rows"]
    assert row["faster"] == pytest.approx(row["torch_ms"] / row["onnxruntime_ms"])
    print(f"relative error {row['relative_error']:.1e}")
    assert row["relative_error"] < 5e-3  # the same network and the same tensors: it times nothing else


@pytest.mark.slow
def test_onnx_runtime_computes_what_torch_computes(library, exported_700m, tmp_path):
    """On the shipped model, whose export other tests make, too; half precision against single."""
    files = dataclasses.replace(_exports(tmp_path), write=lambda unet, folder: exported_700m / "unet" / "model.onnx")
    computes_alike(library, files)


@pytest.mark.slow
def test_a_random_unet_leaves_torch_for_onnx_runtime_and_for_an_engine(tmp_path):
    """The engine of TensorRT-RTX is built without a GPU, and cannot run without one."""
    random, files, built = random_library("cpu"), _exports(tmp_path), {}
    computes_alike(random, files)
    (file,) = tmp_path.rglob("*.onnx")
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(NotHere, match="the engine was built, and this device cannot run it"):
        exports.tensorrt_rtx(SMALL, random, files, built, Limit(60), print)
    assert built["engine_ms"] is None and built["engine_bytes"] > 2 * CARDS[TINY].parameters
    assert list(tmp_path.rglob("*.onnx")) == [file]  # written once for both


def test_onnx_runtime_without_the_cards_provider_is_told(monkeypatch):
    library = random_library("cpu")
    monkeypatch.setitem(exports.PROVIDERS, "cpu", "NoSuchExecutionProvider")
    with pytest.raises(NotHere, match=r"no NoSuchExecutionProvider, only .*pip install onnxruntime-gpu\[cuda,cudnn\]"):
        exports.onnx_runtime(SMALL, library, None, {}, Limit(60), print)


# --- what does not fit, and what runs out


def test_where_no_batch_fits_the_distillation_says_what_it_wants(monkeypatch):
    monkeypatch.setattr(distillation, "device_memory", lambda device: 10**6)
    own: dict = {}
    with pytest.raises(NotHere, match="no batch fits: this run takes .* GB per process, of which 0.0 GB are free"):
        distillation.distillation(SMALL, random_library("cpu"), own, Limit(60), print)
    assert own["rows"] == [] and len(own["not_measured"]) == 2


def test_a_plan_that_runs_out_of_memory_is_a_row_that_says_so(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(memory, "generate", broken)
    library, own = random_library("cpu"), {}
    memory.plans(dataclasses.replace(SMALL, plan_memories=(2 * 10**9,)), library, own, Limit(60), print)
    (row,) = own["rows"]
    assert row["ran_out"] and row["peak_bytes"] is None and row["predicted_bytes"] > 0
    assert library.memory > 2 * 10**9  # the library plans for the machine again


def test_sections_without_time_leave_their_rows_out():
    own: dict = {}
    memory.plans(SMALL, random_library("cpu"), own, Limit(0), print)
    assert own["rows"] == [] and {one["reason"] for one in own["not_measured"][1:]} == {"no time was left"}


# --- the verb


def test_without_a_card_it_says_so_in_one_line(tmp_path, capsys):
    if torch.version.cuda and torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    for device in ([], ["--device", "cpu"], ["--device", "cuda"]):
        assert main(["gpu-report", "--out", str(tmp_path / "gpu.json"), *device]) == 2
        message = capsys.readouterr()
        assert message.out == "" and len(message.err.splitlines()) == 1 and message.err.startswith("koala: ")
        assert "CUDA GPU is visible" in message.err or "CPU build" in message.err
    with pytest.raises(SystemExit) as stopped:
        main(["gpu-report", "--out", str(tmp_path / "gpu.json"), "--minutes", "1"])
    assert stopped.value.code == 2 and "not a number of minutes from 2 to 120; 9 is usual" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_card_on_which_nothing_runs_leaves_a_whole_file_of_reasons(tmp_path, capsys):
    """A described card: torch's CPU build refuses every tensor on it, so that each section fails in its own way."""
    if torch.version.cuda and torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    card = Card(name="Described", total_bytes=8 * 10**9, free_bytes=7 * 10**9, capability=(8, 6))
    out = tmp_path / "my secret folder" / "gpu.json"
    with in_place(DescribedCards([card], peak=lambda: 0, reset_peak=lambda: None)):
        assert main(["gpu-report", "--out", str(out), "--json"]) == 1
    message, report = capsys.readouterr(), json.loads(out.read_text())
    assert json.loads(message.out) == report
    assert {s["status"] for s in report["sections"].values()} <= {FAILED, NOT_HERE}
    assert "CUDA" in report["sections"]["plans"]["reason"]
    where = report["sections"]["plans"]["where"]
    assert where[-1].startswith("koala/models/random_weights.py:") and any(
        w.startswith("koala/gpu_report/") for w in where
    )
    assert report["card"]["memory_bytes"] == 8 * 10**9 and report["card"]["capability"] == "8.6"
    assert report["device"] == "Described" and report["command"] == "python -m koala gpu-report --out gpu.json"
    assert "my secret folder" not in out.read_text() + out.with_suffix(".md").read_text()
    assert "of 8:20  7 of 7, TensorRT-RTX" in message.err and "nothing could be measured" in message.err
