"""How soon the Compare tab answers: seconds from the click to each model's first preview and to its picture.

    python -m recipes.measure.compare_speed --out docs/measurements/compare-speed.json

Starts the app as a visitor would, on the models that it chooses itself or on --models, waits until the page says that
they are ready, and presses Generate in a Chromium on this machine: once as the first click of that app, then more
often, each time with a new seed. A picture counts when the browser has decoded it. The speed-up and its parts are what
the page itself says of each run. A minute or two; nothing else should use the machine meanwhile.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from playwright.sync_api import Page, sync_playwright

from koala.evaluate.reports import circumstances
from koala.files.outputs import new_file
from koala.ui.session import embedded_pair

ROOT = Path(__file__).resolve().parents[2]
RUNS = 5  # after the first click
BARS = {"student_picture_s": 1.5, "pair_s": 6.0, "previews_s": 1.0}  # on two quiet cores

# Notes when the browser has decoded the first preview and the picture of each model, in ms since the click. A preview
# comes as data, a picture as a file of its own; the history's thumbnails lie outside the frame.
NOTES = """() => {
  const frame = document.querySelector(".k-grid");
  document.querySelector("#k-generate").addEventListener("click", () => {
    window.noted = { begun: performance.now(), preview: [null, null], picture: [null, null] };
  }, true);
  frame.addEventListener("load", (event) => {
    const k = [...frame.children].indexOf(event.target.closest(".k-cell")), noted = window.noted;
    if (!noted || k < 0) return;
    const kind = event.target.src.startsWith("data:") ? "preview" : "picture";
    noted[kind][k] ??= performance.now() - noted.begun;
  }, true);
}"""


@contextmanager
def served(models: Sequence[str]) -> Iterator[str]:
    """The address of an app of our own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "app.py", "--port", str(port), *(["--models", *models] if models else [])]
    with tempfile.TemporaryDirectory() as files:
        environment = os.environ | {"GRADIO_TEMP_DIR": files}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        try:
            while True:
                try:
                    urllib.request.urlopen(url, timeout=60).close()
                    break
                except (urllib.error.URLError, TimeoutError):
                    if process.poll() is not None:
                        raise SystemExit("the app ended before it served the page; its error is above") from None
                    time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=60)


def run(page: Page) -> dict:
    """One click: seconds until each model's first preview and picture, and what the page says of the speed-up."""
    page.get_by_role("button", name="Generate").click()
    page.locator(".k-stage[data-phase=running]").wait_for()
    page.locator(".k-stage[data-phase=done]").wait_for()
    page.wait_for_function("() => !window.noted.picture.includes(null)")
    noted = page.evaluate("window.noted")
    seconds = {
        kind: [None if ms is None else round(ms / 1000, 3) for ms in noted[kind]] for kind in ("preview", "picture")
    }
    return {
        "first_preview_s": seconds["preview"],
        "picture_s": seconds["picture"],
        "speed_up": page.locator(".k-speedup").inner_text(),
    }


def within(runs: Sequence[dict]) -> dict:
    """The slowest of the runs against the bars: the student is the model whose picture comes first."""
    slowest = {
        "student_picture_s": max(min(one["picture_s"]) for one in runs),
        "pair_s": max(max(one["picture_s"]) for one in runs),
        # a picture that is there before any preview was shown is as good as one
        "previews_s": max(
            max(p if p is not None else f for p, f in zip(one["first_preview_s"], one["picture_s"], strict=True))
            for one in runs
        ),
    }
    return {name: {"slowest": slowest[name], "bar": bar, "kept": slowest[name] <= bar} for name, bar in BARS.items()}


def measure(models: Sequence[str], chromium: str, runs: int) -> dict:
    """Everything of the report but its circumstances."""
    with served(models) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(600_000)
        page.goto(url)
        page.locator(".k-states li[data-state=ready]").nth(1).wait_for()
        page.evaluate(NOTES)
        titles = page.locator(".k-head .k-title").all_inner_texts()
        first, *later = [run(page) for _ in range(1 + runs)]
        settings = page.locator(".k-time .k-how").all_inner_texts()
        agent = browser.version
        browser.close()
    return {
        "models": titles,
        "settings": settings,
        "first_click": first,
        "later_clicks": later,
        "median": {
            name: [statistics.median(values) for values in zip(*(one[name] for one in later), strict=True)]
            for name in ("picture_s",)
        },
        "bars": within([first, *later]),
        "browser": f"Chromium {agent}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs=2, default=(), metavar=("A", "B"), help="default: those that the app chooses")
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"after the first click (default: {RUNS})")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("--runs takes 1 or more: the first click is not counted among them")
    report = measure(args.models, args.chromium, args.runs)
    weights = args.models or embedded_pair()
    report |= circumstances(sys.argv[1:], torch.device("cpu"), program="recipes.measure.compare_speed", weights=weights)
    with new_file(args.out) as file:
        file.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
