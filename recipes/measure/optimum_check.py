"""Whether optimum loads an export as it is and draws with it. Runs in an environment of optimum's own, without koala:

    python -m venv optimum-env
    optimum-env/bin/pip install "optimum-onnx[onnxruntime]==0.1.0" "diffusers<0.36" torch
    optimum-env/bin/python recipes/measure/optimum_check.py exports/tiny-koala-700m --out docs/measurements/optimum.json

Latents are given, so that torch can be asked for the very same pictures: `--reference` does so with diffusers, from the
folder of the model that was exported.
"""

import argparse
import datetime
import hashlib
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import numpy
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from optimum.onnxruntime import ORTStableDiffusionXLPipeline

PROMPT = "a red circle left of a blue square"
SIZES = ((256, 256), (136, 200), (192, 320))  # width and height in px; the second is no multiple of 32
STEPS, GUIDANCE = 10, 5.0


def draw(pipeline, width: int, height: int) -> numpy.ndarray:
    """The picture (H, W, 3) in 0 .. 1."""
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    result = pipeline(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        width=width,
        height=height,
        latents=latents,
        output_type="np",
    )
    return result.images[0]


def changed(folder: Path, source: dict[str, str]) -> list[str]:
    """Files of the model that are not those of which the export was made."""
    return [
        name for name, sha256 in source.items() if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sha256
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, metavar="DIR")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="the model's own folder, for torch")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    args = parser.parse_args()

    manifest = json.loads((args.export / "export.json").read_text())
    if args.reference and (other := changed(args.reference, manifest["source"])):
        parser.error(f"{args.export} was made of other weights than {args.reference} has: {', '.join(other)}")
    pipeline = ORTStableDiffusionXLPipeline.from_pretrained(args.export)
    torch_pipeline = StableDiffusionXLPipeline.from_pretrained(args.reference) if args.reference else None
    pictures = []
    for width, height in SIZES:
        picture = draw(pipeline, width, height)
        assert picture.shape == (height, width, 3) and numpy.isfinite(picture).all()
        entry = {"width": width, "height": height, "mean": round(float(picture.mean()), 4)}
        if torch_pipeline:
            error = float(((picture - draw(torch_pipeline, width, height)) ** 2).mean())
            entry["psnr_db_against_torch"] = round(-10 * numpy.log10(error), 1)
        pictures.append(entry)
    names = ("optimum", "optimum-onnx", "transformers", "diffusers", "onnxruntime", "torch")
    report = {
        "command": "python " + " ".join(sys.argv),
        "device": f"{platform.machine()}, CPU",
        "versions": {name: version(name) for name in names},
        "date": datetime.date.today().isoformat(),
        "export": manifest["model"],
        "weights": {manifest["model"]: manifest["source"]},
        "steps": STEPS,
        "guidance": GUIDANCE,
        "prompt": PROMPT,
        "pictures": pictures,
    }
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
