"""Why a run computed NaN or infinity, as far as that can be established afterwards, and what helps."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from koala.errors import UserError
from koala.files.tensorfiles import load
from koala.finite import NotFinite, is_finite
from koala.models.loaded import LoadedModel
from koala.models.locate import locate
from koala.request import GenerationRequest

_HALF_MAX = torch.finfo(torch.float16).max
_FULL = "draw it in float32: python -m koala generate --dtype float32"


def check_prediction(
    latents: torch.Tensor,
    model: LoadedModel,
    embeds: Iterable[torch.Tensor | None],
    request: GenerationRequest | None = None,
) -> None:
    """Raise NotFinite, with cause and remedy, if what a model's U-Net computed (latents or noise) is not finite.

    `embeds` is what the U-Net received of the prompt; `request` names the LoRA that is on it.
    """
    if not is_finite(latents):
        raise NotFinite(f"{model.card.name} computed NaN or infinity: {_of_unet(model, embeds, request)}")


def check_picture(picture: torch.Tensor, vae: torch.nn.Module) -> None:
    """The same for pictures that a VAE decoded from finite latents."""
    if not is_finite(picture):
        raise NotFinite(f"the VAE computed NaN or infinity: {_of_picture(vae)}")


def _of_unet(model: LoadedModel, embeds: Iterable[torch.Tensor | None], request: GenerationRequest | None) -> str:
    if model.card.runtime == "onnx":
        return _of_export(model)
    dtype = model.precision
    if not all(is_finite(e) for e in embeds if e is not None):
        encoders = {name: getattr(model.pipeline, name) for name in ("text_encoder", "text_encoder_2")}
        for component, encoder in encoders.items():
            for name, _ in _broken(encoder):
                return _weight(model, component, name)
        return f"its text encoders overflow {dtype} on this prompt; {_FULL}, or change the prompt"
    # Sums with a LoRA may overflow where the stored weights do not: those are the LoRA's, and finite without it.
    sums = {name for lora in model.adapted.values() for name in lora.weights} if request and request.lora else set()
    for name, _ in _broken(model.pipeline.unet):
        if name not in sums:
            return _weight(model, "unet", name)
    if request and request.lora:
        lower = f"lower --lora-strength, now {request.lora_strength:g}, or draw without it"
        if dtype == "float32":
            return f"the LoRA {request.lora} makes the U-Net's values too large; {lower}"
        return f"with the LoRA {request.lora} the U-Net's values overflow {dtype}; {_FULL}; or {lower}"
    if dtype != "float32":
        return f"the U-Net's values overflow {dtype}; {_FULL}"
    return (
        "all of its weights are finite, but some are so large that the U-Net's values overflow float32, so the file "
        f"is damaged; {_again(model, 'unet')}"
    )


def _of_export(model: LoadedModel) -> str:
    exported, folder = model.exported, model.card.source
    check = f"python -m koala export verify {folder} names the part at fault"
    if exported.stored_dtype == "float32":
        return f"the export, or the model that it was made of, is damaged; {check}. Export a whole model again"
    again = f"python -m koala export --model {exported.model} --dtype fp32 --out DIR"
    return f"the export's values overflow float16, or its model is damaged; export it in float32: {again}. {check}"


def _of_picture(vae: torch.nn.Module) -> str:
    folder = vae.config.get("_name_or_path") or "its folder"
    for name, _ in _broken(vae):
        return f"its weight {name} holds NaN or infinity, so the file in {folder} is damaged; copy or download it again"
    if not list(vae.parameters()):
        return "the export is damaged; export the model again"
    if vae.dtype == torch.float16 and isinstance(vae, AutoencoderTiny):
        return "the tiny VAE's values overflow float16; choose the preset quality, which decodes with the model's own"
    if vae.dtype == torch.float16:
        return (
            f'its values overflow float16, and its config says "force_upcast": false; write "force_upcast": true in '
            f"{folder}/config.json and start again, or {_FULL}"
        )
    return f"its weights are finite, but too large, so the file in {folder} is damaged; copy or download it again"


def _broken(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that are not finite, by name."""
    return ((name, value) for name, value in module.named_parameters() if not is_finite(value))


def _weight(model: LoadedModel, component: str, name: str) -> str:
    """What is wrong with one weight: the file, or only the precision in which it was loaded."""
    name = name.replace(".base_layer", "")
    if model.dtype == torch.float16 and _fits_float32(model, component, name):
        return f"its weight {name} is beyond float16's largest number, {_HALF_MAX:,.0f}; {_FULL}"
    return f"its weight {name} holds NaN or infinity, so the file is damaged; {_again(model, component)}"


def _files(model: LoadedModel, component: str) -> tuple[Path, ...]:
    """The component's files; none of a model that was made in memory."""
    try:
        return locate(model.card).files(component)
    except UserError:
        return ()


def _fits_float32(model: LoadedModel, component: str, name: str) -> bool:
    """Whether the stored weight is finite, so that loading it in half precision is what made it infinite."""
    if not _files(model, component):
        return False
    stored = locate(model.card).stored(component)
    key = next((key for key in stored if key == name or name.endswith(f".{key}")), None)
    return key is not None and is_finite(load(stored[key]))


def _again(model: LoadedModel, component: str) -> str:
    """How to get a component's files again."""
    weights = _files(model, component)
    files = " and ".join(map(str, weights)) or "the file"
    if model.card.on_hub:  # where a link leads to the file itself, without which the cache would link to it again
        files = " and ".join(str(f.resolve()) for f in weights)
        return f"remove {files} and fetch it again: python -m koala fetch {model.card.name}"
    return (
        f"copy {files} again from where it was made; where a training run made it so, take an earlier checkpoint of it"
    )
