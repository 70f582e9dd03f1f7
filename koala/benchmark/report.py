"""A benchmark as JSON, and as Markdown with the rows of KOALA's latency figure (figure 7)."""

import dataclasses
from collections.abc import Sequence

from koala.benchmark.matrix import Matrix
from koala.benchmark.measure import Row, Skipped
from koala.words import gigabytes_cell, markdown_table, seconds_cell


def report(matrix: Matrix, cells: Sequence[Row | Skipped], *, random_weights: bool) -> dict:
    """What was measured and what was not, with the speed-up of every model over the first under equal conditions."""
    rows = [cell for cell in cells if isinstance(cell, Row)]
    return {
        "matrix": dataclasses.asdict(matrix),
        "random_weights": random_weights,
        "rows": [dataclasses.asdict(row) for row in rows],
        "speedup": {"baseline": matrix.models[0], "rows": speedups(rows, matrix.models[0])},
        "not_reached": [dataclasses.asdict(cell) for cell in cells if isinstance(cell, Skipped)],
    }


def speedups(rows: Sequence[Row], baseline: str) -> list[dict]:
    """Every row against the baseline's of the same size, batch and preset: per U-Net step, and in total."""
    bases = {(row.size, row.images, row.preset): row for row in rows if row.model == baseline}
    pairs = [(bases.get((row.size, row.images, row.preset)), row) for row in rows if row.model != baseline]
    return [
        {
            "model": row.model,
            "preset": row.preset,
            "size": row.size,
            "images": row.images,
            "unet_step": base.unet_step_ms / row.unet_step_ms,
            "total": base.total_ms / row.total_ms,
        }
        for base, row in pairs
        if base
    ]


def markdown(results: dict) -> str:
    """Tables in Markdown. In the first a row is a model, as in the paper: latency and memory at each size."""
    rows, skipped = results["rows"], results["not_reached"]
    columns = sorted({(c["size"], c["images"]) for c in (*rows, *skipped)})
    cells = {(r["model"], r["preset"], r["size"], r["images"]): r for r in rows}
    too_big = {(s["model"], s["preset"], s["size"], s["images"]) for s in skipped if s["out_of_memory"]}
    names = list(dict.fromkeys((c["model"], c["preset"]) for c in (*rows, *skipped)))

    def at(model: str, preset: str, size: int, images: int) -> list[str]:
        row = cells.get((model, preset, size, images))
        if row is None:
            return ["OOM" if (model, preset, size, images) in too_big else "-", "", "", ""]
        expected = row["predicted"]
        return [
            seconds_cell(row["total_ms"]),
            seconds_cell(expected["total_ms"]),
            gigabytes_cell(row["peak_memory_bytes"]),
            gigabytes_cell(expected["peak_memory_bytes"]),
        ]

    head = ["model", "preset"]
    for size, images in columns:
        name = f"{size} px" + (f" x {images}" if images > 1 else "")
        head += [f"{name}: s", "predicted", "GB", "predicted"]
    figure = markdown_table(head, [[m, p, *[text for c in columns for text in at(m, p, *c)]] for m, p in names], left=2)
    head = ["model", "preset", "px", "batch", "steps", "guidance"]
    head += ["text ms", "ms per U-Net step", "predicted", "U-Net ms", "VAE ms", "total ms", "pictures/s", "swap ms"]
    stages = markdown_table(
        head,
        [
            [
                r["model"],
                r["preset"],
                *[str(r["size"]), str(r["images"]), str(r["steps"]), f"{r['guidance']:g}"],
                *[f"{r['text_ms']:.1f}", f"{r['unet_step_ms']:.1f}", f"{r['predicted']['unet_step_ms']:.1f}"],
                *[f"{r['unet_ms']:.0f}", f"{r['vae_ms']:.1f}", f"{r['total_ms']:.0f}"],
                *[f"{r['pictures_per_second']:.3g}", f"{r['swap_ms']:.0f}"],
            ]
            for r in rows
        ],
        left=2,
    )
    faster = [
        f"- {s['model']}, {s['preset']}, {s['size']} px, batch {s['images']}: "
        f"{s['unet_step']:.2f}x per U-Net step, {s['total']:.2f}x in total"
        for s in results["speedup"]["rows"]
    ]
    left_out = [f"- {s['model']}, {s['preset']}, {s['size']} px, batch {s['images']}: {s['reason']}" for s in skipped]
    sections = [figure, stages]
    if faster:
        sections.append(
            "\n".join([f"Compared with {results['speedup']['baseline']}, under equal conditions:", "", *faster])
        )
    if left_out:
        sections.append("\n".join(["Not measured:", "", *left_out]))
    return "\n\n".join([*sections, _circumstances(results)])


def _circumstances(results: dict) -> str:
    repeats = results["matrix"]["repeats"]
    runs = f"medians of up to {repeats} runs" if repeats > 1 else "one run"
    weights = "random weights of the real sizes" if results["random_weights"] else "the models' own weights"
    sources = sorted({row["hardware"] for row in results["rows"]})
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [f"{results['device']}; {results['date']}; {versions}; {weights}; {runs} after a warm-up, models in turn."]
    if any(row["memory_of"] == "process" for row in results["rows"]):
        lines.append("Memory is that of the process, which holds every model of this run.")
    lines += [f"Speed for the predictions: {source}." for source in sources]
    return "\n".join([*lines, "", f"    {results['command']}"])
