"""What must be true of a rehearsed run: devices, precisions, kernels, the order of moves, and the bytes."""

from collections.abc import Iterator, Sequence

import torch

from koala.hardware.memory_plan import Plan
from koala.models.cards import CARDS
from recipes.rehearsal.card import Rehearsal
from recipes.rehearsal.fakes import FUSED

WITHIN = 0.1  # of what a plan counts
TEXT = ("text_encoder", "text_encoder_2")


def problems(rehearsal: Rehearsal, plan: Plan, models: Sequence[str]) -> list[str]:
    """Everything that is not as it should be after the models drew one prompt, each once, on an empty card."""
    return [
        *_devices(rehearsal),
        *_precisions(rehearsal, plan),
        *_attention(rehearsal),
        *_moves(rehearsal, plan, models),
        *bytes_wrong(rehearsal, plan.live_peak_bytes),
    ]


def _devices(rehearsal: Rehearsal) -> Iterator[str]:
    """A tensor between two devices has raised an error already."""
    yield from (f"{c.part} ran on {c.device}" for c in rehearsal.calls if c.device != rehearsal.device)
    yield from (f"something was put on {device}" for device in rehearsal.storages.elsewhere)


def _precisions(rehearsal: Rehearsal, plan: Plan) -> Iterator[str]:
    """Of weights, of what goes in, and of every product and convolution; Apple's GPUs have no float64."""
    if rehearsal.device.type == "mps" and torch.float64 in rehearsal.storages.dtypes:
        yield "a tensor on the card is in float64"
    wanted = {"text": plan.dtype, "unet": plan.dtype, "vae": plan.vae_dtype, "small vae": plan.dtype}
    for call in rehearsal.calls:
        inputs = wanted[call.stage] if call.stage != "text" else "int64"
        if (call.dtype, call.inputs) != (wanted[call.stage], inputs):
            report = f"{call.part} has {call.dtype} weights and was given {call.inputs}"
            yield f"{report}; the plan says {wanted[call.stage]}"
    for stage, name, dtype in rehearsal.storages.kernels:
        if dtype != wanted.get(stage, dtype):
            yield f"{name} ran in {dtype} in the stage {stage}; the plan says {wanted[stage]}"


def _attention(rehearsal: Rehearsal) -> Iterator[str]:
    """Every layer of a U-Net's transformers attends twice, to the picture and to the text, in a fused kernel."""
    kernels = rehearsal.storages.kernels
    wanted = 0
    for call in rehearsal.calls:
        if call.stage == "unet":
            wanted += 2 * len(list(CARDS[call.part.removesuffix("'s U-Net")].spec.self_attentions()))
    fused = sum(kernels[key] for key in kernels if key[0] == "unet" and key[1] in FUSED)
    if fused != wanted:
        yield f"the U-Nets have {wanted} calls of attention, and {fused} ran fused"
    yield from (f"a softmax of its own in the stage {stage}" for stage, name, _ in kernels if name == "_softmax")


def stated_moves(plan: Plan, models: Sequence[str]) -> list[tuple[str, str]]:
    """What comes and goes, in order, by the plan's words alone, where the models draw one prompt on an empty card."""
    unets = [f"{name}'s U-Net" for name in models]
    small = "tiny_vae" if plan.tiny_vae else None
    vae = [small] if small else ["vae", *(["tiny_vae"] if all(CARDS[m].tiny_vae for m in models) else [])]
    come, go = (lambda *parts, to=to: [(part, to) for part in parts] for to in ("card", "host"))
    if plan.text == "resident":
        return come(*TEXT, unets[0], *vae, *unets[1:])
    if plan.unet == "resident":
        return come(*TEXT, unets[0], *vae) + go(*TEXT) + come(*unets[1:])
    moves = come(*TEXT) + go(*TEXT)
    for number, unet in enumerate(unets):
        last = number + 1 == len(unets)
        if plan.unet == "exchanged":
            moves += come(unet, *(vae if number == 0 else [])) + (go(unet) if not last else [])
        else:
            moves += come(unet) + go(unet) + come(*vae) + (go(*vae) if not last else [])
    return moves


def _moves(rehearsal: Rehearsal, plan: Plan, models: Sequence[str]) -> Iterator[str]:
    wanted = stated_moves(plan, models)
    if rehearsal.moves != wanted:
        yield f"the plan states the moves {wanted}, and there were {rehearsal.moves}"


def bytes_wrong(rehearsal: Rehearsal, predicted: int) -> Iterator[str]:
    """The peak against what was counted beforehand, and against the card."""
    if abs(rehearsal.peak - predicted) > WITHIN * predicted:
        yield f"the peak is {rehearsal.peak:,} bytes, and the plan counts {predicted:,}"
    if rehearsal.peak >= rehearsal.card.total_bytes:
        yield f"the peak is {rehearsal.peak:,} bytes, and the card has {rehearsal.card.total_bytes:,}"
