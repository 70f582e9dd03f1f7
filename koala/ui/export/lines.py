"""Commands and programs to copy: an export run by this project, numpy alone, ONNX Runtime and TensorRT."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from koala.models.export_manifest import UNET, Exported
from koala.unet.costs import LATENT_FACTOR, TOKENS

PROMPT = "a red circle left of a blue square"
_STEP = """import numpy
import onnxruntime

session = onnxruntime.InferenceSession({file}, providers=["CPUExecutionProvider"])
noise = session.run(
    ["out_sample"],
    {{
{inputs}
    }},
)[0]
print(noise.shape, noise.dtype)"""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Something to paste into a terminal or a program, and a note about it."""

    title: str
    text: str
    note: str = ""


def lines(exported: Exported, folder: str, engines: Mapping[str, Sequence[str]], why_not: str = "") -> list[Line]:
    """The lines for one export. `engines` are TensorRT's commands by program; `why_not` says why there are none."""
    where, prompt = shlex.quote(folder), shlex.quote(PROMPT)
    lines = [
        Line(
            title="This project",
            text=f"python -m koala generate --model {where} --prompt {prompt} --out picture.png",
            note="" if exported.whole else f"The text encoders and the VAE of {exported.model} run in torch.",
        )
    ]
    if exported.whole:
        lines.append(
            Line(
                title="numpy alone",
                text=f"python koala/export/numpy_runner.py {where} {prompt} --seed 0 --out picture.png",
                note="One readable file without torch, to port to other languages.",
            )
        )
    lines.append(Line(title="One U-Net step in ONNX Runtime", text=_step(exported, f"{folder}/{UNET}")))
    lines += [Line(title=name, text=f"cd {where} && {shlex.join(words)}") for name, words in engines.items()]
    if why_not:
        lines.append(Line(title="TensorRT", text="", note=why_not))
    lines.append(
        Line(
            title="Run the gates again",
            text=f"python -m koala export verify {where}",
            note="The exit status is 0 where all gates pass.",
        )
    )
    return lines


def _step(exported: Exported, file: str) -> str:
    """A program that runs one guided step of the U-Net at the model's own size."""
    height, width = (int(exported.defaults[side]) for side in ("height", "width"))
    sizes = {"batch": 2, "height": height // LATENT_FACTOR, "width": width // LATENT_FACTOR, "sequence": TOKENS}
    rows = []
    for name, (dtype, dims) in exported.components["unet"].inputs.items():
        shape = [sizes.get(dim, dim) for dim in dims]
        values = {
            "timestep": "numpy.array(999",
            "time_ids": f"numpy.array([[{height}, {width}, 0, 0, {height}, {width}]] * 2",
            "sample": f"numpy.random.default_rng(0).standard_normal({tuple(shape)}",
        }
        rows.append(f'        "{name}": {values.get(name, f"numpy.zeros({tuple(shape)}")}).astype("{dtype}"),')
    return _STEP.format(file=json.dumps(file), inputs="\n".join(rows))
