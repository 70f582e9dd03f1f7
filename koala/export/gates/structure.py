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

from koala.export.gates.case import Case, Finding
from koala.export.gates.operators import unwanted
from koala.export.manifest import PREFIX
from koala.export.shape_profile import shapes
from koala.models.export_manifest import Component, Exported

STANDARD = ("", "ai.onnx")
HALF_MAX = float(numpy.finfo(numpy.float16).max)
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
