"""Whether the Space works in an environment of its own, with its own pins, with the package `spaces` and without it.

    python recipes/measure/space_check.py --out docs/measurements/space.json                # needs a network for pip
    python recipes/measure/space_check.py --environment DIR --out docs/measurements/space.json

The bundle is built by spaces/deploy.py, started as the platform does (SYSTEM=spaces), asked for a comparison by
gradio_client, and then by a browser for a comparison and a distillation, while its console must stay silent.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[2]
PAIR = ["tiny-sdxl", "tiny-koala-700m"]
PROMPT = "a red circle left of a blue square"
LONGEST = 180  # s that a start may take


@contextmanager
def running(python: str, bundle: Path, log: Path, **environment: str) -> Iterator[tuple[str, float]]:
    """The bundle's app, served: its address, and the seconds until its page was there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    outside = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    without = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # nothing of the repository
    begun = time.perf_counter()
    with log.open("w") as file:
        command, settings = [python, "app.py"], without | outside | environment
        process = subprocess.Popen(command, cwd=bundle, env=settings, stdout=file, stderr=subprocess.STDOUT)
    try:
        while not answers(url):
            late = time.perf_counter() - begun > LONGEST
            if late or process.poll() is not None:
                raise RuntimeError(f"the Space did not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield url, time.perf_counter() - begun
    finally:
        process.terminate()
        process.wait(timeout=20)


def answers(url: str) -> bool:
    """Whether there is a page."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, TimeoutError):
        return False


def compare(url: str, files: Path, steps: int = 4) -> dict:
    """A comparison through the Space's API: its JSON, after a look at the pictures."""
    from gradio_client import Client
    from PIL import Image

    client = Client(url, verbose=False, download_files=str(files))
    pictures, comparison = client.predict(models=PAIR, prompt=PROMPT, steps=steps, api_name="/compare")
    for picture in pictures:
        with Image.open(picture) as image:
            low, high = image.convert("L").getextrema()
            if image.size != (256, 256) or low == high:
                raise RuntimeError(f"{picture} is no picture")
    return comparison


@contextmanager
def visit(url: str, chromium: str) -> Iterator[tuple["Page", list[str]]]:
    """The page in a browser; what its console says, and what it fetches from elsewhere."""
    from playwright.sync_api import sync_playwright

    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else wrong.append(r.url))
        page.goto(url)
        yield page, wrong
        browser.close()


def draw(page: "Page", prompt: str = PROMPT) -> None:
    """A comparison as a visitor makes it."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Generate").click()
    page.locator(".k-stage[data-phase=done]").wait_for()


def distil(page: "Page") -> None:
    """A distillation as a visitor begins it: watched until it learns, and stopped."""
    page.get_by_role("tab", name="Distill").click()
    page.get_by_role("button", name="Start").click()
    page.locator(".kd-run[data-state=running], .kd-run[data-state=failed]").wait_for(timeout=300_000)
    if page.locator(".kd-run[data-state=failed]").count():
        raise RuntimeError(f"the distillation failed: {page.locator('.kd-run').inner_text()}")
    page.get_by_role("button", name="Stop").click()
    page.locator(".kd-run[data-state=stopped]").wait_for()


def install(python: str, folder: Path, bundle: Path) -> str:
    """A fresh environment with the bundle's pins alone; its interpreter."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    own = str(folder.absolute() / "bin" / "python")  # the app runs in the bundle
    subprocess.run([own, "-m", "pip", "install", "--quiet", "-r", bundle / "requirements.txt"], check=True)
    return own


VERSIONS = """
import json, platform
from importlib.metadata import PackageNotFoundError, version
names = ("torch", "diffusers", "transformers", "gradio", "spaces")
versions = {"python": platform.python_version()}
for name in names:
    try:
        versions[name] = version(name)
    except PackageNotFoundError:
        versions[name] = None
print(json.dumps(versions))
"""


def check(python: str, bundle: Path, work: Path, chromium: str | None) -> dict:
    """One environment: versions, seconds until the page and the first pictures, and what the browser had to say."""
    versions = json.loads(subprocess.run([python, "-c", VERSIONS], check=True, capture_output=True, text=True).stdout)
    log = work / "app.log"
    with running(python, bundle, log, SYSTEM="spaces", KOALA_RUNS=str(work / "runs")) as (url, served):
        begun = time.perf_counter()
        comparison = compare(url, work)
        pictures = time.perf_counter() - begun
        console = None
        if chromium:
            with visit(url, chromium) as (page, console):
                draw(page)
                distil(page)
    if console or "Traceback" in log.read_text():
        raise RuntimeError(f"{console}\n{log.read_text()}")
    return {
        "versions": versions,
        "seconds_until_page": round(served, 1),
        "seconds_from_page_to_first_comparison": round(pictures, 1),
        "speedup_total": round(comparison["speedup"]["models"][0]["total"], 2),
        "browser": "a comparison and a distillation, with a silent console" if chromium else None,
    }


def shipped(bundle: Path) -> dict[str, dict[str, str]]:
    """The weights that the bundle draws with; its app holds each file against this list on loading."""
    listed = json.loads((bundle / "koala" / "embedded" / "hashes.json").read_text())
    return {
        name: {file: sha256 for file, sha256 in listed[name].items() if file.endswith(".safetensors")} for name in PAIR
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="python3.12", help="the interpreter that makes the fresh environment")
    parser.add_argument("--environment", type=Path, metavar="DIR", help="where it goes; a temporary folder by default")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser; none: without that part")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        bundle = work / "space"
        subprocess.run([sys.executable, ROOT / "spaces" / "deploy.py", "--out", bundle], check=True)
        own = install(args.python, args.environment or work / "environment", bundle)
        subprocess.run([own, "-m", "pip", "uninstall", "--quiet", "--yes", "spaces"], check=True)
        without = check(own, bundle, work, args.chromium)
        subprocess.run([own, "-m", "pip", "install", "--quiet", "spaces"], check=True)
        beside = check(own, bundle, work, args.chromium)
        files = [f for f in bundle.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
        report = {
            "command": "python " + " ".join(sys.argv),
            "date": datetime.date.today().isoformat(),
            "weights": shipped(bundle),
            "device": f"{platform.machine()}, CPU, {len(os.sched_getaffinity(0))} core",
            "bundle": {"files": len(files), "bytes": sum(f.stat().st_size for f in files)},
            "with_spaces": beside,
            "without_spaces": without,
        }
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
