"""A benchmark as HTML: bars on one scale with the prediction marked, a table, and what was left out."""

import base64
import json
from collections.abc import Callable, Sequence

from koala.charts import Scale
from koala.models.cards import ModelCard
from koala.models.registry import find
from koala.ui.html import macros
from koala.words import duration, gigabytes


def _gigabytes(count: float | None) -> str:
    return "–" if count is None else gigabytes(count, 2)


def _stages(row: dict) -> dict[str, float]:
    """Stage -> ms of a measured cell. The rest is scheduler and pipeline; medians need not add up."""
    ms = {part: row[f"{part}_ms"] for part in ("text", "unet", "vae")}
    return ms | {"rest": max(row["total_ms"] - sum(ms.values()), 0)}


def _cells(row: dict) -> dict[str, tuple[str, str]]:
    """Heading -> a figure, and the prediction or a note below it."""
    predicted = row["predicted"]
    low, high = row["total_range_ms"]
    return {
        "px": (str(row["size"]), f"{row['images']} at once" if row["images"] > 1 else ""),
        "text": (duration(row["text_ms"]), duration(predicted["text_ms"])),
        "U-Net step": (f"{row['unet_step_ms']:.1f} ms", f"{predicted['unet_step_ms']:.1f} ms"),
        "VAE": (duration(row["vae_ms"]), duration(predicted["vae_ms"])),
        "total": (duration(row["total_ms"]), duration(predicted["total_ms"])),
        "range": (f"{duration(low)} to {duration(high)}", ""),
        "pictures/s": (f"{row['pictures_per_second']:.3g}", ""),
        "peak memory": (_gigabytes(row["peak_memory_bytes"]), _gigabytes(predicted["peak_memory_bytes"])),
    }


def _groups(rows: Sequence[dict]) -> dict[tuple[int, int], list[dict]]:
    """(size, images) -> its rows, in the order in which they were measured."""
    groups: dict[tuple[int, int], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["size"], row["images"]), []).append(row)
    return groups


def _share(rows: Sequence[dict]) -> Scale:
    """ms -> percent of the width of a bar; one scale for all rows and their predictions."""
    most = max(max(row["total_ms"], row["predicted"]["total_ms"]) for row in rows)
    return Scale(least=0, most=1.02 * most, low=0, high=100)


def _notes(report: dict, card: Callable[[str], ModelCard]) -> list[str]:
    """Where, when and how it was measured, in sentences."""
    rows, repeats = report["rows"], report["matrix"]["repeats"]
    notes = [f"On {report['device']}, {report['date']}."]
    notes.append(f"Medians of up to {repeats} run{'s' * (repeats > 1)}; the models take turns.")
    if any(row["memory_of"] == "process" for row in rows):
        notes.append("Memory is that of the whole app, with every model in it.")
    notes.append(f"Speed behind the prediction: {'; '.join(dict.fromkeys(row['hardware'] for row in rows))}.")
    if any(card(row["model"]).embedded for row in rows):
        notes.append("The speed-up of the tiny models is their own; that of the real models differs.")
    return notes


PARTS = {"text": "text", "unet": "U-Net", "vae": "VAE", "rest": "the rest"}
HTML = macros("benchmark/benchmark.html", duration=duration, stages=_stages, cells=_cells, parts=PARTS)
EMPTY, OFF = HTML.empty(), HTML.off()


def status(text: str, *, running: bool = False, failed: bool = False) -> str:
    """The line with the state of the benchmark; Ready where there is no text."""
    return HTML.status(text or "Ready.", running, failed)


def panel(report: dict, title: Callable[[str], str], card: Callable[[str], ModelCard] = find) -> str:
    """The report of a benchmark, finished or not; `title` and `card` give a model's by its name."""
    rows, skipped, faster = (
        [row | {"title": title(row["model"])} for row in of]
        for of in (report["rows"], report["not_reached"], report["speedup"]["rows"])
    )
    if not rows:
        return HTML.unmeasured(skipped)
    content = base64.b64encode((json.dumps(report, indent=1) + "\n").encode()).decode()
    baseline = title(report["speedup"]["baseline"])
    figures = {"rows": rows, "groups": _groups(rows), "share": _share(rows)}
    return HTML.panel(
        **figures,
        faster=faster,
        baseline=baseline,
        skipped=skipped,
        notes=_notes(report, card),
        command=report["command"],
        content=content,
    )
