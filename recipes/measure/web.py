"""What the page of a site costs a visitor and how near its pictures are to torch's, in a Chromium on this machine.

    python -m export --target web --models tiny-sdxl tiny-koala-700m --out site
    python -m recipes.measure.web --site site --out docs/measurements/web.json

Sizes are bytes on the way, gzipped; times are ratios of one run, on one thread; differences are of 255.
"""

import argparse
import functools
import gzip
import http.server
import io
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from koala.evaluate.reports import circumstances
from koala.files.outputs import new_file
from koala.models.library import Library
from koala.sampling.generate import generate
from koala.sampling.result import read_png

RUNS = 5  # of which the first warms up
SETTINGS = (  # a link's fragment for each comparison with torch
    "seed=3",
    "prompt=a+yellow+star+above+a+purple+ring&seed=77&width=128&height=128&steps=8,8",
    "prompt=a+small+pink+triangle&negative_prompt=a+circle&seed=4294967295&width=320&height=192&steps=12,12&guidance=5,5",
)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder as a plain static host has it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def sizes(folder: Path, site: dict) -> dict[str, int]:
    """Bytes on the way until the student can draw, and of all of the site."""
    sent = {
        f.relative_to(folder).as_posix(): len(gzip.compress(f.read_bytes(), 9))
        for f in folder.rglob("*")
        if f.is_file()
    }
    student = min(site["models"], key=lambda model: model["parameters"])
    wasm = site["runtime"]["backends"]["wasm"]
    first = {*site["page"], "sw.js", *student["parts"].values(), *student["tokenizers"], *wasm.values()}
    return {"first_load": sum(sent[name] for name in first), "whole": sum(sent.values())}


def drawn(page: Page, scratch: Path) -> tuple[list[bytes], dict]:
    """The pictures of a run, and its times."""
    page.locator("#generate").click()
    page.locator("html[data-phase=done]").wait_for()
    files = []
    for k in range(page.locator(".head a").count()):
        with page.expect_download() as download:
            page.locator(".head a").nth(k).click()
        download.value.save_as(scratch / "picture.png")
        files.append((scratch / "picture.png").read_bytes())
    return files, page.evaluate("document.documentElement.koala.last.map((one) => one.timing)")


def difference(content: bytes, library: Library) -> int:
    """The largest, of 255, between a picture of the page and torch's of the request that it carries."""
    request = read_png(content)["request"]
    own = np.asarray(Image.open(io.BytesIO(content)), np.int16)
    with torch.inference_mode():
        return int(np.abs(own - np.asarray(generate(request, library.get(request.model)).images[0], np.int16)).max())


def first_picture(browser: Browser, url: str, student: str) -> float:
    """Seconds of a new visitor from the student being there to the first picture, asked for at once."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(300_000)
    page.goto(f"{url}#seed=1")
    page.locator(f"#state-{student}[data-state=ready]").wait_for()
    began = time.perf_counter()
    page.locator("#generate").click()
    page.locator(".head a:visible").first.wait_for()
    took = time.perf_counter() - began
    context.close()
    return took


def measure(folder: Path, chromium: str) -> dict:
    """Everything of the report but its circumstances."""
    site, library = json.loads((folder / "site.json").read_text()), Library("cpu")
    with served(folder) as url, sync_playwright() as playwright, tempfile.TemporaryDirectory() as scratch:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        # before this process computes: torch's threads go on asking for work for a while
        waits = [first_picture(browser, url, site["models"][-1]["name"]) for _ in range(RUNS)]
        page = browser.new_page()
        page.set_default_timeout(300_000)
        page.goto(f"{url}#{SETTINGS[0]}")
        for model in site["models"]:
            page.locator(f"#state-{model['name']}[data-state=ready]").wait_for()
        runs = [drawn(page, Path(scratch))[1] for _ in range(RUNS)][1:]
        compared = []
        for fragment in SETTINGS:
            page.goto(f"{url}#{fragment}")
            files, _ = drawn(page, Path(scratch))
            compared.append({"settings": fragment, "largest_difference": [difference(f, library) for f in files]})
        agent = browser.version
        browser.close()
    per_call = [[sum(one["unet_ms"]) / one["unet_calls"] for one in run] for run in runs]
    return {
        "site": sizes(folder, site),
        "models": [{key: model[key] for key in ("name", "dtype", "source")} for model in site["models"]],
        "against_torch": compared,
        "speedup_per_call": round(statistics.median(first / last for first, *_, last in per_call), 2),
        "speedup_total": round(statistics.median(run[0]["total_ms"] / run[-1]["total_ms"] for run in runs), 2),
        "first_picture_s": [round(wait, 1) for wait in sorted(waits)],
        "runs": len(runs),
        "threads": 1,
        "runtime": f"onnxruntime-web {site['runtime']['version']}",
        "browser": f"Chromium {agent}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, required=True, metavar="DIR", help="written by export --target web")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    args = parser.parse_args()
    report = measure(args.site, args.chromium)
    weights = {model["name"]: model["source"] for model in report["models"]}
    report |= circumstances(sys.argv[1:], torch.device("cpu"), program="recipes.measure.web", weights=weights)
    with new_file(args.out) as file:
        file.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
