"""The graphs' results compared with torch: equal in fp32, and in fp16 no worse than torch's own fp16."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy
import onnx_ir as ir
import torch

from koala.export.gates.case import Case, Finding, session
from koala.export.shape_profile import shapes
from koala.export.wrappers import WRAPPERS, unet
from koala.hardware.device import give_back

TWIN = 1e-4  # relative L2 error of the same graph in fp32
HALF = 5e-3  # of the file in fp16 against torch in fp32 ...
FLOOR = 1.5  # ... and at most this many times torch's own error in fp16
INT8 = {"dynamic-int8": 5e-3, "weight-only-int8": 0.05}  # of one call
BATCHES, TOKENS, TIMESTEPS = (1, 2, 4), (77, 154), (1.0, 500.0, 999.0)
QUICK = 512  # px: the one size of a large model on a CPU

Call = Callable[[Mapping[str, torch.Tensor]], numpy.ndarray]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One call of the U-Net; sides in px."""

    width: int
    height: int
    batch: int
    tokens: int
    timestep: float

    def __str__(self) -> str:
        return f"{self.width}x{self.height} px, batch {self.batch}, {self.tokens} tokens, t {self.timestep:g}"


def calls(case: Case) -> list[Shape]:
    """Every size with every batch; tokens and timesteps alternate. Sides in px; one pair is not a multiple of 32."""
    if case.large:  # with 8 bits no pictures are drawn either, so every timestep counts
        times = TIMESTEPS if case.exported.dtype in INT8 else TIMESTEPS[1:2]
        return [Shape(width=QUICK, height=QUICK, batch=1, tokens=77, timestep=t) for t in times]
    side = int(case.exported.defaults["width"])
    sizes = ((side, side), (side * 5 // 4 // 8 * 8, side * 3 // 4 // 8 * 8), (side // 2 + 24, side // 2 + 8))
    return [
        Shape(width=w, height=h, batch=b, tokens=TOKENS[(i + j) % 2], timestep=TIMESTEPS[(i + j) % 3])
        for i, (w, h) in enumerate(sizes)
        for j, b in enumerate(BATCHES)
    ]


def inputs(case: Case, shape: Shape) -> dict[str, torch.Tensor]:
    """Unit noise and text, and SDXL's own size conditioning; the same for every runtime."""
    generator = torch.Generator().manual_seed(shape.width * shape.batch)
    size = shapes(case.job.spec, batch=shape.batch, height=shape.height, width=shape.width, tokens=shape.tokens)
    tensors = {name: torch.randn(dims, generator=generator) for name, dims in size.items()}
    sides = (shape.height, shape.width)
    tensors["time_ids"] = torch.tensor([[*sides, 0, 0, *sides]] * shape.batch, dtype=torch.float32)
    return tensors | {"timestep": torch.tensor(shape.timestep)}


def torch_call(module: torch.nn.Module) -> Call:
    """The U-Net as torch computes it, in its own precision."""
    wrapped = unet(module).module

    @torch.inference_mode()
    def call(values: Mapping[str, torch.Tensor]) -> numpy.ndarray:
        fixed = {"timestep", "time_ids"}
        cast = {n: v if n in fixed else v.to(module.dtype) for n, v in values.items()}
        return wrapped(**cast).float().numpy()

    return call


def onnx_call(file: Path) -> Call:
    """The U-Net as ONNX Runtime computes it, with inputs in the types that the file asks for."""
    opened = session(file)
    kinds = {i.name: numpy.float16 if "float16" in i.type else numpy.float32 for i in opened.get_inputs()}

    def call(values: Mapping[str, torch.Tensor]) -> numpy.ndarray:
        return opened.run(None, {n: v.numpy().astype(kinds[n]) for n, v in values.items()})[0].astype(numpy.float32)

    return call


def error(result: numpy.ndarray, wanted: numpy.ndarray) -> float:
    """Relative L2 error."""
    return float(numpy.linalg.norm(result - wanted) / numpy.linalg.norm(wanted))


def _results(case: Case, runners: Mapping[str, Callable[[], Call]]) -> Iterator[tuple[str, list[numpy.ndarray]]]:
    """One runner after the other, each freed before the next: two full-size U-Nets need not fit at once."""
    wanted = [inputs(case, shape) for shape in calls(case)]
    for name, build in runners.items():
        call = build()
        yield name, [call(values) for values in wanted]
        del call
        give_back()


def numbers(case: Case) -> Finding:
    """The U-Net over sizes, batches, tokens and timesteps."""
    half, quantised = case.exported.stored_dtype == "float16", case.exported.dtype in INT8
    with tempfile.TemporaryDirectory(dir=case.folder.parent, prefix=f".{case.folder.name}.twin") as folder:
        runners = {
            "torch fp32": lambda: torch_call(case.source("unet", "float32")),
            "file": lambda: onnx_call(case.file("unet")),
        }
        if half and not quantised:
            runners["torch fp16"] = lambda: torch_call(case.source("unet"))
            runners["twin"] = lambda: onnx_call(widen(case.file("unet"), Path(folder) / "twin.onnx"))
        outputs = dict(_results(case, runners))
    wanted = outputs.pop("torch fp32")
    errors = {name: [error(a, b) for a, b in zip(results, wanted, strict=True)] for name, results in outputs.items()}
    worst = {name: max(each) for name, each in errors.items()}
    problems = [
        f"{shape}: not finite"
        for shape, a in zip(calls(case), outputs["file"], strict=True)
        if not numpy.isfinite(a).all()
    ]
    if quantised:
        problems += _above("8-bit weights", worst["file"], INT8[case.exported.dtype])
    elif half:
        problems += _above("the fp32 twin", worst["twin"], TWIN)
        problems += _above("fp16", worst["file"], min(HALF, FLOOR * worst["torch fp16"]))
    else:
        problems += _above("fp32", worst["file"], TWIN)
    text = "; ".join(problems) or _summary(worst, len(wanted))
    figures = {
        "calls": [str(shape) for shape in calls(case)],
        "errors": {name: [float(f"{e:.2g}") for e in each] for name, each in errors.items()},
        "worst": {name: float(f"{e:.2g}") for name, e in worst.items()},
    }
    return Finding(gate="numbers", passed=not problems, text=text, figures=figures)


def _above(what: str, value: float, bound: float) -> list[str]:
    return [f"{what} is {value:.2g} off torch's fp32, above {bound:.2g}"] if not value <= bound else []


def _summary(worst: Mapping[str, float], count: int) -> str:
    names = {"twin": "same graph in fp32", "file": "the file", "torch fp16": "torch's own fp16"}
    each = ", ".join(f"{names[name]} {value:.1e}" for name, value in worst.items())
    return f"largest relative error against torch in fp32, over {count} call{'s' * (count > 1)}: {each}"


_KINDS = {"tensor(float16)": numpy.float16, "tensor(float)": numpy.float32, "tensor(int64)": numpy.int64}
_SIZES = {"batch": 1, "sequence": 77, "height": 24, "width": 16}  # not those that were traced
_PIXELS = {"batch": 1, "height": 64, "width": 128}


def _part_input(name: str, module: torch.nn.Module) -> torch.Tensor:
    """A part's one input."""
    generator = torch.Generator().manual_seed(0)
    if name.startswith("text"):
        shape = (_SIZES["batch"], _SIZES["sequence"])
        return torch.randint(0, module.config.vocab_size, shape, generator=generator)
    sizes, channels = (
        (_SIZES, module.config.latent_channels) if name == "vae_decoder" else (_PIXELS, module.config.in_channels)
    )
    return torch.randn(sizes["batch"], channels, sizes["height"], sizes["width"], generator=generator)


def _reference(name: str, module: torch.nn.Module, given: torch.Tensor) -> dict[str, torch.Tensor]:
    """A part's outputs by name, from the library's own module rather than the traced one."""
    if name == "vae_decoder":
        return {"sample": module.decode(given).sample}
    if name == "vae_encoder":
        output = module.encode(given).latent_dist
        return {"latent_parameters": torch.cat([output.mean, output.logvar], 1)}
    output = module(input_ids=given, output_hidden_states=True)
    pooled = "text_embeds" if hasattr(output, "text_embeds") else "pooler_output"
    states = {f"hidden_states.{k}": state for k, state in enumerate(output.hidden_states)}
    return {"last_hidden_state": output.last_hidden_state, pooled: output[pooled]} | states


def _part_error(name: str, module: torch.nn.Module, file: Path) -> float:
    """The largest relative error of a part's outputs; infinite if one is missing or has another shape."""
    opened = session(file)
    (input_,) = opened.get_inputs()
    values = _part_input(name, module).numpy().astype(_KINDS[input_.type])
    given = torch.from_numpy(values)
    with torch.inference_mode():
        wanted = _reference(name, module, given.float() if given.is_floating_point() else given)
    outputs = [output.name for output in opened.get_outputs()]
    results = dict(zip(outputs, opened.run(None, {input_.name: values}), strict=True))
    if "latent_parameters" in results:
        mean, logvar = numpy.split(results["latent_parameters"], 2, axis=1)
        results["latent_parameters"] = numpy.concatenate([mean, logvar.clip(-30, 20)], 1)  # as diffusers reads them
    if results.keys() != wanted.keys() or any(results[n].shape != w.shape for n, w in wanted.items()):
        return float("inf")
    return max(error(results[n].astype(numpy.float32), w.numpy()) for n, w in wanted.items())


def parts(case: Case) -> Finding:
    """Text encoders and VAE against the libraries' own modules, in the precision that their files have."""
    if not case.exported.whole:
        return Finding(gate="parts", passed=None, text="the export is of the U-Net alone")
    names = [name for name in WRAPPERS if name != "unet"]  # has a gate of its own
    worst = {name: _part_error(name, case.source(name, "float32"), case.file(name)) for name in names}
    half = case.exported.stored_dtype != "float32"
    bounds = {name: HALF if half and name.startswith("text") else TWIN for name in worst}
    problems = [p for name, value in worst.items() for p in _above(name, value, bounds[name])]
    listed = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
    return Finding(
        gate="parts",
        passed=not problems,
        text="; ".join(problems) or f"largest relative error against torch in fp32: {listed}",
        figures={"worst": {name: float(f"{value:.2g}") for name, value in worst.items()}},
    )


# --- The same graph in fp32: every fp16 weight and type widened, so that only the arithmetic is left to differ

_FP16, _FP32 = ir.DataType.FLOAT16, ir.DataType.FLOAT


def widen(file: Path, out: Path) -> Path:
    """Write the fp32 twin of an ONNX file as `out`; it computes with the very same weights."""
    model = ir.load(file)
    for value in model.graph.initializers.values():
        if value.const_value.dtype == _FP16:
            value.const_value = _wide(value.const_value)
            value.type = ir.TensorType(_FP32)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype == _FP16:
            value.type = ir.TensorType(_FP32)
    for node in model.graph:
        for name, attribute in node.attributes.items():
            if name == "to" and attribute.as_int() == _FP16:
                node.attributes[name] = ir.AttrInt64(name, int(_FP32))
            elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FP16:
                node.attributes[name] = ir.AttrTensor(name, _wide(attribute.as_tensor()))
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape, value.type = None, None
    ir.save(model, out, external_data=f"{out.name}_data", size_threshold_bytes=1024)
    return out


def _wide(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    def values() -> ir.Tensor:
        return ir.Tensor(tensor.numpy().astype(numpy.float32), dtype=_FP32)

    return ir.LazyTensor(values, dtype=_FP32, shape=ir.Shape(tensor.shape), name=tensor.name)
