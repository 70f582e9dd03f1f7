"""One U-Net in memory -> its ONNX file and its engine, for measurements: no manifest, no gates, no name of a model."""

from pathlib import Path

from diffusers import UNet2DConditionModel

from koala.export import to_onnx
from koala.export.engines import BUILDERS, Builder, Engine, build
from koala.export.shape_profile import profile
from koala.export.targets import TARGETS
from koala.export.wrappers import WRAPPERS
from koala.models.export_manifest import UNET
from koala.unet.specs import UNetSpec

UNIVERSAL = TARGETS["universal"]
RTX = next(builder for builder in BUILDERS if builder.module == "tensorrt_rtx")


def write_unet(unet: UNet2DConditionModel, folder: Path) -> Path:
    """The file `unet/model.onnx` of a universal export in a folder; the U-Net is in host memory."""
    program = to_onnx.trace(WRAPPERS["unet"](unet))
    file = folder / UNET
    to_onnx.save(to_onnx.convert(program, UNIVERSAL.opset).model, file, {})
    return file


def build_engine(folder: Path, spec: UNetSpec, side: int, builder: Builder = RTX) -> Engine:
    """An engine of that file for guided pictures of one side in px, built and, where a GPU can run it, timed."""
    shapes = profile(spec, sides=(side, side, side), batch=(1, 2, 2), tokens=(77, 77, 77))
    return build(folder, UNET, shapes, builder)
