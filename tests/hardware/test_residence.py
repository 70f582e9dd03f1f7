"""Where parts are during a run: what a plan keeps, what comes for its stage, and when the rest leaves."""

import dataclasses

import numpy as np
import pytest
import torch

from koala.hardware.device import Residence
from koala.models.cards import CARDS
from koala.models.loaded import Placement
from koala.request import GenerationRequest
from koala.sampling.generate import generate, resolve

PAIR = ("tiny-sdxl", "tiny-koala-700m")


class Part(torch.nn.Module):
    """A module that notes where it was sent."""

    def __init__(self):
        super().__init__()
        self.sent = []

    def to(self, device):
        self.sent.append(str(device))


def test_what_stays_is_not_moved_again():
    residence, text, unet, vae = Residence(torch.device("cuda")), Part(), Part(), Part()
    residence.bring([text])
    residence.bring([unet], keep=[vae])
    residence.bring([vae], keep=[unet])
    assert (text.sent, unet.sent, vae.sent) == (["cuda", "cpu"], ["cuda"], ["cuda"])
    assert set(residence.here) == {unet, vae}


def place(library, text, unet):
    models = library.get_all(PAIR)
    asked = [resolve(GenerationRequest(model=n, prompt="a star", steps=2), CARDS[n]) for n in PAIR]
    whole = library.place(models, asked)
    return models, asked, Placement(plan=dataclasses.replace(whole.plan, text=text, unet=unet), models=whole.models)


def here(library, models):
    return {
        f"{m.card.name}:{name}"
        for m in models
        for name in ("text_encoder", "unet", "vae")
        if any(getattr(m.pipeline, name) is part for part in library.residence.here)
    }


@pytest.mark.parametrize(
    "text, unet, during",
    [
        ("resident", "resident", {"text_encoder", "unet", "vae"}),
        ("released", "resident", {"unet", "vae"}),
        ("released", "exchanged", {"unet", "vae"}),
        ("released", "swapped", {"unet"}),
    ],
)
def test_one_unet_at_a_time_where_the_plan_says_so(library, text, unet, during):
    models, asked, placement = place(library, text, unet)
    whole = [generate(r, m) for r, m in zip(asked, models, strict=True)]
    library.embeddings.clear()
    seen = []
    for request, model in zip(asked, models, strict=True):
        watch = lambda step, m=model: seen.append((m.card.name, here(library, models)))  # noqa: E731
        result = generate(request, model, placement=placement, on_step=watch)
        expected = next(w for w in whole if w.request.model == request.model)
        assert np.array_equal(np.asarray(result.images[0]), np.asarray(expected.images[0]))
    for name, on_device in seen:
        own = {part for part in on_device if part.startswith(name)}
        assert own == {f"{name}:{part}" for part in during}
        unets = {part for part in on_device if part.endswith(":unet")}
        assert len(unets) == (2 if unet == "resident" and name == PAIR[1] else 1) or unet == "resident"
    if unet != "resident":
        assert all(len({p for p in on_device if p.endswith(":unet")}) == 1 for _, on_device in seen)


def test_a_released_text_is_encoded_once_for_both_models_and_counted_for_each(library):
    models, asked, placement = place(library, "released", "exchanged")
    library.embeddings.clear()
    calls = []
    hook = models[0].pipeline.text_encoder_2.register_forward_hook(lambda *_: calls.append(1))
    try:
        results = [generate(r, m, placement=placement) for r, m in zip(asked, models, strict=True)]
    finally:
        hook.remove()
    assert len(calls) == 1  # the empty negative prompt is zeros, not a call
    assert results[0].timing.text_ms == results[1].timing.text_ms > 0
    assert all(r.timing.swap_ms >= 0 for r in results)
    total = results[1].timing
    assert total.total_ms == pytest.approx(total.text_ms + total.unet_total_ms + total.vae_ms, rel=0.2)


@pytest.mark.parametrize("text", ["resident", "released"])
def test_a_models_peak_does_not_count_the_one_that_was_on_the_device_before(library, monkeypatch, text):
    """SDXL's U-Net is 5 GB of a card, and leaves it when KOALA's run has begun; also where the text is remembered."""
    models, asked, placement = place(library, text, "exchanged" if text == "released" else "resident")
    alone = [dataclasses.replace(placement, models=(m,)) for m in models]
    counted = []
    monkeypatch.setattr(
        "koala.hardware.timing._reset_process_peak", lambda: counted.append(here(library, models)) or True
    )
    for _ in range(2):
        for request, model, own in zip(asked, models, alone, strict=True):
            generate(request, model, placement=own, num_previews=0)
            others = {part for part in counted[-1] if not part.startswith(model.card.name) and part.endswith("unet")}
            assert not others, "the peak counts from a moment at which another model's U-Net was there"
