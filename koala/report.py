"""Results as JSON: what `generate` and `compare` print, and what the app's endpoints return."""

import dataclasses
from collections.abc import Sequence

from koala.compare import speedup
from koala.result import GenerationResult
from koala.shapes.judge import NoVerdict, judge, no_verdict


def claims(result: GenerationResult, index: int = 0) -> list[dict] | None:
    """The judge's verdict on one picture, claim by claim; None where there is none, and `no_verdict` says why."""
    verdict = judge(result.images[index], result.request.prompt)
    if isinstance(verdict, NoVerdict):
        return None
    return [{"kind": r.claim.kind, "claim": r.claim.text, "holds": r.holds, "seen": r.seen} for r in verdict.results]


def entry(result: GenerationResult, images: Sequence[str] = ()) -> dict:
    """One model's result. `image` is the first picture's file, `images` all of them."""
    return {
        "model": result.request.model,
        "image": images[0] if images else None,
        "images": list(images),
        "parameters": result.parameters,
        "request": result.request.to_dict(),
        "revision": result.revision,
        "dtype": result.dtype,
        "device": result.device,
        "runtime": result.runtime,
        "timing": dataclasses.asdict(result.timing),
        "lora": result.lora_layers,
        "plan": dataclasses.asdict(result.plan) if result.plan else None,
        "claims": claims(result),
        "no_verdict": no_verdict(result.request.prompt),
    }


def comparison(results: Sequence[GenerationResult], images: Sequence[Sequence[str]]) -> dict:
    """Several models on one noise; every speed-up is against the first model."""
    first = results[0]
    return {
        "models": [entry(r, files) for r, files in zip(results, images, strict=True)],
        "speedup": {
            "baseline": first.request.model,
            "models": [
                {"model": r.request.model, **dataclasses.asdict(speedup(first.timing, r.timing))} for r in results[1:]
            ],
        },
        "device": first.device,
        "versions": {name: version for r in results for name, version in r.versions.items()},
    }
