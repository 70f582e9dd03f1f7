"""The tables of README and docs, out of the registry and the reports, each between a pair of markers.

python -m recipes.tools.readme_tables
python -m recipes.tools.readme_tables --check     # exit 1 where a page differs
"""

import argparse
import json
import re
import sys
from pathlib import Path

from koala.evaluate import steps_tables
from koala.files.outputs import new_file
from koala.gpu_report.tables import FORMAT, markdown
from koala.models.cards import CARDS, EMBEDDED, ModelCard

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/benchmarks.md", "docs/few-steps.md")
MEASUREMENTS = ROOT / "docs" / "measurements"
MARKERS = re.compile(r"(<!-- table: (?P<name>\w+) -->\n)(?P<table>.*?)(<!-- /table -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a page differs")
    args = parser.parse_args()
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        filled = MARKERS.sub(lambda m: f"{m[1]}{TABLES[m['name']]()}{m[4]}", text)
        if not args.check:
            with new_file(ROOT / page) as file:
                file.write_text(filled, encoding="utf-8")
        elif filled != text:
            sys.exit(f"{page}'s tables differ from registry and reports: python -m recipes.tools.readme_tables")


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """GitHub's; the first column has names, and the numbers of the others are flush right."""
    ruler = ["---", *("--:" if all(row[k][:1].isdigit() for row in rows) else "---" for k in range(1, len(heads)))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (heads, ruler, *rows))


def models() -> str:
    """Every name with what its authors recommend; versions that differ in nothing shown share a line."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for card in CARDS.values():
        shown = (
            f"{card.parameters / 1e6:,.1f} M",
            str(card.steps),
            f"{card.guidance:g}",
            f"{card.width} px",
            card.licence,
        )
        lines.setdefault(shown, []).append(f"`{card.name}`")
    rows = [(", ".join(names), *shown) for shown, names in lines.items()]
    return _table(("model", "U-Net", "steps", "guidance", "size", "licence"), rows)


def scores() -> str:
    """Rates of whole prompts that hold, of the embedded models of 25 steps; of two objects at other sizes as well."""
    sizes = json.loads((MEASUREMENTS / "embedded-sizes.json").read_text())["models"]
    rows, teacher = [], None
    for card in (card for card in CARDS.values() if card.embedded and card.steps == ModelCard.steps):
        suites = _report(card.name)["scores"]
        two = suites["two_objects"]
        teacher = teacher or two["all"]["rate"]
        wide, tall = (row["scores"]["two_objects"]["all"]["rate"] for row in sizes[card.name])
        rates = (suites["one_object"]["all"]["rate"], two["all"]["rate"], two["all"]["rate"] / teacher)
        rates += (two["relation"]["rate"], wide, tall, suites["held_out"]["all"]["rate"])
        role = "student" if card.teacher else "teacher"
        rows.append((f"`{card.name}`, {role}", f"{card.parameters:,}", *(f"{100 * rate:.1f} %" for rate in rates)))
    heads = ("model", "U-Net parameters", "one object", "two objects", "of the teacher's", "their relation")
    return _table((*heads, "two at 320x192", "two at 192x320", "pairs never seen"), rows)


def _report(name: str) -> dict:
    """A report of the embedded models."""
    return json.loads((EMBEDDED / "scores" / f"{name}.json").read_text())


def few_steps() -> str:
    """Rates of whole prompts that hold, of the embedded few-step models, and of two objects the teacher's share."""
    rows, suites = [], ("one_object", "two_objects", "held_out")
    best = _report("tiny-sdxl")["scores"]["two_objects"]["all"]["rate"]
    for card in (card for card in CARDS.values() if card.embedded and card.steps < ModelCard.steps):
        for calls in (card.steps, 2):
            name = card.name if calls == card.steps else f"{card.name}-{calls}-steps"
            scores = _report(name)["scores"]
            rates = [scores[suite]["all"]["rate"] for suite in suites]
            rates.insert(2, rates[1] / best)
            rows.append((f"`{card.name}`", str(calls), *(f"{100 * rate:.1f} %" for rate in rates)))
    return _table(
        ("model", "U-Net calls", "one object", "two objects", "of `tiny-sdxl` at 50 calls", "pairs never seen"), rows
    )


def exports() -> str:
    """Every export of one model, compared with torch in fp32."""
    report = json.loads((MEASUREMENTS / "export-embedded.json").read_text())
    rows = []
    for name, export in report["exports"].items():
        target, _, dtype = name.rpartition("-")
        pictures = export["pictures"]["file"]
        rows.append(
            (
                f"`{target}`, {dtype}",
                f"{export['unet_bytes'] / 1e6:.1f} MB",
                f"{pictures['psnr_mean']:.1f} dB",
                f"{pictures['verdicts_differ']} of {pictures['pictures']}",
                f"{pictures['right']} against {pictures['right_torch_fp32']}",
                " / ".join(f"{pace['ratio']:.1f}x" for pace in export["speed"]),
            )
        )
    return _table(
        ("export", "U-Net", "pictures, PSNR", "verdicts that differ", "prompts right", "pace of a step, 1 / 2 threads"),
        rows,
    )


def cards(folder: Path = MEASUREMENTS) -> str:
    """Every report of a card that was sent in, by the name of its file; or that there is none."""
    reports = {file: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("gpu-*.json"))}
    own = [
        f"{markdown(report, level=3)}\n\n[Its report](measurements/{file.name})."
        for file, report in reports.items()
        if report.get("format") == FORMAT
    ]
    return "\n\n".join(own or ["No card's report has been sent in yet."]) + "\n"


def rehearsed() -> str:
    """Every rehearsed case of the GPU: what was counted on a described card, and what had been predicted."""
    report = json.loads((MEASUREMENTS / "gpu-rehearsal.json").read_text())
    rows = []
    for row in report["rows"]:
        case = (row["case"], " + ".join(row["models"]), row["card"])
        if row["plan"] is None:
            least = re.search(r"takes ([\d.]+ GB) at the least", row["refusal"])[1]
            rows.append((*case, f"refused: {least} at the least", "", "", ""))
            continue
        counted, predicted = row["tracked_bytes"], row["predicted_bytes"]
        sizes = (f"{counted / 1e9:.2f} GB", f"{predicted / 1e9:.2f} GB", f"{100 * (counted / predicted - 1):+.1f} %")
        rows.append((*case, _plan(row["plan"]), *sizes))
    return _table(("case", "models", "card", "plan", "counted", "predicted", "apart"), rows)


def _plan(plan: dict) -> str:
    """A memory plan in a few words, or a distillation's settings."""
    if "text" not in plan:
        return f"batch {plan['batch_size']}, {plan['precision']}, {plan['optimizer']}"
    words = [f"text {plan['text']}, U-Net {plan['unet']}"]
    words += [f"tiles of {8 * plan['vae_tile']} px"] if plan["vae_tile"] else []
    words += ["small VAE"] if plan["tiny_vae"] else []
    words += [f"VAE in {plan['vae_dtype']}"] if plan["vae_dtype"] != plan["dtype"] else []
    return ", ".join(words)


STANDS = {  # where each option stands; what is not in a preset waits for a card's report
    "fused QKV": "undecided: exact, and whether it is faster only a card can say",
    "channels last": "undecided: exact but for rounding, and whether it is faster only a card can say",
    "compiled blocks": "in `fast` and `turbo`, on a card",
    "CUDA graphs": "undecided: the same bits, and every size and batch would need a graph of its own",
    "FP8 weights": "undecided: memory is certain, time is not",
    "deep features every 2nd step": "undecided: what it costs is not resolved, and only a card can say what it gains",
    "deep features every 3rd step": "left out: it costs pictures",
    "guidance in half of the steps": "in `fast`",
    "no guidance": "`turbo`, for models that were distilled for it; others are refused",
}


def options() -> str:
    """Ways to a faster U-Net: at most saved by arithmetic, lost by the judge, and where each stands."""
    report = json.loads((MEASUREMENTS / "options.json").read_text())
    rows = []
    for name, stand in STANDS.items():
        shares = [report["arithmetic"][spec][name]["saves_at_most"] for spec in ("sdxl", "koala-700m")]
        saved = "not bounded" if None in shares else " / ".join(f"{100 * share:.0f} %" for share in shares)
        why = report["arithmetic"]["koala-700m"][name]["why"]
        lost = [_lost(option["options"][name]) for option in report["models"].values() if name in option["options"]]
        rows.append((name, saved, why, *(lost or [report["undrawn"][name], ""]), stand))
    heads = ("option", "saves at most, SDXL / KOALA-700M", "why", *(f"`{model}`" for model in report["models"]))
    return _table((*heads, "where it stands"), rows)


def _lost(option: dict) -> str:
    """A paired difference of rates in points with its 95 % interval, and whether zero is outside it."""
    low, high = (100 * bound for bound in option["interval"])
    clear = "" if low <= 0 <= high else ", resolved"
    return f"{100 * option['difference']:+.0f} ({low:+.0f} to {high:+.0f}{clear})"


TABLES = {
    "options": options,
    "models": models,
    "scores": scores,
    "few_steps": few_steps,
    "teachers": lambda: steps_tables.markdown(_report("steps")) + "\n",
    "exports": exports,
    "rehearsed": rehearsed,
    "cards": cards,
}


if __name__ == "__main__":
    main()
