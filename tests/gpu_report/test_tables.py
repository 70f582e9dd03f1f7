"""The report as text, against numbers by hand, and the collection of reports that were sent in."""

import json

from koala.gpu_report.budget import DONE, FAILED, LEFT_OUT
from koala.gpu_report.tables import FORMAT, markdown
from recipes.tools.readme_tables import cards

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


def section_of(name: str, results: dict, status: str = DONE, reason: str | None = None) -> str:
    one = {"title": "T", "status": status, "reason": reason, "seconds": 1.0, "found": results}
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
    assert "of its own cards and software" in text and "ratios between them mean nothing" in text


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
