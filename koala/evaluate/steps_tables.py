"""A report over the number of steps as tables: a score per number of steps, and what each point costs.

KOALA's tables: students of several teachers by their steps (5), a step-distilled model on each backbone (9).
"""

from collections.abc import Iterator, Mapping, Sequence

from koala.evaluate.steps_figure import NONE, RUNS, names, value
from koala.words import markdown_table, seconds_cell

Table = tuple[list[str], list[list[str]]]  # head, rows


def markdown(report: Mapping) -> str:
    """All tables in Markdown, as a page and as what a terminal shows."""
    scores = "\n\n".join(f"{title}:\n\n{_text(_by_steps(path, report))}" for title, path in report["panels"].items())
    return f"{scores}\n\nWhat it costs:\n\n{_text(_by_cost(report))}\n\n{note(report)}"


def note(report: Mapping, interval: str = "in brackets") -> str:
    """How the figures were measured; `interval` is where the reader finds it."""
    where = f" on {report['device']}" if "device" in report else ""
    return (
        f"{report['num_prompts']} prompts per point; {interval} the 95 % interval. A picture's time is the median of "
        f"{RUNS} runs{where}, without the warm-up."
    )


def _text(table: Table) -> str:
    return markdown_table(*table, left=3)


def _by_steps(path: Sequence[str], report: Mapping) -> Table:
    """One score: a row per model and guidance, a column per number of steps."""
    rows = [
        [*_model(report, k), *(_score(point["scores"], path, report) for point in model["points"])]
        for k, model in enumerate(report["models"])
    ]
    steps = [f"{n} step{'s' if n > 1 else ''}" for n in report["steps"]]
    return ["model", "teacher", "guidance", *steps], rows


def _by_cost(report: Mapping) -> Table:
    """A row per model, guidance and number of steps."""
    head = ["model", "teacher", "guidance", "steps", "parameters", "U-Net calls", "s per picture", *report["panels"]]
    return head, list(_costs(report))


def _costs(report: Mapping) -> Iterator[list[str]]:
    for k, model in enumerate(report["models"]):
        for point in model["points"]:
            scores = (_score(point["scores"], path, report) for path in report["panels"].values())
            cost = [f"{model['parameters'] / 1e6:,.1f} M", str(point["unet_calls"]), seconds_cell(point["picture_ms"])]
            yield [*_model(report, k), str(point["steps"]), *cost, *scores]


def _model(report: Mapping, k: int) -> list[str]:
    model = report["models"][k]
    guidance = f"{model['guidance']:g}" if model["guidance"] > NONE else "none"
    return [names(report)[k], model["teacher"] or "-", guidance]


def _score(scores: Mapping, path: Sequence[str], report: Mapping) -> str:
    number, low, high = value(scores, path)
    if report["metric"] == "shapes":
        return f"{100 * number:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    return f"{number:.3f}" + (f" ({low:.3f} to {high:.3f})" if low < high else "")
