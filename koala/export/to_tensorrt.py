"""An export for TensorRT: its profile, the command lines that build and run it, and a real engine.

Everything is written into the export's folder and names files relative to it.
"""

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from koala.errors import UserError
from koala.export.engines import KINDS, TENSORRT_PLAN, Engine, Profile, build, ready_builders
from koala.export.quantise import DYNAMIC
from koala.export.shape_profile import LONGEST, profile
from koala.files.outputs import new_file
from koala.files.reading import read_object
from koala.models.export_manifest import UNET, Exported
from koala.unet.config import from_config
from koala.unet.costs import LATENT_FACTOR, TOKENS

HELP = "write the command lines that build an export with TensorRT; --build runs the builder"
JSON_FILE, MARKDOWN_FILE = "tensorrt.json", "tensorrt.md"
_NEXT_TO_UNET = "unet/tensorrt"  # where ONNX Runtime keeps what it has built


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """tensorrt.json: how to build and run an export. Lines are run in the export's folder."""

    model: str
    onnx: str
    onnx_sha256: str
    dtype: str
    opset: int
    profile: Profile
    lines: Mapping[str, Sequence[str]]  # program -> its arguments
    onnxruntime: Mapping[str, Mapping[str, str]]  # execution provider -> its options
    engines: Sequence[Engine] = ()

    def markdown(self) -> str:
        """The same as Markdown."""
        rows = [f"| {name} | {' | '.join(_dims(each[k]) for k in KINDS)} |" for name, each in self.profile.items()]
        return "\n".join(
            [
                f"# {self.model} with TensorRT",
                "",
                f"The U-Net is `{self.onnx}`, opset {self.opset}, {self.dtype}, strongly typed: the file says the type "
                "of every tensor, so no precision is asked for. Run the lines in this folder.",
                "",
                "| input | smallest | usual | largest |",
                "|---|---|---|---|",
                *rows,
                "",
                "The timestep is a scalar and needs no entry. A guided picture counts twice in the batch. A wide range "
                "costs memory and some speed: narrow it to what you draw, with --min, --opt, --max, --batch, --tokens.",
                *(line for name, words in self.lines.items() for line in _block(name, "sh", shlex.join(words))),
                *_block("ONNX Runtime with TensorRT", "python", _TENSORRT_EP.format(**self._options("Tensorrt"))),
                "",
                "`onnxruntime-gpu` from PyPI is linked against TensorRT 10; `pip install tensorrt` gives 11, and ONNX "
                "Runtime then goes on with the CPU in silence: the assertion is there for that.",
                *_block("ONNX Runtime with TensorRT-RTX", "python", _RTX_EP.format(**self._options("NvTensorRTRTX"))),
                *(self._built() if self.engines else ()),
                "",
            ]
        )

    def _options(self, provider: str) -> dict[str, str]:
        options = self.onnxruntime[f"{provider}ExecutionProvider"]
        return {"onnx": self.onnx, "options": json.dumps(options, indent=4)}

    def _built(self) -> list[str]:
        return ["", "## Built here", "", *(f"- {engine.line()}" for engine in self.engines)]


_TENSORRT_EP = """import onnxruntime

options = {options}
session = onnxruntime.InferenceSession(
    "{onnx}", providers=[("TensorrtExecutionProvider", options), "CUDAExecutionProvider"]
)
assert session.get_providers()[0] == "TensorrtExecutionProvider", session.get_providers()"""

_RTX_EP = """# pip install "onnxruntime>=1.24" onnxruntime-ep-nv-tensorrt-rtx, without onnxruntime-gpu
import onnxruntime
import onnxruntime_ep_nv_tensorrt_rtx as rtx

options = {options}
onnxruntime.register_execution_provider_library(rtx.get_ep_name(), rtx.get_library_path())
devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == rtx.get_ep_name()]
assert devices, "no RTX GPU of the Ampere generation or later"
settings = onnxruntime.SessionOptions()
settings.add_provider_for_devices(devices, options)
session = onnxruntime.InferenceSession("{onnx}", sess_options=settings)"""


def _block(title: str, language: str, text: str) -> list[str]:
    return ["", f"## {title}", "", f"```{language}", text, "```"]


def _dims(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def recipe(
    folder: Path,
    *,
    sides: tuple[int | None, int | None, int | None] = (None, None, None),
    batch: tuple[int, int, int] = (1, 2, 4),
    tokens: tuple[int, int, int] = (TOKENS, TOKENS, LONGEST),
) -> Recipe:
    """How to build an export for sides in px, batch and tokens: each smallest, usual, largest; None is the export's."""
    if min(*batch, *tokens) < 1:
        raise UserError(f"batch and tokens are at least 1 each, not {min(*batch, *tokens)}")
    exported = Exported.read(folder)
    unet = exported.components["unet"]
    if exported.dtype == DYNAMIC:
        raise UserError(
            f"{folder} is an export for {exported.target}: it multiplies integers whose scale is computed in every run "
            "(DynamicQuantizeLinear, MatMulInteger), and TensorRT has neither. Export the model for TensorRT: "
            f"python -m koala export --model {exported.model} --target tensorrt --out DIR"
        )
    exported.check(folder)
    file = folder / "unet" / "config.json"
    own = (exported.profile["sample"][kind][-1] * LATENT_FACTOR for kind in KINDS)
    wanted = tuple(usual if side is None else side for side, usual in zip(sides, own, strict=True))
    shapes = profile(
        from_config(read_object(file), exported.model, str(file)), sides=wanted, batch=batch, tokens=tokens
    )
    return Recipe(
        model=exported.title,
        onnx=UNET,
        onnx_sha256=unet.files[UNET],
        dtype=exported.dtype,
        opset=unet.opset,
        profile=shapes,
        lines=_lines(shapes),
        onnxruntime=_providers(shapes, exported.stored_dtype),
    )


def _spelled(shapes: Profile, kind: str) -> str:
    """A profile's shapes as trtexec and ONNX Runtime read them."""
    return ",".join(f"{name}:{_dims(each[kind])}" for name, each in shapes.items())


def _lines(shapes: Profile) -> dict[str, list[str]]:
    """Program -> a command line."""
    each = [f"--{kind}Shapes={_spelled(shapes, kind)}" for kind in KINDS]
    build = ["trtexec", f"--onnx={UNET}", *each, f"--saveEngine={TENSORRT_PLAN}", "--skipInference"]
    bracketed = [
        word
        for kind in KINDS
        for word in (f"--trt-{kind}-shapes", *(f"{name}:[{','.join(map(str, s[kind]))}]" for name, s in shapes.items()))
    ]
    return {
        "trtexec of TensorRT 10": [*build, "--stronglyTyped"],
        "trtexec of TensorRT 11": build,
        "trtexec, timing the engine": [
            "trtexec",
            f"--loadEngine={TENSORRT_PLAN}",
            f"--shapes={_spelled(shapes, 'opt')}",
            "--useCudaGraph",
        ],
        "polygraphy": [
            *("polygraphy", "convert", UNET, "--convert-to", "trt", "--strongly-typed"),
            *bracketed,
            *("-o", TENSORRT_PLAN),
        ],
    }


def _providers(shapes: Profile, dtype: str) -> dict[str, dict[str, str]]:
    """Execution provider of ONNX Runtime -> its options."""
    ranges = {kind: _spelled(shapes, kind) for kind in KINDS}
    return {
        "TensorrtExecutionProvider": {
            **{f"trt_profile_{kind}_shapes": ranges[kind] for kind in KINDS},
            # its network is weakly typed: without this it would compute an fp16 file in fp32
            "trt_fp16_enable": "1" if dtype == "float16" else "0",
            "trt_layer_norm_fp32_fallback": "1",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": _NEXT_TO_UNET,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": _NEXT_TO_UNET,
        },
        "NvTensorRTRTXExecutionProvider": {
            **{f"nv_profile_{kind}_shapes": ranges[kind] for kind in KINDS},
            "nv_runtime_cache_path": _NEXT_TO_UNET,
        },
    }


def write(folder: Path, plan: Recipe) -> None:
    """tensorrt.json and tensorrt.md into the export's folder."""
    with new_file(folder / JSON_FILE) as partial:
        partial.write_text(json.dumps(dataclasses.asdict(plan), indent=1) + "\n")
    with new_file(folder / MARKDOWN_FILE) as partial:
        partial.write_text(plan.markdown())


def add(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="an export")
    for kind, word in zip(KINDS, ("smallest", "usual", "largest"), strict=True):
        parser.add_argument(f"--{kind}", type=int, metavar="PX", help=f"{word} side (default: the export's)")
    three = {"type": int, "nargs": 3, "metavar": ("MIN", "OPT", "MAX")}
    parser.add_argument(
        "--batch", **three, default=(1, 2, 4), help="pictures per call, a guided one twice (default: 1 2 4)"
    )
    parser.add_argument(
        "--tokens", **three, default=(TOKENS, TOKENS, LONGEST), help="of the prompt (default: 77 77 231)"
    )
    parser.add_argument(
        "--build",
        action="store_true",
        help="build an engine: with tensorrt-rtx, and with tensorrt where there is a GPU",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the path of the recipe and the engines that were built, or JSON; exit status 0."""
    sides = (args.min, args.opt, args.max)
    plan = recipe(args.folder, sides=sides, batch=tuple(args.batch), tokens=tuple(args.tokens))
    engines = []
    for builder in ready_builders() if args.build else ():
        print(f"building with {builder.title}; a large model takes minutes", file=sys.stderr, flush=True)
        engines.append(build(args.folder, plan.onnx, plan.profile, builder))
    plan = dataclasses.replace(plan, engines=engines)
    write(args.folder, plan)
    written = f"{args.folder / MARKDOWN_FILE} has the lines for TensorRT, {JSON_FILE} the same as data"
    text = "\n".join([written, *(engine.line() for engine in engines)])
    print(json.dumps(dataclasses.asdict(plan), indent=1) if args.json else text)
    return 0
