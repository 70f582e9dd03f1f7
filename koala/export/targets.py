"""Targets of an export: the operators and types that a runtime accepts."""

from dataclasses import dataclass

from koala.errors import UserError

DTYPES = {"fp16": "float16", "fp32": "float32"}
# Not a kind of ONNX file but a page of universal ones, by `koala.export.web`.
WEB, WEB_TEXT = "web", "a page that draws in the visitor's own browser, for any static host; see --models"

# Operators by what they are; a target says which of them its files must not have.
_BRANCHES = ("If", "Loop", "Scan", "SequenceMap")  # graphs within graphs, which hide their operators from a reader
_CHANCE = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
_UNKNOWN_SIZES = ("Compress", "NonMaxSuppression", "NonZero", "Unique")  # of results, for which TensorRT plans nothing
_NOWHERE = (*_BRANCHES, *_CHANCE, *_UNKNOWN_SIZES)
_LATE = ("Attention", "GroupNormalization", "RMSNormalization", "RotaryEmbedding")  # expanded in opset 20, or unknown
_STATIC = ("ConvInteger", "QLinearConv", "QLinearMatMul", "QuantizeLinear")  # slow, or of scales fixed beforehand
_DYNAMIC = ("DynamicQuantizeLinear", "MatMulInteger")
_FROM_INTEGERS = ("DequantizeLinear",)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of ONNX file. `dtypes` are the types that its weights may have, the default first."""

    name: str
    opset: int
    dtypes: tuple[str, ...]
    text: str
    forbidden: tuple[str, ...]  # operators that its files must not have
    weights: str | None = None  # "dynamic-int8" or "weight-only-int8": how the U-Net's linear layers are quantised
    signed: bool = False  # whether 8-bit weights may be signed: only where nothing multiplies them as integers


TARGETS = {
    target.name: target
    for target in (
        Target(
            name="universal",
            opset=20,
            dtypes=("fp16", "fp32"),
            text="ONNX Runtime on any device, TensorRT, TensorRT-RTX, OpenVINO: no operator outside the standard",
            forbidden=(*_NOWHERE, *_LATE, *_STATIC, *_DYNAMIC, *_FROM_INTEGERS),
        ),
        Target(
            name="tensorrt",
            opset=23,
            dtypes=("fp16", "fp32"),
            text="TensorRT 10.13 and later and TensorRT-RTX: attention and group norm as one operator each",
            forbidden=(*_NOWHERE, *_STATIC, *_DYNAMIC, *_FROM_INTEGERS),
        ),
        Target(
            name="cpu-int8",
            opset=20,
            dtypes=("fp32",),
            text="ONNX Runtime on a CPU: weights of the linear layers in 8 bits, activations quantised as they come",
            forbidden=(*_NOWHERE, *_LATE, *_STATIC, *_FROM_INTEGERS),
            weights="dynamic-int8",
        ),
        Target(
            name="int8-weights",
            opset=20,
            dtypes=("fp16", "fp32"),
            text="a small download: weights of the linear layers in 8 bits, one scale per output, computed in fp16",
            forbidden=(*_NOWHERE, *_LATE, *_STATIC, *_DYNAMIC),
            weights="weight-only-int8",
            signed=True,  # TensorRT reads no unsigned ones
        ),
    )
}


def target_of(name: str, dtype: str | None) -> tuple[Target, str]:
    """The target of a name and the dtype ("fp16" or "fp32") of its weights; UserError with the possible ones."""
    if name not in TARGETS:
        raise UserError(f"unknown target {name!r}; choose one of {', '.join([*TARGETS, WEB])}")
    target = TARGETS[name]
    if dtype is not None and dtype not in target.dtypes:
        raise UserError(f"target {name} has {' or '.join(target.dtypes)} weights, not {dtype}; leave --dtype out")
    return target, dtype or target.dtypes[0]
