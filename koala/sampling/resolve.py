"""A request with its model's defaults filled in, and several made alike, so that they start from the same noise."""

import dataclasses
from collections.abc import Sequence

from koala.errors import UserError
from koala.models.cards import CARDS, ModelCard
from koala.models.lora_drawing import with_lora
from koala.models.registry import find
from koala.presets import PRESETS
from koala.request import GenerationRequest

MAX_MODELS = 8  # in one comparison


def resolve(request: GenerationRequest, card: ModelCard) -> GenerationRequest:
    """The request with every None replaced by its model's default, or by that of a LoRA which says how it is drawn.

    UserError for what its runtime cannot do.
    """
    if card.runtime == "onnx":
        _check_export(request, card)
    card = with_lora(card, request.lora, request.lora_strength)
    if PRESETS[request.preset].guided is None:
        request = _unguided(request, card)
    defaults = {n: getattr(card, n) for n in ("steps", "guidance", "scheduler", "width", "height")}
    missing = {n: v for n, v in defaults.items() if getattr(request, n) is None}
    resolved = dataclasses.replace(request, model=card.name, **missing)
    if resolved.scheduler == "lcm" and card.noising == "straight":
        raise UserError(
            f"the scheduler lcm cannot draw with {card.title}: it adds noise between its steps as SDXL's noising does, "
            "and this model learned on the straight path from noise to picture, where the picture fades faster; "
            "choose another scheduler, --scheduler euler-trailing"
        )
    return resolved


def _unguided(request: GenerationRequest, card: ModelCard) -> GenerationRequest:
    """The request without guidance, where its model allows that."""
    if not card.draws_unguided:
        able = ", ".join(name for name, one in CARDS.items() if one.draws_unguided)
        raise UserError(
            f"{card.title} needs guidance, and the preset {request.preset} draws without; use the preset fast, or a "
            f"model that was distilled for it: {able}"
        )
    if request.guidance is not None and request.guidance > 1:
        raise UserError(
            f"the preset {request.preset} draws without guidance, not with {request.guidance:g}; set guidance to 1, or "
            "leave it out"
        )
    return request if request.guidance is not None else dataclasses.replace(request, guidance=min(card.guidance, 1.0))


def _check_export(request: GenerationRequest, card: ModelCard) -> None:
    """An export's graph is as it was written, and its memory is its runtime's."""
    if request.lora:
        raise UserError(
            f"{card.title} takes no LoRA at run time; fuse it into an export of its own: python -m koala export "
            f"--model MODEL --lora {request.lora} --lora-strength {request.lora_strength:g} --out DIR"
        )
    if request.preset != "quality":
        raise UserError(
            f"{card.title} runs on ONNX Runtime, and the preset {request.preset} is torch's; use --preset quality"
        )


def same_noise(
    requests: Sequence[GenerationRequest], cards: Sequence[ModelCard] | None = None
) -> list[GenerationRequest]:
    """The requests with defaults filled in and one size for all: the first model's where none was asked for.

    `cards` are those of their models, one per request; without them the names are looked up. Raises UserError when
    the requests could not start from the same noise.
    """
    if len(requests) < 2:
        raise UserError("a comparison needs at least two models, for example --models tiny-sdxl tiny-koala-700m")
    if len(requests) > MAX_MODELS:
        raise UserError(f"a comparison takes at most {MAX_MODELS} models, not {len(requests)}; compare in groups")
    cards = cards or [find(r.model) for r in requests]
    first = resolve(requests[0], cards[0])
    resolved = []
    for request, card in zip(requests, cards, strict=True):
        if request.width is None or request.height is None:
            request = dataclasses.replace(
                request, width=request.width or first.width, height=request.height or first.height
            )
        resolved.append(resolve(request, card))
    for name in ("prompt", "seed", "images", "width", "height"):
        if len({getattr(r, name) for r in resolved}) > 1:
            raise UserError(f"the compared requests differ in {name}; give all models the same")
    return resolved
