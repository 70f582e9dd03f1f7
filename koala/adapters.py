"""A request's LoRA on a loaded U-Net, for the length of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from koala.loading import LoadedModel
from koala.lora import LoraReport, lora_for
from koala.request import GenerationRequest

_ADAPTER = "request"


@contextmanager
def adapted(model: LoadedModel, request: GenerationRequest) -> Iterator[LoraReport | None]:
    """Put the LoRA on, moved onto the model's own layers; afterwards the U-Net is what it was, to the bit.

    Only its U-Net layers: the text encoders are shared between models, a LoRA for one must not reach the other.
    """
    if request.lora is None:
        yield None
        return
    moved, report = lora_for(Path(request.lora), model.spec)
    unet, pipeline = model.pipeline.unet, model.pipeline
    own, alphas = pipeline.lora_state_dict(moved, unet_config=unet.config)
    own = {key: tensor for key, tensor in own.items() if key.startswith("unet.")}
    try:
        pipeline.load_lora_into_unet(own, network_alphas=alphas, unet=unet, adapter_name=_ADAPTER)
        unet.set_adapters([_ADAPTER], weights=[float(request.lora_strength)])
        yield report
    finally:
        if hasattr(unet, "peft_config"):
            unet.unload_lora()
