"""What exporting a full-size U-Net takes on a machine without a GPU, and what the gates say of the file.

    python -m recipes.measure.full_size_export --work exports/full-size --models koala-700m koala-1b \
        --out docs/measurements/export-full-size.json

The weights are random, in files of the real format: neither time nor memory depends on their values. `--tensorrt` also
builds an engine, for which tensorrt-rtx must be installed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from koala.evaluate.reports import circumstances
from koala.export.targets import TARGETS
from koala.files.outputs import new_file
from koala.hardware.device import best_device
from koala.models.export_manifest import Exported
from koala.models.measured import RANDOM
from koala.models.random_weights import random_library


def make(name: str, folder: Path) -> None:
    """A pipeline of the model's own sizes with random weights in fp16, as diffusers saves it."""
    pipeline = random_library("cpu", dtype="float16").get(name).pipeline
    pipeline.save_pretrained(folder, max_shard_size="100GB")


def measured(*arguments: str) -> tuple[float, int, str]:
    """Seconds, peak resident bytes and what a command printed; its progress goes to this terminal."""
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "export", *arguments], stdout=subprocess.PIPE, text=True)
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"python -m koala export {' '.join(arguments)} ended with {code}")
    return time.monotonic() - begun, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for models and exports, some 10 GB")
    parser.add_argument("--models", nargs="+", default=["koala-700m", "koala-1b"])
    parser.add_argument("--target", default="universal", choices=tuple(TARGETS))
    parser.add_argument("--tensorrt", action="store_true", help="build an engine of each")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    args = parser.parse_args()

    exports = {}
    for name in args.models:
        model, out = args.work / name, args.work / f"{name}-{args.target}"
        if not model.is_dir():
            make(name, model)
        if out.is_dir():
            shutil.rmtree(out)
        seconds, peak, printed = measured(
            "--model", str(model), "--out", str(out), "--components", "unet", "--target", args.target, "--json"
        )
        gates = json.loads(printed)
        unet = Exported.read(out).components["unet"]
        exports[name] = {
            "seconds": round(seconds),
            "peak_memory_bytes": peak,
            "files": {file: (out / file).stat().st_size for file in unet.files},
            "parameters": unet.parameters,
            "parity": gates["parity"],
        }
        if args.tensorrt:
            seconds, peak, printed = measured("tensorrt", str(out), "--build", "--json")
            exports[name]["engines"] = json.loads(printed)["engines"]
            exports[name]["engine_seconds"], exports[name]["engine_peak_memory_bytes"] = round(seconds), peak
        print(name, json.dumps(exports[name]), file=sys.stderr)
    report = circumstances(
        sys.argv[1:], best_device("cpu"), program="recipes.measure.full_size_export", weights=RANDOM
    ) | {
        "models": exports,
    }
    with new_file(args.out) as file:
        file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
