"""A request's LoRA on a loaded U-Net, for the length of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from koala.loading import LoadedModel
from koala.lora import LoraReport, lora_for
from koala.request import GenerationRequest, RequestError
from koala.specs import UNetSpec

_ADAPTER = "request"


def put_on(unet: UNet2DConditionModel, lora: Path, spec: UNetSpec, name: str) -> LoraReport:
    """Load a LoRA file as the adapter `name`, moved onto the U-Net's own layers.

    Only its U-Net layers: the text encoders are shared between models, a LoRA for one must not reach the other.
    """
    moved, report = lora_for(lora, spec)
    moved = {key: tensor for key, tensor in moved.items() if key.startswith(("unet.", "lora_unet_"))}
    if any(key.endswith(".dora_scale") for key in moved):  # diffusers drops them, and draws with the rest
        raise RequestError(
            f"{lora} is a DoRA in kohya's format, whose magnitudes (dora_scale) diffusers does not read; save it in "
            "peft's format (lora_A, lora_B and lora_magnitude_vector), or take a plain LoRA"
        )
    own, alphas = StableDiffusionXLPipeline.lora_state_dict(moved, unet_config=unet.config)
    StableDiffusionXLPipeline.load_lora_into_unet(own, network_alphas=alphas, unet=unet, adapter_name=name)
    return report


@contextmanager
def adapted(model: LoadedModel, request: GenerationRequest) -> Iterator[LoraReport | None]:
    """Put the LoRA on; afterwards the U-Net is what it was, to the bit."""
    if request.lora is None:
        yield None
        return
    unet = model.pipeline.unet
    try:
        report = put_on(unet, Path(request.lora), model.spec, _ADAPTER)
        unet.set_adapters([_ADAPTER], weights=[float(request.lora_strength)])
        yield report
    finally:
        if hasattr(unet, "peft_config"):
            unet.unload_lora()
