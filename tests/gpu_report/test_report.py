"""The report of a card: its sections on small models, its budget by a clock of the test's own, its text by hand."""

import dataclasses
import gc
import json
import math
import weakref
from pathlib import Path

import pytest
import torch

from koala.cli.gpu_report import _exports
from koala.cli.main import main
from koala.gpu_report import distillation, exports, memory
from koala.gpu_report.budget import DONE, FAILED, LEFT_OUT, NOT_HERE, Limit, NotHere, Section, measure
from koala.gpu_report.drawing import against_stock
from koala.gpu_report.paper import OOM, ROWS
from koala.gpu_report.report import run, sections
from koala.gpu_report.scale import FULL, Scale, alike
from koala.gpu_report.tables import FORMAT, TABLES, markdown
from koala.hardware.cuda import Card, DescribedCards, in_place
from koala.models.cards import CARDS
from koala.models.library import Library
from koala.models.random_weights import random_library
from koala.presets import PRESETS
from koala.unet.specs import KOALA_700M, SDXL
from recipes.tools.readme_tables import cards

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


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def section(name: str, clock: Clock, takes: float, share: float = 100, least: float = 10, ends=None) -> Section:
    """One that takes so many seconds of the clock and notes what it was allowed."""

    def work(found: dict, limit: Limit, say) -> None:
        found["allowed"] = limit.left
        clock.now += takes
        if ends:
            raise ends

    return Section(name=name, title=name.title(), share=share, least=least, work=work)


def budget(clock: Clock, *chosen: Section, **more) -> tuple[dict, list[str]]:
    said: list[str] = []
    return measure(chosen, say=said.append, clock=clock, **more), said


def test_what_a_section_leaves_is_for_those_behind_it():
    clock = Clock()
    found, said = budget(clock, section("a", clock, 30), section("b", clock, 0), section("c", clock, 150))
    assert [o.status for o in found.values()] == [DONE] * 3
    assert [o.found["allowed"] for o in found.values()] == [100, 170, 270]
    assert found["a"].seconds == 30 and found["c"].seconds == 150
    assert said == [
        "0:00 of 5:00  1 of 3, A: 100 s at most",
        "0:30 of 5:00  2 of 3, B: 170 s at most",
        "0:30 of 5:00  3 of 3, C: 270 s at most",
    ]


def test_a_section_that_would_end_too_late_is_left_out_with_the_reason_and_the_next_has_its_own_share():
    clock = Clock()
    found, said = budget(clock, section("a", clock, 195), section("b", clock, 1), section("c", clock, 1))
    assert [o.status for o in found.values()] == [DONE, LEFT_OUT, DONE]
    assert found["b"].reason == "it takes 10 s at the least, and of 300 s 5 were left for it"
    assert found["b"].found == {} and found["c"].found == {"allowed": 105}
    assert "3:15 of 5:00  2 of 3, B: left out, it takes 10 s" in said[1]


def test_a_section_that_fails_is_told_and_the_rest_go_on():
    clock = Clock()
    chosen = [
        section("a", clock, 5, ends=ValueError("no such kernel")),
        section("b", clock, 5, ends=NotHere("no TensorRT")),
        section("c", clock, 5),
    ]
    kept: list[list[str]] = []
    told = lambda error: f"{type(error).__name__}: {error}"  # noqa: E731
    found, said = budget(clock, *chosen, told=told, after=lambda outcomes: kept.append(list(outcomes)))
    assert [o.status for o in found.values()] == [FAILED, NOT_HERE, DONE]
    assert [o.reason for o in found.values()] == ["ValueError: no such kernel", "no TensorRT", None]
    assert found["a"].found == {"allowed": 100} and found["a"].seconds == 5  # what was measured before it failed
    assert kept == [["a"], ["a", "b"], ["a", "b", "c"]]
    assert any("A: failed, ValueError: no such kernel" in line for line in said)


def test_a_section_that_failed_holds_nothing_any_more():
    """Its frame holds the error and the error its frame, so that the tensor would stay until the next collection."""
    clock, held = Clock(), []

    def work(found, limit, say) -> None:
        tensor = torch.zeros(3)
        held.append(weakref.ref(tensor))
        error = RuntimeError("CUDA error: out of memory")
        raise error

    gc.disable()
    try:
        budget(clock, Section(name="a", title="A", share=10, least=1, work=work))
        assert held[0]() is None
    finally:
        gc.enable()


def test_whoever_stops_the_report_stops_it():
    clock = Clock()
    with pytest.raises(KeyboardInterrupt):
        budget(clock, section("a", clock, 1, ends=KeyboardInterrupt()))


def test_the_full_report_ends_within_nine_minutes_and_begins_with_the_latencies():
    chosen = sections(FULL, CPU, exports=None)
    assert sum(s.share for s in chosen) == pytest.approx(500)  # and 40 to begin, and to end what is under way
    longer = sections(FULL, CPU, exports=None, minutes=30)
    assert sum(s.share for s in longer) == pytest.approx(30 * 60 - 40)
    assert [s.least for s in longer] == [s.least for s in chosen]
    assert all(s.least <= s.share for s in chosen)
    assert [s.name for s in chosen] == list(TABLES)


# --- what is measured at full size


def test_every_full_size_model_of_the_registry_is_measured_once():
    names = [name for group in FULL.groups for name in group]
    full = {card.name for card in CARDS.values() if card.spec.channels == SDXL.channels}
    assert len(set(names)) == len(names) and set(names) <= full
    assert {*names, *(other for name in names for other in alike(name))} == full
    assert FULL.groups[0] == ("sdxl-base", "koala-1b", "koala-700m")
    assert alike("sdxl-turbo") == ["sdxl-lightning-4step"] and alike("sdxl-base") == []
    assert {len({CARDS[n].spec for n in group}) for group in FULL.groups} <= {2, 3}  # U-Nets in memory at once


def test_the_papers_rows_are_of_models_that_are_measured():
    assert set(ROWS) <= {name for group in FULL.groups for name in group}
    assert ROWS["koala-lightning-700m"].cells == ((0.66, 8.3), (1.94, 8.2), (2.88, 6.8))
    assert ROWS["sdxl-base"].cells[2] == OOM
    assert all(row.size == CARDS[name].width for name, row in ROWS.items())


# --- the sections, on small models


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("report") / "gpu.json"


@pytest.fixture(scope="module")
def found(written) -> dict:
    """All of it on the CPU, as the verb measures a card; what is exported has tests of its own, which cost more."""

    def refuses(unet, folder):
        raise NotHere("nothing is exported here")

    def without_exports(folder: Path) -> exports.Exports:
        return dataclasses.replace(_exports(folder), write=refuses, builds=lambda: False)

    settings = dict(exports=without_exports, arguments=["gpu-report", "--out", "gpu.json"], minutes=120)
    return run(SMALL, CPU, written, say=lambda text: None, **settings)


def of(found: dict, name: str) -> dict:
    one = found["sections"][name]
    assert one["status"] == DONE, one["reason"]
    assert one["seconds"] > 0
    return one["found"]


def test_the_file_is_the_report_and_says_how_it_was_made(found, written):
    assert json.loads(written.read_text()) == json.loads(json.dumps(found))
    assert written.with_suffix(".md").read_text() == markdown(found) + "\n"
    assert sorted(p.name for p in written.parent.iterdir()) == ["gpu.json", "gpu.md"]
    assert found["format"] == FORMAT and found["weights"] == "random" and found["seed"] == 0
    assert found["command"] == "python -m koala gpu-report --out gpu.json"
    assert {"torch", "diffusers", "transformers"} <= found["versions"].keys() and found["date"]
    assert found["card"].keys() == {
        "name", "capability", "driver", "cuda", "system", "free_bytes", "memory_bytes",
    }  # fmt: skip
    assert list(found["sections"]) == list(TABLES) and found["seconds"] > 0


def test_every_number_of_the_report_is_one(found):
    """NaN and infinity are no JSON, and no measurement."""

    def numbers(value):
        if isinstance(value, dict | list | tuple):
            for one in value.values() if isinstance(value, dict) else value:
                yield from numbers(one)
        elif isinstance(value, float):
            yield value

    assert all(map(math.isfinite, numbers(found)))


def test_latencies_are_of_every_model_at_every_size(found):
    rows = of(found, "latencies")["rows"]
    assert [r["model"] for r in rows] == ["tiny-sdxl", TINY, "tiny-koala-1b"]
    assert all(r["size"] == 64 and r["steps"] == 2 and r["total_ms"] > 0 for r in rows)
    assert [r["parameters"] for r in rows] == [CARDS[r["model"]].parameters for r in rows]


def test_presets_are_measured_against_stock(found):
    own = of(found, "presets")
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


def test_plans_are_held_against_the_peak_and_a_refusal_is_a_row(found):
    own = of(found, "plans")
    assert [r["card_bytes"] for r in own["rows"]] == [2 * 10**9, 10**8]
    fits, refused = own["rows"]
    assert fits["refused"] is None and fits["predicted_bytes"] > fits["live_bytes"] > 0 and fits["peak_bytes"] > 0
    assert not fits["ran_out"] and fits["plan"]["text"] == "resident"
    assert "at the least" in refused["refused"] and "peak_bytes" not in refused
    (left,) = own["not_measured"]
    assert left["card_bytes"] == 10**15 and "of this card are free" in left["reason"]


def test_distillation_takes_the_largest_batch_that_fits(found):
    rows = of(found, "distillation")["rows"]
    assert [r["gradient_checkpointing"] for r in rows] == [True, False]
    for row in rows:
        assert row["batch"] == 2 and row["precision"] == "fp32" and row["steps"] == distillation.STEPS
        assert row["pictures_per_second"] == pytest.approx(2000 / row["step_ms"])
        assert row["peak_bytes"] > 0 and row["predicted_bytes"] > 0


def test_recording_and_a_click_are_timed(found):
    own = of(found, "attention")
    assert own["overhead"] == pytest.approx(own["recorded_ms"] / own["plain_ms"] - 1) and own["runs"] == 1
    assert own["record_bytes"] == own["planned_bytes"]
    assert own["click"]["grid"] == [4, 4] and own["click"]["stage"] in ("DW-2", "UP-2")
    assert 0 < own["click"]["one_step"]["median_ms"] <= own["click"]["one_step"]["most_ms"]


def test_what_is_not_here_is_said_with_what_brings_it(found):
    reasons = {"onnx-runtime": "nothing is exported here", "tensorrt-rtx": "not installed; pip install tensorrt-rtx"}
    for name, reason in reasons.items():
        one = found["sections"][name]
        assert one["status"] == NOT_HERE and reason in one["reason"]
    assert "Not measured: not here. TensorRT-RTX is not installed" in markdown(found)


def computes_alike(library: Library, made: exports.Exports) -> None:
    own: dict = {}
    exports.onnx_runtime(SMALL, library, made, own, Limit(600), lambda text: None)
    assert own["provider"] == "CPUExecutionProvider"
    (row,) = own["rows"]
    assert row["faster"] == pytest.approx(row["torch_ms"] / row["onnxruntime_ms"])
    print(f"relative error {row['relative_error']:.1e}")
    assert row["relative_error"] < 5e-3  # the same network and the same tensors: it times nothing else


def test_onnx_runtime_computes_what_torch_computes(library, exported_700m, tmp_path):
    """On the shipped model, whose export other tests make, too; half precision against single."""
    made = dataclasses.replace(_exports(tmp_path), write=lambda unet, folder: exported_700m / "unet" / "model.onnx")
    computes_alike(library, made)


@pytest.mark.slow
def test_a_random_unet_leaves_torch_for_onnx_runtime_and_for_an_engine(tmp_path):
    """The engine of TensorRT-RTX is built without a GPU, and cannot run without one."""
    random, made, built = random_library("cpu"), _exports(tmp_path), {}
    computes_alike(random, made)
    (file,) = tmp_path.rglob("*.onnx")
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(NotHere, match="the engine was built, and this device cannot run it"):
        exports.tensorrt_rtx(SMALL, random, made, built, Limit(60), print)
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


# --- the text, against numbers by hand


HAND = {
    "device": "NVIDIA GeForce RTX 4070",
    "command": "python -m koala gpu-report --out gpu.json",
    "date": "2026-11-29",
    "versions": {"torch": "2.13.0+cu130"},
    "seed": 0,
    "seconds": 401.4,
    "budget_seconds": 500,
    "card": {"memory_bytes": 12_878_086_144, "driver": "580.95.05", "cuda": "13.0", "system": "Windows AMD64"},
}
LATENCY = {"model": "sdxl-base", "size": 1024, "steps": 25, "guidance": 7.5, "total_ms": 5432.1, "speaks_for": []}


def section_of(name: str, found: dict, status: str = DONE, reason: str | None = None) -> str:
    one = {"title": "T", "status": status, "reason": reason, "seconds": 1.0, "found": found}
    return markdown(HAND | {"sections": {name: one}}).partition("## T\n\n")[2]


def test_the_head_names_the_card_its_driver_and_the_weights():
    assert markdown(HAND | {"sections": {}}) == (
        "# NVIDIA GeForce RTX 4070\n\n12.9 GB, driver 580.95.05, CUDA 13.0, Windows AMD64; 2026-11-29; torch "
        "2.13.0+cu130; random weights of the real sizes, seed 0; measured in 401 s; medians, the models in turn. "
        "`python -m koala gpu-report --out gpu.json`"
    )


def test_latencies_stand_beside_the_papers_of_its_own_cards():
    base = LATENCY | {"peak_memory_bytes": 8_764_000_000}
    koala = base | {"model": "koala-700m", "total_ms": 2000.0, "speaks_for": ["koala-700m-llava-cap"]}
    turbo = base | {"model": "sdxl-turbo", "size": 512, "steps": 4, "guidance": 0.0, "total_ms": 321.0}
    text = section_of("latencies", {"rows": [base, koala, turbo], "not_measured": []})
    lines = text.splitlines()
    assert lines[0] == (
        "| model | steps | 512 px: s | peak GB | 1024 px: s | peak GB | paper, RTX 4090, 24 GB | "
        "paper, RTX 2080 Ti, 11 GB | paper, RTX 3060 Ti, 8 GB |"
    )
    assert lines[2] == "| sdxl-base | 25, guided | - | - | 5.43 | 8.76 | 3.23 s, 11.9 GB | 9.65 s, 10.4 GB | OOM |"
    assert lines[3] == (
        "| koala-700m, koala-700m-llava-cap | 25, guided | - | - | 2 | 8.76 | 1.42 s, 9.5 GB † | 4.33 s, 8.9 GB † | "
        "6.21 s, 7.7 GB † |"
    )
    assert lines[4] == "| sdxl-turbo | 4 | 0.321 | 8.76 | - | - | - | - | - |"
    assert "of its own cards and software" in text and "not to be divided by them" in text


def test_presets_and_plans_by_hand():
    ratio = {"model": "sdxl-base", "preset": "fast", "total": 2.345, "unet_step": 1.5, "peak_memory": 0.81}
    assert section_of("presets", {"against_stock": [ratio]}).splitlines()[2] == (
        "| sdxl-base | fast | 2.35x | 1.50x | 81 % |"
    )
    plan = {"dtype": "float16", "text": "released", "unet": "exchanged", "vae_tile": 64}
    row = {"model": "koala-700m", "card_bytes": 4 * 10**9, "refused": None, "plan": plan, "ran_out": False}
    row |= {"predicted_bytes": 2.5e9, "live_bytes": 2.2e9, "peak_bytes": 2.31e9, "reserved_bytes": 2.6e9}
    refused = {"model": "sdxl-base", "card_bytes": 3 * 10**9, "refused": "too small"}
    left = {"model": "koala-1b", "card_bytes": 24 * 10**9, "reason": "11.9 GB of this card are free"}
    lines = section_of("plans", {"rows": [row, row | {"ran_out": True, "peak_bytes": None}, refused],
                                 "not_measured": [left]}).splitlines()  # fmt: skip
    start = "| koala-700m | 4 GB | text released, U-Net exchanged, tiles of 512 px | 2.50 | 2.20 | "
    assert lines[2] == start + "2.31 | 105 % | 2.60 |" and lines[3] == start + "ran out | - | 2.60 |"
    assert lines[4] == "| sdxl-base | 3 GB | no plan fits | - | - | - | - | - |"
    assert lines[6] == "- not measured: koala-1b, a card of 24 GB: 11.9 GB of this card are free"


def test_distillation_attention_and_runtimes_by_hand():
    row = {"teacher": "sdxl-base", "student": "koala-700m", "size": 1024, "batch": 4, "gradient_checkpointing": True}
    row |= {"ran_out": False, "pictures_per_second": 1.234, "peak_bytes": 21.04e9, "predicted_bytes": 22.5e9}
    assert section_of("distillation", {"rows": [row]}).splitlines()[2] == (
        "| koala-700m of sdxl-base | 1024 px | 4 | yes | 1.23 | 21.04 | 22.50 |"
    )
    click = {"grid": [64, 64], "heads": 10, "one_step": {"median_ms": 2.04}, "mean_of_steps": {"median_ms": 18.96}}
    own = {"model": "koala-700m", "size": 1024, "steps": 10, "plain_ms": 1000.0, "recorded_ms": 1036.0, "runs": 3}
    assert section_of("attention", own | {"overhead": 0.036, "click": click}) == (
        "Recording one layer of each stage, with its words, over 10 steps of koala-700m at 1024 px: +3.6 % of a run "
        "(1 s without, 1.04 s with; medians of 3). A click on a 64x64 map of 10 heads: 2.0 ms, and 19.0 ms on the "
        "mean of all steps."
    )
    call = {"size": 512, "torch_ms": 30.0, "onnxruntime_ms": 20.0, "faster": 1.5, "relative_error": 0.0012}
    own = {"model": "koala-700m", "provider": "CUDAExecutionProvider", "version": "1.31.1", "rows": [call]}
    assert section_of("onnx-runtime", own).splitlines()[2] == "| koala-700m | 512 px | 30.0 | 20.0 | 1.50x | 1.2e-03 |"
    own = {"model": "koala-700m", "size": 1024, "version": "1.7", "engine_ms": 25.0, "torch_ms": 50.0, "faster": 2.0}
    assert section_of("tensorrt-rtx", own | {"engine_bytes": 1.6e9, "build_seconds": 31.4}).startswith(
        "TensorRT-RTX 1.7: a guided call of koala-700m at 1024 px takes 25.0 ms, torch 50.0 ms (2.00x); its engine of "
        "1.60 GB was built in 31 s."
    )


def test_what_was_not_measured_is_in_the_text_too():
    assert section_of("presets", {}, LEFT_OUT, "it takes 20 s at the least") == (
        "Not measured: left out. It takes 20 s at the least."
    )
    rows = {"rows": [LATENCY | {"peak_memory_bytes": None}], "not_measured": []}
    text = section_of("latencies", rows, FAILED, "RuntimeError: CUDA error")
    assert text.startswith("Not measured: failed. RuntimeError: CUDA error.\n\n| model |") and "| sdxl-base |" in text


# --- where reports are collected


def test_reports_that_were_sent_in_are_collected_and_other_files_are_not(tmp_path):
    assert cards(tmp_path) == "No card's report has been sent in yet.\n"
    (tmp_path / "gpu-rehearsal.json").write_text(json.dumps({"rows": []}))
    assert cards(tmp_path) == "No card's report has been sent in yet.\n"
    one = HAND | {"format": FORMAT, "sections": {}}
    (tmp_path / "gpu-rtx-4070.json").write_text(json.dumps(one))
    (tmp_path / "gpu-a10.json").write_text(json.dumps(one | {"device": "NVIDIA A10"}))
    text = cards(tmp_path)
    assert text.startswith("### NVIDIA A10\n\n12.9 GB") and text.count("### ") == 2
    assert "[Its report](measurements/gpu-rtx-4070.json)." in text


# --- the verb


def test_without_a_card_it_says_so_in_one_line(tmp_path, capsys):
    if torch.version.cuda and torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    for device in ([], ["--device", "cpu"], ["--device", "cuda"]):
        assert main(["gpu-report", "--out", str(tmp_path / "gpu.json"), *device]) == 2
        said = capsys.readouterr()
        assert said.out == "" and len(said.err.splitlines()) == 1 and said.err.startswith("koala: ")
        assert "CUDA GPU is visible" in said.err or "CPU build" in said.err
    with pytest.raises(SystemExit) as stopped:
        main(["gpu-report", "--out", str(tmp_path / "gpu.json"), "--minutes", "1"])
    assert stopped.value.code == 2 and "not a number of minutes from 2 to 120; 9 is usual" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_card_on_which_nothing_runs_leaves_a_whole_file_of_reasons(tmp_path, capsys):
    """A described card: torch's CPU build refuses every tensor on it, so that each section fails in its own way."""
    if torch.version.cuda and torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    card = Card(name="Described", total_bytes=8 * 10**9, free_bytes=7 * 10**9, capability=(8, 6))
    out = tmp_path / "my secret folder" / "gpu.json"
    with in_place(DescribedCards([card], peak=lambda: 0, reset_peak=lambda: None)):
        assert main(["gpu-report", "--out", str(out), "--json"]) == 1
    said, found = capsys.readouterr(), json.loads(out.read_text())
    assert json.loads(said.out) == found
    assert {s["status"] for s in found["sections"].values()} <= {FAILED, NOT_HERE}
    assert "CUDA" in found["sections"]["plans"]["reason"]
    where = found["sections"]["plans"]["where"]
    assert where[-1].startswith("koala/models/random_weights.py:") and any(
        w.startswith("koala/gpu_report/") for w in where
    )
    assert found["card"]["memory_bytes"] == 8 * 10**9 and found["card"]["capability"] == "8.6"
    assert found["device"] == "Described" and found["command"] == "python -m koala gpu-report --out gpu.json"
    assert "my secret folder" not in out.read_text() + out.with_suffix(".md").read_text()
    assert "of 8:20  7 of 7, TensorRT-RTX" in said.err and "nothing could be measured" in said.err


def test_the_student_of_the_full_report_is_koala():
    assert KOALA_700M.name == FULL.student and set(FULL.plan_models) <= set(CARDS)
