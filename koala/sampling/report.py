"""Results as JSON: what `generate` and `compare` print, and what the app's endpoints return."""

import dataclasses
from collections.abc import Sequence

from koala.sampling.compare import speedup
from koala.sampling.result import GenerationResult
from koala.shapes.captions import claims as claims_of
from koala.shapes.captions import parse
from koala.shapes.judge import NoVerdict, judge, no_verdict


def claims(result: GenerationResult, index: int = 0) -> list[dict] | None:
    """The judge's verdict on one picture, claim by claim; None where there is none; see `why_none`.

    Claims about words that the model did not read are left out: `not_asked` has them.
    """
    verdict = judge(result.images[index], result.asked)
    if isinstance(verdict, NoVerdict):
        return None
    return [{"kind": r.claim.kind, "claim": r.claim.text, "holds": r.holds, "seen": r.seen} for r in verdict.results]


def not_asked(result: GenerationResult) -> list[str]:
    """The prompt's claims about words that the model did not read, which no picture is judged by."""
    whole, read = parse(result.request.prompt), parse(result.asked)
    if whole is None or not result.unread["prompt"]:
        return []
    read_claims = {c.text for c in claims_of(read)} if read else set()
    return [c.text for c in claims_of(whole) if c.text not in read_claims]


def why_none(result: GenerationResult) -> str | None:
    """Why the pictures have no verdict; None where they have one."""
    if not_asked(result) and parse(result.asked) is None:
        return "the model did not read the words of the prompt that name shapes, so it was not asked for them"
    return no_verdict(result.asked)


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
        "no_verdict": why_none(result),
        "not_asked": not_asked(result),
        "unread": result.unread,
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
