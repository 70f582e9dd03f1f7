"""Whether the version ranges of pyproject.toml are true: the lowest and the newest versions, installed and used.

    python -m recipes.measure.versions --out docs/measurements/versions.json              # needs a package index
    python -m recipes.measure.versions --environments lowest --out docs/measurements/versions.json

Each environment is a fresh one, made in a temporary folder and removed afterwards. Environments that are not
measured this time keep their entries in the file. Exit status 1 says that a step failed, and which.
"""

import argparse
import datetime
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import tomllib
from packaging.requirements import Requirement

from koala.files.outputs import new_file

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = {
    "lowest": "torch as requirements.txt pins it, every other direct dependency at its lowest",
    "newest": "every dependency at the newest version that its range allows",
    "floor": "every direct dependency at its lowest, torch too",
}
LONGEST = 1800  # s that one step may take
PROMPT = "a red circle left of a blue square"
DRAW = ("--prompt", PROMPT, "--width", "64", "--height", "64", "--steps", "1")
DISTIL = (
    *("num_steps=2", "num_pictures=8", "batch_size=2", "resolution=128", "validation_pictures=2"),
    *("validation_prompts=circle", "validate_every=0", "score_prompts=0"),
)

IMPORTS = """
import importlib, pathlib
files = [*pathlib.Path("koala").rglob("*.py"), *pathlib.Path("export").rglob("*.py"), pathlib.Path("app.py")]
for file in files:
    name = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
    if not name.endswith("__main__"):
        importlib.import_module(name)
"""

LORA = """
import sys, torch
from safetensors.torch import save_file
key = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
down, up = torch.full((1, 32), 0.1), torch.full((32, 1), 0.1)
save_file({f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}, sys.argv[1])
"""

ROWS = """
import sys, pathlib, numpy
from PIL import Image
from koala.distill.config import DistillConfig
from koala.distill.data.sources import source_for
folder = pathlib.Path(sys.argv[1]); folder.mkdir()
for k in range(3):
    Image.fromarray(numpy.full((64, 64, 3), 80 * k, "uint8")).save(folder / f"{k}.png")
(folder / "metadata.csv").write_text("file_name,text\\n" + "".join(f"{k}.png,picture {k}\\n" for k in range(3)))
config = DistillConfig(data=f"hub:{folder}", image_column="image", short_caption="text", detailed_caption="text")
rows = [row for part in source_for(config, 64).parts for row in part.read(0)]
assert len(rows) == 3, rows
"""

SERVE = """
import subprocess, sys, time, urllib.request
port, page = sys.argv[1], f"http://127.0.0.1:{sys.argv[1]}/"
app = subprocess.Popen([sys.executable, "app.py", "--port", port])
try:
    for _ in range(600):
        try:
            assert urllib.request.urlopen(page, timeout=60).status == 200
            break
        except OSError:
            if app.poll() is not None:
                sys.exit("app.py ended before its page was there")
            time.sleep(0.5)
    else:
        sys.exit("app.py served no page")
    from gradio_client import Client
    request = dict(model="tiny-koala-700m", prompt="a red circle", width=64, height=64, steps=1)
    Client(page, verbose=False).predict(**request, api_name="/generate")
finally:
    app.terminate()
    app.wait(60)
"""


def dependencies() -> list[Requirement]:
    """The direct dependencies of pyproject.toml that this platform installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [Requirement(text) for text in project["dependencies"]]
    return [r for r in requirements if r.marker is None or r.marker.evaluate()]


def floor(requirement: Requirement) -> str:
    """The lowest version that a requirement allows; ValueError where it names none."""
    lowest = [s.version for s in requirement.specifier if s.operator == ">="]
    if len(lowest) != 1:
        raise ValueError(f"pyproject.toml: {requirement} names no lowest version; write {requirement.name}>=VERSION")
    return lowest[0]


def pinned(name: str) -> str:
    """The version that requirements.txt pins."""
    return re.search(rf"^{re.escape(name)}==([\w.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]


def wanted(environment: str) -> list[str]:
    """What pip is asked to install."""
    if environment == "newest":
        return [f"{r.name}{r.specifier}" for r in dependencies()]
    versions = {r.name: floor(r) for r in dependencies()}
    if environment == "lowest":
        versions["torch"] = pinned("torch")
    return [f"{name}=={version}" for name, version in versions.items()]


def steps(python: str, work: Path) -> dict[str, list[str]]:
    """What is tried, in its order: name -> command line."""
    koala, export = [python, "-m", "koala"], [python, "-m", "export"]
    lora, student, exported = str(work / "lora.safetensors"), str(work / "student"), str(work / "exported")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    out = ("--out", str(work / "picture.png"))
    return {
        "imports every module": [python, "-c", IMPORTS],
        "draws a picture": [*koala, "generate", "--model", "tiny-koala-700m", *DRAW, *out],
        "writes a LoRA": [python, "-c", LORA, lora],
        "draws with a LoRA": [*koala, "generate", "--model", "tiny-koala-700m", "--lora", lora, *DRAW, *out],
        "cuts a student": [*koala, "compress", "--teacher", "tiny-sdxl", "--spec", "koala-700m", "--out", student],
        "draws with the student": [*koala, "generate", "--model", student, *DRAW, *out],
        "reads a data set": [python, "-c", ROWS, str(work / "rows")],
        "distils two steps": [*koala, "distill", "--preset", "2-minutes", "--out", str(work / "run"), *DISTIL],
        "exports the student": [*export, "--model", student, "--out", exported, "--pictures", "1"],
        "draws with the export": [*koala, "generate", "--model", exported, *DRAW, *out],
        "serves the page and draws through it": [python, "-c", SERVE, port],
    }


def attempt(command: list[str], work: Path) -> str:
    """Run one step at the repository's root; "ok", or the last line of what it said."""
    settings = {"HF_HUB_OFFLINE": "1", "PYTHONPYCACHEPREFIX": str(work / "cache"), "HF_HOME": str(work / "hub")}
    settings |= {"KOALA_RUNS": str(work / "runs"), "KOALA_EXPORTS": str(work / "exports")}
    for old in work.glob("picture*"):  # several steps write it
        old.unlink()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=LONGEST
        )
    except subprocess.TimeoutExpired:
        return f"took more than {LONGEST} s"
    message = (done.stdout + done.stderr).strip().splitlines() or [f"exit status {done.returncode}"]
    return "ok" if done.returncode == 0 else message[-1].replace(str(work), "...").replace(str(ROOT), "...")


def install(environment: str, python: str, folder: Path, uv: str | None = None) -> str:
    """A fresh environment; its interpreter. RuntimeError with the installer's own words where it cannot be made."""
    subprocess.run([python, "-m", "venv", *(["--without-pip"] if uv else []), folder], check=True)
    own = str(folder / "bin" / "python")
    installer = [uv, "pip", "install", "--python", own] if uv else [own, "-m", "pip", "install"]
    done = subprocess.run([*installer, "--quiet", *wanted(environment)], capture_output=True, text=True)
    if done.returncode:
        message = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise RuntimeError(f"{environment}: it cannot be installed: {' '.join(message)}")
    return own


VERSIONS = (
    "import json, sys; from importlib.metadata import version; print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
)


def measure(environment: str, python: str, uv: str | None = None) -> dict:
    """One environment: its versions, and the outcome of every step."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        own = install(environment, python, work / "environment", uv)
        names = [r.name for r in dependencies()]
        ask = [own, "-c", VERSIONS, *names]
        versions = json.loads(subprocess.run(ask, check=True, capture_output=True, text=True).stdout)
        version = [own, "-c", "import platform; print(platform.python_version())"]
        outcome: dict[str, str] = {}
        for step, command in steps(own, work).items():
            begun = time.perf_counter()
            outcome[step] = attempt(command, work)
            print(f"{environment}: {step}: {outcome[step]} ({time.perf_counter() - begun:.0f} s)", file=sys.stderr)
        return {
            "what": ENVIRONMENTS[environment],
            "date": datetime.date.today().isoformat(),
            "device": f"{platform.machine()}, CPU, {os.cpu_count()} cores",
            "python": subprocess.run(version, check=True, capture_output=True, text=True).stdout.strip(),
            "versions": versions,
            "steps": outcome,
        }


def failures(environments: Mapping[str, dict]) -> list[str]:
    """One line for every step that failed."""
    return [
        f"{name}: {step}: {message}"
        for name, environment in environments.items()
        for step, message in environment["steps"].items()
        if message != "ok"
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--environments", nargs="+", choices=tuple(ENVIRONMENTS), default=list(ENVIRONMENTS))
    parser.add_argument("--python", default=sys.executable, help="the interpreter that makes the environments")
    parser.add_argument("--uv", metavar="FILE", help="install with this uv, in seconds, where pip takes minutes")
    args = parser.parse_args()

    report = json.loads(args.out.read_text()) if args.out.is_file() else {"environments": {}}
    report["weights"] = "none"
    report["command"] = "python -m recipes.measure.versions --out docs/measurements/versions.json"
    for name in args.environments:
        report["environments"][name] = measure(name, args.python, args.uv)
        with new_file(args.out) as partial:
            partial.write_text(json.dumps(report, indent=1) + "\n")
    wrong = failures({name: report["environments"][name] for name in args.environments})
    print("\n".join(wrong) or f"{', '.join(args.environments)}: everything works")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
