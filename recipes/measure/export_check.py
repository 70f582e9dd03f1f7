"""A model in every export through every gate, over many pictures, and the pace of each compared with torch.

    python -m recipes.measure.export_check --work exports/check --out docs/measurements/export-embedded.json

What --work has already is kept, so that it goes on where it was stopped: five to fifteen minutes a target on one core.
With --exports only those are measured, and the report keeps its other rows where the model's weights are still the
same: every row says when and how it was measured.
The figures are those that the gates wrote into each file as it was made; only the paces are measured in the end, one
after the other, with one thread and with all.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from koala.evaluate.reports import circumstances
from koala.export.gates.case import open_case
from koala.export.targets import TARGETS
from koala.export.verify import speed
from koala.files.outputs import new_file
from koala.models.export_manifest import MANIFEST, Exported

EXPORTS = {f"{t.name}-{dtype}": (t.name, dtype) for t in TARGETS.values() for dtype in t.dtypes}


def export_folder(model: str, name: str, work: Path, pictures: int) -> Path:
    """The export of this name, which has passed the gates with so many pictures; its progress goes to this terminal."""
    target, dtype = EXPORTS[name]
    folder = work / name
    if not (folder / MANIFEST).is_file():
        asked = ["--model", model, "--target", target, "--dtype", dtype, "--pictures", str(pictures)]
        command = [sys.executable, "-m", "export", *asked, "--out", str(folder)]
        if ended := subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            sys.exit(f"{' '.join(command[1:])} ended with {ended}")
    drawn = Exported.read(folder).parity["pictures"]["file"]["pictures"]
    if drawn != pictures:
        sys.exit(f"{folder} was compared over {drawn} pictures, not {pictures}; choose another --work, or remove it")
    return folder


def gate_results(folder: Path) -> dict:
    """Sizes, the gates' figures, and the pace now."""
    exported = Exported.read(folder)
    return {
        "bytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()),
        "unet_bytes": sum((folder / file).stat().st_size for file in exported.components["unet"].files),
        "gates": {how: exported.parity[how] for how in ("passed", "skipped")},  # had one failed, there were no folder
        "numbers": exported.parity["numbers"],
        "pictures": exported.parity["pictures"],
        "speed": [paced(folder, threads) for threads in sorted({1, os.cpu_count() or 1})],
    }


def paced(folder: Path, threads: int) -> dict:
    """Small networks gain nothing from more threads, and lose in torch: so one thread is measured as well as all."""
    torch.set_num_threads(threads)
    return speed(open_case(folder)).figures


def kept(file: Path, model: str, weights: dict) -> dict[str, dict]:
    """Rows of an earlier report that are of these weights; what it says once for all of them is copied into each."""
    if not file.is_file():
        return {}
    report = json.loads(file.read_text())
    shared = {key: value for key, value in report.items() if key not in ("model", "exports")}
    rows = {name: row | shared for name, row in report["exports"].items()}
    same = {name: row for name, row in rows.items() if report["model"] == model and row["weights"] == weights}
    if gone := rows.keys() - same.keys():
        print(f"left out, as they are of other weights: {', '.join(sorted(gone))}", file=sys.stderr)
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-koala-700m")
    parser.add_argument("--exports", nargs="+", default=list(EXPORTS), choices=EXPORTS, metavar="NAME")
    parser.add_argument("--work", type=Path, required=True, help="folder for the exports")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    args = parser.parse_args()

    folders = {name: export_folder(args.model, name, args.work, args.pictures) for name in args.exports}
    now = circumstances(sys.argv[1:], torch.device("cpu"), program="recipes.measure.export_check", weights=[args.model])
    rows = kept(args.out, args.model, now["weights"]) | {
        name: gate_results(folder) | now for name, folder in folders.items()
    }
    report = {"model": args.model, "exports": {name: rows[name] for name in EXPORTS if name in rows}}
    with new_file(args.out) as file:
        file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
