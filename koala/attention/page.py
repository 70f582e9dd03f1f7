"""One capture as a web page that needs no server: it contains queries and keys; the browser computes the softmax."""

import base64
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path

import torch

from koala.attention import view
from koala.attention.capture import Capture, settings
from koala.attention.kinds import ENTROPY, MEAN, PCA, RECEIVED, ROW
from koala.attention.plan import Layer
from koala.attention.recorded import AttentionRecord
from koala.attention.render import spread

ASSETS = Path(__file__).parent / "assets"
BUDGET = 24 * 10**6  # bytes of queries and keys in a page; more makes a browser slow
MADE = (PCA, RECEIVED, ENTROPY)  # precomputed, for the mean of the heads
PAGE_HEADS = {ROW.name: list(ROW.heads)} | {kind.name: [MEAN] for kind in MADE}


def page(capture: Capture, stage: str | None = None) -> str:
    """The HTML. If the capture is too large for one page, only the stage `stage` is kept, and then fewer steps."""
    stages, steps = _kept(capture, stage)
    value = view.value("page", capture) | {"told": ""}
    shown = stage if stage in stages else value["stage"] if value["stage"] in stages else list(stages)[-1]
    left_out = "was left out of this page for its size; the app has it"
    thinned = len(steps) < len(capture.moments)
    value |= {
        "stage": shown,
        "stages": [s if s["absent"] or s["name"] in stages else _absent(s, left_out) for s in value["stages"]],
        "moments": [value["moments"][step] for step in steps],
        "mean": "" if thinned else value["mean"],
        "kinds": [k | {"heads": PAGE_HEADS[k["name"]]} for k in value["kinds"] if k["name"] in PAGE_HEADS],
        "words": [],
    }
    frames = {s: [_row(capture, s, k, steps) for k in range(len(capture.stages[s]))] for s in stages}
    content = {"value": value, "frames": frames}
    if len(capture.sides) == 2:
        content["alike"] = {"rows": [_thinned(row, steps) for row in view.alike(capture)["rows"]]}
    script = "".join(path.read_text() for path in (*sorted(ASSETS.glob("viewer*.js")), ASSETS / "page.js"))
    style = "".join((ASSETS / name).read_text() for name in ("page.css", "viewer.css"))
    titles = " and ".join(side.title for side in capture.sides)
    heading = escape(capture.prompt or titles)  # a pipeline that was called directly has no prompt to report
    how = escape(f"{titles}, {settings(capture)}")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>Attention: {heading}</title>'
        f"<style>{style}</style></head><body><main><h1>{heading}</h1><p>{how}.</p>"
        f'<div id="viewer">{(ASSETS / "viewer.html").read_text()}</div>'
        "<p>Attention shows what goes where, not why. These maps are of one seed; early steps are mostly noise.</p>"
        f'</main><script type="application/json" id="capture">{_json(content)}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def _json(value: object) -> str:
    """JSON in which no tag can end the script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _absent(stage: Mapping, why: str) -> dict:
    return {"name": stage["name"], "absent": f"{stage['name']} {why}"}


def _kept(capture: Capture, stage: str | None) -> tuple[list[str], list[int]]:
    """The stages and steps whose queries and keys fit."""
    count = len(capture.moments)
    size = {s: _bytes(capture, s) for s in capture.stages}
    stages = list(capture.stages)
    if sum(size.values()) > BUDGET:
        stages = [stage if stage in size else max(size, key=lambda s: (size[s] <= BUDGET, size[s]))]
    number = max(1, min(count, int(count * BUDGET / sum(size[s] for s in stages))))
    return stages, spread(count, number)


def _bytes(capture: Capture, stage: str) -> int:
    """Of the stage's queries and keys in half precision, all steps of both models."""
    total = 0
    for index in range(len(capture.stages[stage])):
        for side, layer in zip(capture.sides, capture.stages[stage][index], strict=True):
            total += 2 * layer.elements * side.record.steps if layer else 0
    return total


def _row(capture: Capture, stage: str, index: int, steps: list[int]) -> list[dict]:
    """Every model's layer: queries and keys of every step, and the precomputed maps."""
    views = {}
    for kind in MADE:
        asked = {"kind": kind.name, "stage": stage, "layer": index}
        each = [view.look(capture, asked | {"step": s})["sides"] for s in steps]
        views[kind.name] = (each, view.look(capture, asked | {"step": MEAN})["sides"])
    models = []
    for k, layer in enumerate(capture.stages[stage][index]):
        if layer is None:
            models.append(views[PCA.name][1][k])
            continue
        own = [capture.step(k, s) for s in steps]
        shown = sorted(set(own))  # a run with fewer steps than another shows each of them several times
        one = {
            "grid": list(layer.grid),
            "heads": layer.heads,
            "dim": layer.dim,
            "layer": layer.label.removeprefix(f"{stage}, ").capitalize(),
            "steps": [_qk(capture.sides[k].record, layer, s) for s in shown],
            "at": [shown.index(s) for s in own],
        }
        for kind, (each, mean) in views.items():
            one[kind] = {"steps": [_map(e[k]) for e in each], "mean": _map(mean[k])}
        models.append(one)
    return models


def _map(side: Mapping) -> dict:
    return {"data": side["data"], "said": side["said"]}


def _qk(record: AttentionRecord, layer: Layer, step: int) -> dict:
    return {
        name: base64.b64encode(tensor.to(torch.float16).contiguous().numpy().tobytes()).decode()
        for name, tensor in zip("qk", record.at(layer, step), strict=True)
    }


def _thinned(row: Mapping, steps: list[int]) -> dict:
    return {**row, **{name: [row[name][s] for s in steps] if row[name] else [] for name in ("values", "divergence")}}
