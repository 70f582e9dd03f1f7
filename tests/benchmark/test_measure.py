"""The benchmark: every cell is measured or named, models take turns, and the prediction is next to each figure."""

import itertools
import json
import statistics
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from koala.benchmark.calibration import Yardstick
from koala.benchmark.matrix import STOCK, Matrix
from koala.benchmark.measure import Row, Skipped, measure
from koala.benchmark.report import markdown, report
from koala.benchmark.stock import stock
from koala.cli.main import main
from koala.errors import UserError
from koala.hardware.latency import predict
from koala.models.cards import CARDS
from koala.models.library import Library
from koala.models.random_weights import random_library
from koala.request import GenerationRequest
from koala.sampling.generate import Cancelled, generate
from koala.unet.costs import flops
from koala.unet.parts import TINY_PARTS
from koala.unet.specs import TINY_KOALA_1B, TINY_KOALA_700M

ROOT = Path(__file__).parents[2]
MODELS = ("tiny-koala-1b", "tiny-koala-700m")
SMALL = dict(models=MODELS, sizes=(64,), steps=2, repeats=2)
CIRCUMSTANCES = {
    "command": "python -m koala bench",
    "device": "a CPU",
    "date": "2026-01-01",
    "versions": {"torch": "2"},
}


@pytest.fixture(scope="module")
def messages() -> list[str]:
    return []


@pytest.fixture(scope="module")
def rows(library: Library, messages: list[str]) -> list[Row]:
    matrix = Matrix(**SMALL, presets=("quality", "fast", STOCK))
    return list(measure(matrix, library, on_run=messages.append))


def test_every_cell_is_measured(rows):
    assert [(r.preset, r.model) for r in rows] == list(itertools.product(("quality", "fast", STOCK), MODELS))
    for row in rows:
        assert row.repeats == 2 and row.steps == 2 and row.size == 64
        assert row.unet_calls == (3 if row.preset == "fast" else 4)  # the fast preset guides half of the steps
        assert 0 < row.text_ms < row.total_ms and 0 < row.vae_ms < row.total_ms
        assert row.unet_ms == pytest.approx(2 * row.unet_step_ms)
        assert row.total_range_ms[0] <= row.total_ms <= row.total_range_ms[1]
        assert row.pictures_per_second == pytest.approx(1000 / row.total_ms)
        assert row.parameters == CARDS[row.model].parameters
        assert (row.plan is None) == (row.preset == STOCK)


def test_models_take_turns(rows, messages):
    turns = [text.partition(",")[0] for text in messages if "run 1 of 2" in text]
    assert turns == list(MODELS) * 3
    assert next(k for k, t in enumerate(messages) if "run 2" in t) > max(
        k for k, t in enumerate(messages) if "run 1" in t
    )


def test_the_prediction_knows_what_differs(rows):
    """Not how fast this machine is just now: that the smaller model and the fewer calls cost less, by how much."""
    steps = {(r.preset, r.model): r.predicted["unet_step_ms"] for r in rows}
    ratio = flops(TINY_KOALA_1B, width=64, height=64) / flops(TINY_KOALA_700M, width=64, height=64)
    assert steps["quality", "tiny-koala-1b"] / steps["quality", "tiny-koala-700m"] == pytest.approx(ratio)
    assert steps[STOCK, "tiny-koala-1b"] == steps["quality", "tiny-koala-1b"]
    assert len({r.predicted["vae_ms"] for r in rows}) == 1


@pytest.mark.slow
def test_the_prediction_of_memory_counts_all_models_of_the_process(tmp_path):
    """In a process of its own: what other tests left in memory is nobody's prediction."""
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "koala", "bench", "--models", *MODELS, "--sizes", "64", "--steps", "2"]
    done = subprocess.run([*command, "--repeats", "2", "--out", out], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for row in json.loads(out.read_text())["rows"]:
        assert row["memory_of"] == "process"
        assert row["predicted"]["peak_memory_bytes"] == pytest.approx(row["peak_memory_bytes"], rel=0.6)
        others = sum(CARDS[name].parameters for name in MODELS if name != row["model"])
        assert row["predicted"]["peak_memory_bytes"] >= row["plan"]["predicted_peak_bytes"] + 4 * others


def test_a_batch_is_measured_as_one_run(library):
    (row,) = measure(Matrix(models=MODELS[1:], sizes=(64,), batch=(2,), steps=1, repeats=1), library)
    assert row.images == 2 and row.pictures_per_second == pytest.approx(2000 / row.total_ms)


def test_cells_that_are_not_reached_are_named(library):
    cells = list(measure(Matrix(**SMALL, time_limit=1e-3), library))
    assert [type(c) for c in cells] == [Skipped, Skipped]
    assert cells[0].reason == "not reached within 0.001 s" and not cells[0].out_of_memory


def test_a_cell_without_a_memory_plan_is_out_of_memory():
    (cell,) = measure(Matrix(models=MODELS[1:], sizes=(64,)), random_library("cpu", memory=10**8))
    assert cell.out_of_memory and "at the least" in cell.reason


def test_stopping_ends_a_run_within_a_step(library):
    cancel = threading.Event()
    cells = measure(Matrix(**SMALL, presets=(STOCK,)), library, cancel=cancel, on_run=lambda text: cancel.set())
    with pytest.raises(Cancelled):
        next(cells)


def test_stock_draws_the_pixels_of_the_quality_preset(library):
    """The baseline is the pipeline that our runs are bit-identical to, so its latents are ours."""
    model = library.get(MODELS[1])
    request = GenerationRequest(
        model=MODELS[1],
        prompt="a red circle",
        seed=3,
        steps=2,
        guidance=5.0,
        width=64,
        height=64,
        scheduler="euler-trailing",
    )
    drawn = []
    hook = model.pipeline.vae.decoder.register_forward_pre_hook(lambda module, args: drawn.append(args[0].clone()))
    try:
        with model.lock:
            stock(model, request, threading.Event())
        generate(request, model, num_previews=0)
    finally:
        hook.remove()
    difference = (drawn[0] - drawn[-1]).abs()
    print(f"max {difference.max():.2e}, mean {difference.mean():.2e}")
    assert torch.equal(drawn[0], drawn[-1])


def test_a_yardstick_predicts_what_it_measured(library):
    vae = library.get(MODELS[1]).pipeline.vae
    yardstick = Yardstick(TINY_KOALA_700M, vae, device=library.device, width=64, height=64, images=1)
    for _ in range(3):
        yardstick.run()
    assert {name: len(times) for name, times in yardstick.seconds.items()} == {"guided": 3, "unguided": 3, "vae": 3}
    predicted = predict(yardstick.spec, yardstick.hardware(), width=64, height=64, steps=1, guided=True)
    assert predicted.unet_ms[0] / 1000 == pytest.approx(statistics.median(yardstick.seconds["guided"][1:]))
    work = TINY_PARTS.vae.decoder(width=64, height=64)[1]
    assert predicted.vae_ms / 1000 == pytest.approx(work / yardstick.hardware().vae / 1e12)


def test_random_models_have_the_real_shape_and_draw_finite_pictures():
    library = random_library("cpu")
    first, second = library.get_all(["tiny-sdxl", "tiny-koala-700m"])
    assert first.parameters == CARDS["tiny-sdxl"].parameters
    assert first.pipeline.text_encoder_2 is second.pipeline.text_encoder_2
    assert first.pipeline.vae is second.pipeline.vae
    request = GenerationRequest(model="tiny-koala-700m", prompt="anything", steps=2, width=64, height=64)
    (picture,) = generate(request, second).images
    assert len(picture.getcolors(64 * 64)) > 1  # neither black nor NaN
    with pytest.raises(UserError, match="no random one can be built"):
        library.get("someone/something")


@pytest.mark.slow
def test_a_full_size_model_needs_no_files():
    library = random_library("cpu", dtype="bfloat16")
    matrix = Matrix(models=("koala-700m",), sizes=(64,), steps=1, repeats=1, presets=("fast",))
    (row,) = measure(matrix, library)
    assert row.parameters == 782_822_724
    assert row.plan["tiny_vae"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(models=()), "at least one of its models"),
        (dict(sizes=(64, 64)), "64 is listed twice in the sizes"),
        (dict(sizes=(100,)), "width must be a multiple of 32"),
        (dict(batch=(99,)), "images must lie between"),
        (dict(steps=0), "steps must lie between"),
        (dict(presets=("swift",)), "unknown preset 'swift'; choose from quality, fast, turbo, low-memory, stock"),
        (dict(repeats=0), "repeats must lie between"),
        (dict(time_limit=0), "time limit must be above 0"),
    ],
)
def test_a_matrix_that_cannot_run_says_why(change, message):
    with pytest.raises(UserError, match=message):
        Matrix(**SMALL | change)


def test_the_table_has_the_rows_of_the_papers_figure(rows):
    late = Skipped(model=MODELS[0], preset="quality", size=128, images=2, out_of_memory=True, reason="too big")
    results = report(Matrix(**SMALL), [*rows, late], random_weights=False) | CIRCUMSTANCES
    lines = markdown(results).splitlines()
    assert lines[0].startswith("| model | preset | 64 px: s | predicted | GB | predicted | 128 px x 2: s |")
    assert lines[2].startswith("| tiny-koala-1b | quality | ") and "| OOM |" in lines[2]
    assert len({line.count("|") for line in lines[:8]}) == 1
    assert "- tiny-koala-1b, quality, 128 px, batch 2: too big" in lines
    assert json.loads(json.dumps(results))["not_reached"][0]["size"] == 128


def test_a_speed_up_is_against_the_first_model_on_equal_terms(rows):
    speedup = report(Matrix(**SMALL), rows, random_weights=False)["speedup"]
    assert speedup["baseline"] == MODELS[0]
    assert [(s["model"], s["preset"]) for s in speedup["rows"]] == [(MODELS[1], p) for p in ("quality", "fast", STOCK)]
    assert speedup["rows"][0]["total"] == pytest.approx(rows[0].total_ms / rows[1].total_ms)


def test_the_command_writes_json_and_a_table_beside_it(tmp_path, capsys):
    out = tmp_path / "new" / "bench.json"
    options = ["--sizes", "64", "--steps", "1", "--repeats", "1", "--device", "cpu", "--random-weights"]
    assert main(["bench", "--models", MODELS[1], *options, "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    assert printed["random_weights"] and printed["rows"][0]["model"] == MODELS[1]
    assert {"command", "device", "versions", "date"} <= printed.keys()
    assert "random weights" in out.with_suffix(".md").read_text()


def test_the_command_refuses_what_it_cannot_do(tmp_path, capsys):
    assert main(["bench", "--models", "tiny-sdlx", "--out", str(tmp_path / "a.json")]) == 2
    assert "did you mean tiny-sdxl" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--models", MODELS[1], "--out", str(tmp_path / "a.txt")])
    assert stopped.value.code == 2 and "does not end in .json" in capsys.readouterr().err
