"""A benchmark as HTML: bars on one scale with the prediction marked, a table, and what was left out."""

import base64
import json
from collections.abc import Callable, Sequence
from html import escape

from koala.models.cards import ModelCard
from koala.models.registry import find
from koala.words import duration, gigabytes

PARTS = (("text", "text"), ("unet", "U-Net"), ("vae", "VAE"), ("rest", "the rest"))
EMPTY = (
    '<p class="kb-hint">Nothing measured yet. The models take turns, after a warm-up that does not count, and every '
    "figure is the median of its runs.</p>"
)


def off(models: Sequence[str]) -> str:
    """In the panel's place where nothing can be measured: where it can, and with which command."""
    return (
        '<p class="kb-hint">On your own machine <code>python app.py</code> measures all of this, or a terminal: '
        f"<code>python -m koala bench --models {escape(' '.join(models))} --out bench.json</code></p>"
    )


def _gigabytes(count: float | None) -> str:
    return "–" if count is None else gigabytes(count, 2)


def _place(row: dict) -> tuple[int, int]:
    return row["size"], row["images"]


def _bar(row: dict, scale: float, title: Callable[[str], str]) -> str:
    """One measured cell: its stages stacked, and a line where the prediction ends."""
    expected = row["predicted"]["total_ms"]
    ms = {part: row[f"{part}_ms"] for part, _ in PARTS[:-1]}
    ms["rest"] = max(row["total_ms"] - sum(ms.values()), 0)  # scheduler and pipeline; medians need not add up
    stages = "".join(f'<i class="k-{part}" style="width:{100 * ms[part] / scale:.2f}%"></i>' for part, _ in PARTS)
    return (
        f'<li class="kb-row"><span class="kb-name"><b>{escape(title(row["model"]))}</b> {escape(row["preset"])}</span>'
        f'<span class="kb-figure"><b>{duration(row["total_ms"])}</b> '
        f"<span>{duration(expected)} predicted</span></span>"
        f'<span class="kb-track" aria-hidden="true"><span class="k-bar">{stages}</span>'
        f'<span class="kb-mark" style="left:{100 * expected / scale:.2f}%"></span></span></li>'
    )


def bars(rows: Sequence[dict], title: Callable[[str], str]) -> str:
    """Every row on one scale, grouped by size and batch."""
    scale = 1.02 * max(max(r["total_ms"], r["predicted"]["total_ms"]) for r in rows)
    groups = []
    for size, images in dict.fromkeys(map(_place, rows)):
        name = f"{size} × {size} px" + (f", {images} pictures at once" if images > 1 else "")
        inside = "".join(_bar(r, scale, title) for r in rows if _place(r) == (size, images))
        groups.append(f'<h4>{name}</h4><ul class="kb-bars">{inside}</ul>')
    keys = "".join(f'<span><i class="k-{part}"></i>{name}</span>' for part, name in PARTS)
    keys += '<span><i class="kb-key"></i>predicted total</span>'
    return f'{"".join(groups)}<p class="kb-keys" aria-hidden="true">{keys}</p>'


def table(rows: Sequence[dict], title: Callable[[str], str]) -> str:
    """Every figure, the prediction in the small print of its cell."""

    def cell(text: str, small: str = "") -> str:
        return f"<td>{text}{f'<small>{small}</small>' if small else ''}</td>"

    heads = ("px", "text", "U-Net step", "VAE", "total", "range", "pictures/s", "peak memory")
    body = []
    for row in rows:
        expected = row["predicted"]
        low, high = row["total_range_ms"]
        cells = [
            cell(str(row["size"]), f"{row['images']} at once" if row["images"] > 1 else ""),
            cell(duration(row["text_ms"]), duration(expected["text_ms"])),
            cell(f"{row['unet_step_ms']:.1f} ms", f"{expected['unet_step_ms']:.1f} ms"),
            cell(duration(row["vae_ms"]), duration(expected["vae_ms"])),
            cell(duration(row["total_ms"]), duration(expected["total_ms"])),
            cell(f"{duration(low)} to {duration(high)}"),
            cell(f"{row['pictures_per_second']:.3g}"),
            cell(_gigabytes(row["peak_memory_bytes"]), _gigabytes(expected["peak_memory_bytes"])),
        ]
        name = f"{escape(title(row['model']))}<small>{escape(row['preset'])}, {row['steps']} steps</small>"
        body.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    return (
        '<p class="k-note" aria-hidden="true">In each cell the median of the runs; below it, grey, the prediction.</p>'
        '<div class="kb-scroll" role="region" aria-label="All figures" tabindex="0"><table>'
        '<caption class="k-sr">Medians; the prediction is the second line of a cell</caption>'
        f'<thead><tr><th scope="col">model</th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _sentences(found: dict, title: Callable[[str], str]) -> str:
    base = escape(title(found["speedup"]["baseline"]))
    return "".join(
        f'<p class="k-speedup"><strong>{s["total"]:.2f}×</strong> <span>{escape(title(s["model"]))} against {base}, '
        f"{escape(s['preset'])}, {s['size']} px{f', batch of {n}' if (n := s['images']) > 1 else ''}: "
        f"{s['unet_step']:.2f}× per U-Net step, {s['total']:.2f}× in total.</span></p>"
        for s in found["speedup"]["rows"]
    )


def panel(found: dict, title: Callable[[str], str], card: Callable[[str], ModelCard] = find) -> str:
    """The report of a benchmark, done or under way; `title` and `card` give a model's by its name."""
    rows = found["rows"]
    left_out = "".join(
        f"<li>{escape(title(s['model']))}, {escape(s['preset'])}, {s['size']} px, batch of {s['images']}: "
        f"{escape(s['reason'])}</li>"
        for s in found["not_reached"]
    )
    left_out = f'<h4>Not measured</h4><ul class="kb-left">{left_out}</ul>' if left_out else ""
    if not rows:
        return f'<section class="k-panel" aria-label="Benchmark">{left_out or EMPTY}</section>'
    sources = "; ".join(dict.fromkeys(row["hardware"] for row in rows))
    shared = any(row["memory_of"] == "process" for row in rows)
    tiny = any(card(row["model"]).embedded for row in rows)
    ratio = " The ratio of the tiny models is their own; the real models have theirs." if tiny else ""
    repeats = found["matrix"]["repeats"]
    memory = "Memory is that of the whole app, with every model in it. " if shared else ""
    return (
        '<section class="k-panel" aria-labelledby="kb-title"><h3 id="kb-title">Time per run</h3>'
        f"{bars(rows, title)}{_sentences(found, title)}{table(rows, title)}{left_out}"
        f'<p class="k-note">On {escape(found["device"])}, {escape(found["date"])}. Medians of up to '
        f"{repeats} run{'s' * (repeats > 1)}, the models in turn. {memory}Speed behind the prediction: "
        f"{escape(sources)}.{ratio} The same from a terminal: <code>{escape(found['command'])}</code></p>"
        f"{_file(found)}</section>"
    )


def _file(found: dict) -> str:
    """The report to take home. It is part of the page, so that it is never older than the rows above it."""
    content = base64.b64encode((json.dumps(found, indent=1) + "\n").encode()).decode()
    return (
        f'<a class="kb-json" download="koala-bench.json" href="data:application/json;base64,{content}">'
        "Download as JSON</a>"
    )
