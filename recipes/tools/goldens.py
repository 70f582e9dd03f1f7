"""What the commands give today: pixels, a student's bytes, losses and an exported graph, to compare after a change.

    python -m recipes.tools.goldens --out docs/measurements/goldens.json
    python -m recipes.tools.goldens --against docs/measurements/goldens.json

Everything goes through the command line, so that the code behind it may move. Pixels and losses are the same on the
same machine only; `--against` says when the report is of another one.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy
import onnx
import torch
from PIL import Image

from koala.evaluate.reports import circumstances
from koala.files.outputs import new_file

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("tiny-sdxl", "tiny-koala-1b", "tiny-koala-700m")
REQUESTS = {
    "default": ["--prompt", "a large red circle on a white background", "--seed", "3"],
    "negative": ["--prompt", "a blue square", "--negative-prompt", "a star", "--seed", "7", "--width", "128"],
    "unguided": ["--prompt", "a yellow star left of a green ring", "--steps", "8", "--guidance", "1"],
    "euler": ["--prompt", "two pink triangles", "--scheduler", "euler-trailing", "--steps", "10", "--images", "2"],
}
RUN = ["teacher=tiny-sdxl", "student_spec=koala-700m", "num_steps=10", "batch_size=4", "resolution=128", "seed=5"]
RUN += ["num_pictures=16", "validate_every=10", "validation_pictures=4", "score_prompts=0", "log_every=1", "threads=1"]


def main() -> None:
    """Write the report, or compare with one; exit status 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--out", type=Path, metavar="FILE.json", help="write what the commands give")
    way.add_argument("--against", type=Path, metavar="FILE.json", help="compare with an earlier report")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = golden_values(Path(folder))
    report |= circumstances(sys.argv[1:], torch.device("cpu"), weights=MODELS, program="recipes.tools.goldens")
    if options.out:
        with new_file(options.out) as file:
            file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        return
    earlier = json.loads(options.against.read_text(encoding="utf-8"))
    if earlier["device"] != report["device"]:
        print(f"the report is of another machine ({earlier['device']}): pixels and losses may differ", file=sys.stderr)
    different = list(differences(earlier, report))
    print("\n".join(different) or f"all {len(golden(report))} values are the same")
    sys.exit(bool(different))


def golden_values(folder: Path) -> dict:
    """Every golden value, measured in this folder."""
    pictures = {}
    for model in MODELS:
        for name, request in REQUESTS.items():
            file = folder / f"{model}-{name}.png"
            drawn = koala("generate", "--model", model, *request, "--out", str(file))
            pictures[f"{model}/{name}"] = [pixels(Path(image)) for image in drawn["images"]]
    students = {}
    for spec in ("koala-1b", "koala-700m"):
        koala("compress", "--teacher", "tiny-sdxl", "--spec", spec, "--out", str(folder / spec))
        students[spec] = sha256((folder / spec / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())
    koala("distill", *RUN, "--out", str(folder / "run"))
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    export = [sys.executable, "-m", "export", "--model", "tiny-koala-700m", "--components", "unet"]
    subprocess.run([*export, "--out", str(folder / "onnx")], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return {
        "pictures": pictures,
        "students": students,
        "losses": [timeless(json.loads(line)) for line in lines],
        "onnx": graph(folder / "onnx" / "unet" / "model.onnx"),
    }


def koala(*arguments: str) -> dict:
    """One verb's JSON; CalledProcessError where it fails."""
    command = [sys.executable, "-m", "koala", *arguments, "--json"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def sha256(data: bytes) -> str:
    """Of these bytes."""
    return hashlib.sha256(data).hexdigest()


def pixels(file: Path) -> str:
    """SHA-256 of a picture's size and RGB values; its text is left out."""
    with Image.open(file) as picture:
        return sha256(repr(picture.size).encode() + picture.convert("RGB").tobytes())


def timeless(metrics: dict) -> dict:
    """A line of metrics without what depends on the clock."""
    return {key: value for key, value in metrics.items() if not any(w in key for w in ("time", "second", "memory"))}


def graph(file: Path) -> dict:
    """An ONNX graph as hashes: nodes with their inputs, outputs and attributes, and every initializer's values."""
    model = onnx.load(file).graph
    nodes = [
        (n.op_type, n.domain, list(n.input), list(n.output), sorted(a.SerializeToString().hex() for a in n.attribute))
        for n in model.node
    ]
    values = hashlib.sha256()
    for tensor in sorted(model.initializer, key=lambda t: t.name):
        values.update(tensor.name.encode() + numpy.ascontiguousarray(onnx.numpy_helper.to_array(tensor)).tobytes())
    return {"nodes": len(nodes), "graph": sha256(repr(nodes).encode()), "initializers": values.hexdigest()}


KINDS = ("pictures", "students", "losses", "onnx")


def golden(report: dict) -> dict[str, object]:
    """What is compared, without the circumstances: path -> value."""
    return {where: value for kind in KINDS for where, value in leaves(report[kind], kind)}


def leaves(report: object, where: str) -> Iterator[tuple[str, object]]:
    """Every value of a report with its path."""
    if isinstance(report, dict | list):
        pairs = report.items() if isinstance(report, dict) else enumerate(report)
        for key, value in pairs:
            yield from leaves(value, f"{where}/{key}")
    else:
        yield where, report


def differences(earlier: dict, now: dict) -> Iterator[str]:
    """A line per value that is not the same, or is in one report alone."""
    before, after = golden(earlier), golden(now)
    for where in sorted(before.keys() | after.keys()):
        if before.get(where) != after.get(where):
            yield f"{where}: {before.get(where)} before, {after.get(where)} now"


if __name__ == "__main__":
    main()
