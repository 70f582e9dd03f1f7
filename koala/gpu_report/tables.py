"""A report as Markdown: each section as a table, the paper's figures next to ours, and what was not measured."""

from collections.abc import Iterator

from koala.gpu_report.budget import DONE
from koala.gpu_report.scale import FIGURE_7, OOM, PAPER_CARDS, ROWS, Cell
from koala.words import gigabytes, gigabytes_cell, markdown_table, seconds_cell

FORMAT = "koala gpu report 1"  # the number goes up when the meaning of a field changes
_OLDER_MARK = " †"
_BESIDE = (
    "The paper's figures are of its own cards and software: KOALA, figure 7, at 1024 px, fp16, PyTorch 2.1.2; those "
    "marked † are of the project page's older figure, which names its cards by their memory. They are "
    "printed next to ours for orientation; ratios between them mean nothing."
)


def _share(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.0f} %"


def _printed(cell: Cell, mark: str) -> str:
    return cell if cell == OOM else f"{cell[0]:.2f} s, {cell[1]:.1f} GB{mark}"


def latencies(results: dict) -> Iterator[str]:
    """Seconds and peak GB of every model at every size; on the right what the paper published for other cards."""
    rows = results["rows"]
    sizes = sorted({row["size"] for row in rows})
    cells = {(row["model"], row["size"]): row for row in rows}
    head = ["model", "steps"]
    for size in sizes:
        head += [f"{size} px: s", "peak GB"]
    head += [f"paper, {card}" for card in PAPER_CARDS]
    body = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [cells.get((model, size)) for size in sizes]
        first = next(filter(None, own))
        line = [", ".join([model, *first["speaks_for"]]), f"{first['steps']}{', guided' * (first['guidance'] > 1)}"]
        for row in own:
            line += [seconds_cell(row["total_ms"]), gigabytes_cell(row["peak_memory_bytes"])] if row else ["-", "-"]
        paper = ROWS.get(model)
        mark = "" if paper is None or paper.figure == FIGURE_7 else _OLDER_MARK
        line += [_printed(cell, mark) for cell in paper.cells] if paper else ["-"] * len(PAPER_CARDS)
        body.append(line)
    yield markdown_table(head, body, left=2)
    yield _BESIDE


def presets(results: dict) -> Iterator[str]:
    """Ratios to diffusers' own pipeline in the same run."""
    rows = [
        [
            row["model"],
            row["preset"],
            f"{row['total']:.2f}x",
            f"{row['unet_step']:.2f}x",
            _share(row["peak_memory"]),
        ]
        for row in results["against_stock"]
    ]
    head = ["model", "preset", "faster than stock diffusers", "per U-Net step", "of its peak memory"]
    yield markdown_table(head, rows, left=2)


def plans(results: dict) -> Iterator[str]:
    """What each plan predicts, with and without the workspace factor, and the allocator's peak."""
    rows = []
    for row in results["rows"]:
        card = f"{row['card_bytes'] / 1e9:g} GB"
        if row["refused"]:
            rows.append([row["model"], card, "no plan fits", *["-"] * 5])
            continue
        plan, peak = row["plan"], row["peak_bytes"]
        tile = f", tiles of {8 * plan['vae_tile']} px" if plan["vae_tile"] else ""
        rows.append(
            [
                row["model"],
                card,
                f"text {plan['text']}, U-Net {plan['unet']}{tile}",
                gigabytes_cell(row["predicted_bytes"]),
                gigabytes_cell(row["live_bytes"]),
                "ran out" if row["ran_out"] else gigabytes_cell(peak),
                _share(peak and peak / row["live_bytes"]),
                gigabytes_cell(row["reserved_bytes"]),
            ]
        )
    head = ["model", "card", "plan", "predicted GB", "live tensors", "peak", "peak of live", "allocator's own"]
    yield markdown_table(head, rows, left=3)


def attention(results: dict) -> Iterator[str]:
    """What recording and a click cost, as sentences."""
    click, grid = results["click"], "x".join(map(str, results["click"]["grid"]))
    plain, recorded = (seconds_cell(results[which]) for which in ("plain_ms", "recorded_ms"))
    one, mean = (click[which]["median_ms"] for which in ("one_step", "mean_of_steps"))
    yield (
        f"Recording one layer of each stage, with its words, over {results['steps']} steps of {results['model']} at "
        f"{results['size']} px: {100 * results['overhead']:+.1f} % of a run ({plain} s without, {recorded} s with; "
        f"medians of {results['runs']}). A click on a {grid} map of {click['heads']} heads: {one:.1f} ms, and "
        f"{mean:.1f} ms on the mean of all steps."
    )


def distillation(results: dict) -> Iterator[str]:
    """Pictures per second and peak memory of whole training steps."""
    rows = [
        [
            f"{row['student']} of {row['teacher']}",
            f"{row['size']} px",
            str(row["batch"]),
            "yes" if row["gradient_checkpointing"] else "no",
            "ran out" if row["ran_out"] else f"{row['pictures_per_second']:.3g}",
            gigabytes_cell(row["peak_bytes"]),
            gigabytes_cell(row["predicted_bytes"]),
        ]
        for row in results["rows"]
    ]
    head = ["distilled", "size", "batch", "checkpointing", "pictures/s", "peak GB", "predicted"]
    yield markdown_table(head, rows)


def onnx_runtime(results: dict) -> Iterator[str]:
    """A U-Net call on ONNX Runtime and on torch."""
    rows = [
        [
            results["model"],
            f"{row['size']} px",
            f"{row['torch_ms']:.1f}",
            f"{row['onnxruntime_ms']:.1f}",
            f"{row['faster']:.2f}x",
            f"{row['relative_error']:.1e}",
        ]
        for row in results["rows"]
    ]
    yield markdown_table(["guided U-Net call", "size", "torch ms", "ONNX Runtime ms", "faster", "difference"], rows)
    yield f"{results['provider']} of ONNX Runtime {results['version']}, inputs and outputs bound on the device."


def tensorrt_rtx(results: dict) -> Iterator[str]:
    """A U-Net call of an engine and of torch."""
    yield (
        f"TensorRT-RTX {results['version']}: a guided call of {results['model']} at {results['size']} px takes "
        f"{results['engine_ms']:.1f} ms, torch {results['torch_ms']:.1f} ms ({results['faster']:.2f}x); its engine of "
        f"{gigabytes(results['engine_bytes'], 2)} was built in {results['build_seconds']:.0f} s."
    )


TABLES = {
    "latencies": latencies,
    "presets": presets,
    "plans": plans,
    "distillation": distillation,
    "attention": attention,
    "onnx-runtime": onnx_runtime,
    "tensorrt-rtx": tensorrt_rtx,
}


def markdown(report: dict, level: int = 1) -> str:
    """The whole report; its title is a heading of the given level."""
    parts = [f"{'#' * level} {report['device']}", _circumstances(report)]
    for name, section in report["sections"].items():
        parts += [f"{'#' * (level + 1)} {section['title']}", *_section(name, section)]
    return "\n\n".join(parts)


def _section(name: str, section: dict) -> Iterator[str]:
    if section["status"] != DONE:
        yield f"Not measured: {section['status']}. {section['reason'][:1].upper()}{section['reason'][1:]}."
    whole = section["status"] == DONE or section["found"].get("rows")
    if whole:
        yield from TABLES[name](section["found"])
    if left := section["found"].get("not_measured"):
        yield "\n".join(f"- not measured: {_what(one)}: {one['reason']}" for one in left)


def _what(one: dict) -> str:
    """The cell that was not measured."""
    card = f"a card of {one['card_bytes'] / 1e9:g} GB" if "card_bytes" in one else None
    size = f"{one['size']} px" if "size" in one else None
    checkpointing = {True: "with checkpointing", False: "without checkpointing"}.get(one.get("gradient_checkpointing"))
    named = (one.get("student"), one.get("model"), one.get("preset"), size, card, checkpointing)
    return ", ".join(filter(None, named))


def _circumstances(report: dict) -> str:
    card, versions = report["card"], ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    driver = f", driver {card['driver']}" if card["driver"] else ""
    cuda = f", CUDA {card['cuda']}" if card["cuda"] else ""
    return (
        f"{gigabytes(card['memory_bytes'])}{driver}{cuda}, {card['system']}; {report['date']}; {versions}; random "
        f"weights of the real sizes, seed {report['seed']}; measured in {report['seconds']:.0f} s; medians, the models "
        f"in turn. `{report['command']}`"
    )
