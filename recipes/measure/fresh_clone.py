"""Whether a stranger's first minutes go as README and CONTRIBUTING say: their commands, pasted into fresh clones.

    python -m recipes.measure.fresh_clone --out docs/measurements/fresh-clone.json      # needs a network for pip

Each command gets a clone of its own, without any environment, and bash. The app's command is over when its page is
there and a picture was drawn through it, CONTRIBUTING's when its first block has ended.
"""

import argparse
import datetime
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recipes.measure.space_check import ROOT, answers

PAGE = "http://127.0.0.1:7860/"  # what README promises
LONGEST = 1800  # s


def blocks(document: str) -> list[str]:
    """Every bash block of a document at the root, in order."""
    return re.findall(r"```bash\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)


def clone(folder: Path) -> Path:
    """What is committed, as a stranger gets it."""
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    return folder


def app(command: str, folder: Path) -> dict[str, float]:
    """Seconds from the pasted line to the page, and from there to the first picture."""
    begun = time.perf_counter()
    process = subprocess.Popen(["bash", "-c", command], cwd=folder, start_new_session=True)
    try:
        while not answers(PAGE):
            if process.poll() is not None or time.perf_counter() - begun > LONGEST:
                raise RuntimeError(f"no page at {PAGE} after {command!r}")
            time.sleep(0.5)
        page = time.perf_counter()
        drawing = (
            "from gradio_client import Client\n"
            f"Client({PAGE!r}, verbose=False).predict(model='tiny-koala-700m', prompt='a red circle',"
            " api_name='/generate')"
        )
        subprocess.run([folder / ".venv" / "bin" / "python", "-c", drawing], cwd=folder, check=True)
        drawn = time.perf_counter()
        return {
            "seconds_until_page": round(page - begun, 1),
            "seconds_from_page_to_first_picture": round(drawn - page, 1),
        }
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def paste(command: str, folder: Path) -> float:
    """Seconds that a block takes in bash; CalledProcessError where one of its lines fails."""
    begun = time.perf_counter()
    subprocess.run(["bash", "-e", "-c", command], cwd=folder, check=True, timeout=LONGEST)
    return round(time.perf_counter() - begun, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    args = parser.parse_args()

    (start,) = (b for b in blocks("README.md") if b.rstrip().endswith("app.py"))
    first_change = blocks("CONTRIBUTING.md")[0]
    with tempfile.TemporaryDirectory() as work:
        figures = {
            "readme_app": {"block": start, **app(start, clone(Path(work) / "app"))},
            "contributing": {"block": first_change, "seconds": paste(first_change, clone(Path(work) / "change"))},
        }
    report = figures | {
        "command": " ".join(["python -m recipes.measure.fresh_clone", *sys.argv[1:]]),
        "device": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "date": datetime.date.today().isoformat(),
        "weights": "none",
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
