"""The file itself: complete, well typed, standard operators only, finite weights, no traces of another machine."""

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy
import onnx
import onnx_ir as ir

from koala.export.folder import census
from koala.export.gates.case import Case, Finding
from koala.export.islands import HALF_MAX, islands
from koala.export.manifest import PREFIX
from koala.export.shape_profile import shapes
from koala.export.targets import Target
from koala.models.export_manifest import Component, Exported

STANDARD = ("", "ai.onnx")
_PATH = re.compile(r"(?<![\w:/.])(?:[A-Za-z]:\\|/)[\w.-]+[/\\][\w./\\-]+")  # absolute, and no address
_INPUTS = {
    "unet": ("sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"),
    "text_encoder": ("input_ids",),
    "text_encoder_2": ("input_ids",),
    "vae_decoder": ("latent_sample",),
    "vae_encoder": ("sample",),
}
_FIXED = {"timestep": "float32", "time_ids": "float32", "input_ids": "int64"}


def structure(case: Case) -> Finding:
    """Every component: full check, operators, declared types, weights, provenance, no local paths."""
    problems, operators = [], {}
    for name, component in case.exported.components.items():
        file = case.file(name)
        try:
            onnx.checker.check_model(str(file), full_check=True)  # by path: also above 2 GiB
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            problems.append(f"{name}: {str(error).strip().splitlines()[0]}")
            continue
        model = ir.load(file)
        operators[name] = dict(Counter(node.op_type for node in model.graph).most_common())
        problems += [f"{name}: {problem}" for problem in _problems(case, name, component, model)]
    nodes = {name: sum(counts.values()) for name, counts in operators.items()}
    text = (
        problems[0]
        if problems
        else "full check, types, operators and weights of "
        + ", ".join(f"{name} ({count:,} nodes)" for name, count in nodes.items())
    )
    return Finding(
        gate="structure", passed=not problems, text=text, figures={"operators": operators, "problems": problems}
    )


def _problems(case: Case, name: str, component: Component, model: ir.Model) -> Iterator[str]:
    foreign = sorted({node.domain for node in model.graph} - set(STANDARD))
    if foreign:
        yield f"operators outside the standard, of {', '.join(foreign)}"
    yield from unwanted(model, case.job.target)
    if tuple(value.name for value in model.graph.inputs) != _INPUTS[name]:
        yield f"its inputs are {', '.join(v.name for v in model.graph.inputs)}, not {', '.join(_INPUTS[name])}"
    weights = "float32" if name.startswith("vae") else case.exported.stored_dtype
    for value in model.graph.inputs:
        wanted = _FIXED.get(value.name, weights)
        if value.dtype is None or value.dtype.numpy().name != wanted:
            yield f"input {value.name} is {value.dtype}, not {wanted}"
    if name == "unet":
        one = shapes(case.job.spec, batch=2, height=64, width=64, tokens=77) | {"timestep": ()}
        for value in model.graph.inputs:
            if len(value.shape) != len(one[value.name]):
                yield f"input {value.name} has {len(value.shape)} dimensions, not {len(one[value.name])}"
    names = {
        d.value for value in (*model.graph.inputs, *model.graph.outputs) for d in value.shape if not isinstance(d, int)
    }
    if odd := sorted(str(n) for n in names if n is None or not re.fullmatch(r"[a-z_]+", n)):
        yield f"a dimension is called {odd[0]!r}, which tools cannot override by name"
    count, full = 0, 0
    for value in model.graph.initializers.values():
        array = value.const_value.numpy()
        count += math.prod(array.shape)
        if array.dtype.kind != "f":
            continue
        if not numpy.isfinite(array).all():
            yield f"weight {value.name} is not finite"
        if array.dtype == numpy.float16 and array.size > 1:  # one alone is what attention masks with
            full += int((abs(array) == HALF_MAX).sum())
    if full:
        yield f"{full:,} weights are at fp16's limit ({HALF_MAX:g}): they were clipped"
    if count < component.parameters:
        yield f"it holds {count:,} numbers and the model has {component.parameters:,} parameters"
    texts = [*model.metadata_props.values(), *(v for node in model.graph for v in node.metadata_props.values())]
    texts += [text for text in (model.doc_string, *(node.doc_string for node in model.graph)) if text]
    if path := next(filter(None, map(_PATH.search, texts)), None):
        yield f"a path of the machine that wrote it: {path[0]}"
    yield from _provenance(case.exported, component, model.metadata_props)


def _provenance(exported: Exported, component: Component, metadata: Mapping[str, str]) -> Iterator[str]:
    """Where the file's own metadata is incomplete or disagrees with the manifest."""
    wanted = {
        "model": exported.model,
        "licence": exported.licence,
        "source_sha256": dict(exported.source),
        "dtype": component.dtype,
    }
    for name, value in wanted.items():
        text = metadata.get(f"{PREFIX}{name}")
        if text is None and name != "dtype":  # older files have their dtype in the manifest alone
            yield f"its metadata does not say its {name}"
        elif text is not None and text != value and _object(text) != value:
            yield f"its metadata and the manifest disagree on {name}"


def _object(text: str) -> object:
    with contextlib.suppress(ValueError):
        return json.loads(text)


# --- What a file for a target must not contain, read from the file alone

_PRODUCTS = ("MatMulInteger", "ConvInteger")


def unwanted(model: ir.Model, target: Target) -> Iterator[str]:
    """Operators that the target's files must not have, and integers that saturate on some processors."""
    if model.functions:
        yield f"functions of its own, which hide their operators: {', '.join(f.name for f in model.functions.values())}"
    kinds = {node.op_type for node in model.graph}
    if listed := [kind for kind in target.forbidden if kind in kinds]:
        yield f"operators that files for {target.name} must not have: {', '.join(listed)}"
    yield from _signed(model, target)


def _signed(model: ir.Model, target: Target) -> Iterator[str]:
    """8-bit weights that this target must not have, and integer products of what is not known to be unsigned.

    The file is looked at and not its results: whether a product with signed weights saturates depends on the processor.
    """
    tensors = [value.const_value for value in model.graph.initializers.values()]
    tensors += [
        attribute.as_tensor()
        for node in model.graph
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.TENSOR
    ]
    if not target.signed and (names := [tensor.name for tensor in tensors if tensor.dtype == ir.DataType.INT8]):
        yield (
            f"{len(names)} tensors of signed 8-bit integers, {names[0]} the first: products with them saturate on x86 "
            f"processors without VNNI. Export the model again: its weights will be unsigned"
        )
    for node in model.graph:
        for value in node.inputs[:2] if node.op_type in _PRODUCTS else ():
            if not _unsigned(value):
                yield f"{node.op_type} multiplies {value.name}, which is not known to be unsigned"
                return


def _unsigned(value: ir.Value) -> bool:
    if producer := value.producer():
        return producer.op_type == "DynamicQuantizeLinear"  # which gives uint8 by definition
    return value.const_value is not None and value.const_value.dtype == ir.DataType.UINT8


# --- How large activations get on a real run: a CPU computes fp16 files in fp32 and hides what overflows on a GPU

WARN = 8192.0
WORST = 10


def range_census(case: Case) -> Finding:
    """The ten largest activations of the U-Net; beyond fp16's range they must be in a module that stays in fp32."""
    if case.exported.stored_dtype != "float16":
        return Finding(gate="range", passed=None, text="the file computes in fp32, which nothing here overflows")
    if case.large:
        return Finding(
            gate="range",
            passed=None,
            text="a run of this size takes many minutes on a CPU; do it with --thorough, or on a GPU",
        )
    largest = census(case.job)
    worst = dict(sorted(largest.items(), key=lambda item: -item[1])[:WORST])
    name, peak = next(iter(worst.items()))
    in_fp32 = case.exported.islands
    bare = [n for n in islands(largest) if not any(n == k or n.startswith(f"{k}.") for k in in_fp32)]
    words = f"{len(largest)} modules over a whole run, at most {peak:,.0f} ({name})"
    if in_fp32:
        words += f"; {', '.join(in_fp32)} in fp32"
    if bare:
        words += f": beyond fp16's range, {HALF_MAX:,.0f}, in {', '.join(bare)}"
    elif WARN < peak <= HALF_MAX:
        words += f": within a factor of {HALF_MAX / peak:.0f} of fp16's range"
    figures = {
        "modules": len(largest),
        "worst": {n: float(f"{v:.3g}") for n, v in worst.items()},
        "islands": list(in_fp32),
    }
    return Finding(gate="range", passed=not bare, text=words, figures=figures)
