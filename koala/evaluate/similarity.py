"""Layer similarity: how little each transformer block changes its input (KOALA, figure 11 and appendix B.3).

The cosine between a block's output and its predecessor's, which for a transformer's first block is its projected
input. Near 1 the block hardly changes the direction of its input: those are the blocks that KOALA drops.
"""

from collections.abc import Iterator, Sequence

import torch
from diffusers import UNet2DConditionModel
from torch.nn.functional import cosine_similarity

from koala.models.hooks import tap
from koala.models.loaded import LoadedModel
from koala.request import GenerationRequest
from koala.sampling.generate import resolve, run_pipeline
from koala.unet.specs import STAGES

STEPS = 8  # of the sampler, all measured: from pure noise to the picture
SHAPES = (
    "a red circle left of a blue square",
    "a yellow star above a purple ring",
    "a small pink triangle on a night background",
    "a large green square and a small cyan circle",
    "a blue cross below a red star",
    "a large orange circle",
    "a small green cross right of a large yellow square",
    "a cyan ring on a sand background",
)
PHOTOGRAPHS = (
    "a koala asleep in the fork of a eucalyptus tree, morning light",
    "portrait of an old fisherman in a yellow coat, rain",
    "a bowl of ramen on a wooden table, seen from above",
    "a red vintage car parked in front of a blue house",
    "an astronaut riding a horse across a desert, oil painting",
    "a street market at night with neon signs and wet pavement",
    "a glass teapot beside three lemons, studio photograph",
    "a mountain lake under a stormy sky, wide landscape",
)


def default_prompts(model: LoadedModel) -> tuple[str, ...]:
    """Prompts of the world that the model was trained on."""
    return SHAPES if model.card.embedded else PHOTOGRAPHS


def transformers(unet: UNet2DConditionModel) -> dict[str, list[tuple[str, int]]]:
    """Stage -> (module path, depth) of its transformers, in forward order; stages without attention are left out."""
    stages = {}
    for stage, path in STAGES.items():
        block = getattr(unet, path) if path == "mid_block" else unet.get_submodule(path)
        attentions = getattr(block, "attentions", None)
        if attentions:
            stages[stage] = [(f"{path}.attentions.{k}", len(a.transformer_blocks)) for k, a in enumerate(attentions)]
    return stages


def _chain(path: str, depth: int) -> list[str]:
    """What a transformer's tokens pass through: the projection in, then every block."""
    return [f"{path}.proj_in", *(f"{path}.transformer_blocks.{k}" for k in range(depth))]


@torch.inference_mode()
def similarities(model: LoadedModel, request: GenerationRequest) -> dict[str, torch.Tensor]:
    """Transformer path -> (steps, depth): the mean over tokens of each block's cosine to its predecessor.

    With guidance, the half of the batch that sees the prompt is measured.
    """
    request = resolve(request, model.card)
    unet = model.pipeline.unet
    chains = {path: _chain(path, depth) for stage in transformers(unet).values() for path, depth in stage}
    per_step: dict[str, list[torch.Tensor]] = {path: [] for path in chains}
    with model.lock, tap({name: unet.get_submodule(name) for chain in chains.values() for name in chain}) as seen:

        def step_end(pipeline, index, timestep, values) -> dict:
            for path, chain in chains.items():
                tokens = [seen[name][-1].float() for name in chain]  # (N, C) each
                cosines = [cosine_similarity(b, a, dim=-1).mean() for a, b in zip(tokens, tokens[1:], strict=False)]
                per_step[path].append(torch.stack(cosines).cpu())
            seen.clear()
            return {}

        run_pipeline(model, request, step_end=step_end)
    return {path: torch.stack(rows) for path, rows in per_step.items()}


def measure(model: LoadedModel, prompts: Sequence[str], *, steps: int = STEPS, seed: int = 0) -> Iterator[dict]:
    """The curves after each prompt, as JSON; the last value is the final measurement. Closing the iterator stops it.

    `mean` is over steps and prompts; `spread` is the standard deviation over prompts.
    """
    stages = transformers(model.pipeline.unet)
    rows: dict[str, list[torch.Tensor]] = {}
    for done, prompt in enumerate(prompts, 1):
        request = GenerationRequest(model=model.card.name, prompt=prompt, steps=steps, seed=seed + done - 1)
        for path, cosines in similarities(model, request).items():
            rows.setdefault(path, []).append(cosines.mean(0))
        stacked = {path: torch.stack(cosines) for path, cosines in rows.items()}  # (prompts, depth)
        yield {
            "model": model.card.name,
            "title": model.card.title,
            "prompts": list(prompts[:done]),
            "num_prompts": len(prompts),
            "steps": steps,
            "seed": seed,
            "stages": {
                stage: [
                    {
                        "transformer": path,
                        "mean": [round(x, 5) for x in stacked[path].mean(0).tolist()],
                        "spread": [round(x, 5) for x in stacked[path].std(0, correction=0).tolist()],
                    }
                    for path, _ in inside
                ]
                for stage, inside in stages.items()
            },
        }
