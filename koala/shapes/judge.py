"""The judge: a picture's reading and a prompt -> which of the prompt's claims hold. No learned model, no randomness."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from koala.shapes.captions import CLAIM_KINDS, Claim, Description, Mention, claims, parse
from koala.shapes.reading import Found, Reading, read

# A prompt's author decides how many objects it names, so the search is bounded.
MOST_MENTIONS = 3  # objects of a prompt: as many as a scene has
MOST_CANDIDATES = 12  # objects that are tried for one mention, the largest first


@dataclass(frozen=True, kw_only=True)
class ClaimResult:
    """A claim, whether it holds, and in a few words what the picture shows for it."""

    claim: Claim
    holds: bool
    seen: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Every claim of a description against one picture, in the order of `captions.claims`."""

    results: tuple[ClaimResult, ...]
    reading: Reading

    @property
    def all(self) -> bool:
        """Whether every claim holds."""
        return all(r.holds for r in self.results)

    @property
    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Kind -> (claims that hold, claims made); kinds without a claim are left out."""
        kinds = {k: [r.holds for r in self.results if r.claim.kind == k] for k in CLAIM_KINDS}
        return {k: (sum(held), len(held)) for k, held in kinds.items() if held}


@dataclass(frozen=True, kw_only=True)
class NoVerdict:
    """Why pictures are not judged by a prompt."""

    reason: str


def _says(seen: Found, mention: Mention) -> bool:
    """Whether an object has every word of a mention."""
    return seen.shape == mention.shape and mention.colour in (None, seen.colour) and mention.size in (None, seen.size)


def _fitting(mention: Mention, reading: Reading) -> list[Found]:
    """The objects that have every word of a mention."""
    return [o for o in reading.objects if _says(o, mention)]


def _candidates(mention: Mention, reading: Reading) -> list[Found]:
    """The largest of the objects that fit a mention, from left to right."""
    fitting = _fitting(mention, reading)
    if len(fitting) <= MOST_CANDIDATES:
        return fitting
    largest = sorted(fitting, key=lambda o: -o.radius)[:MOST_CANDIDATES]
    return [o for o in fitting if any(o is kept for kept in largest)]


def _assign(description: Description, reading: Reading) -> tuple[Found | None, ...]:
    """Mention -> the object it is bound to, one to one: most mentions bound, then most relations.

    Exact among the candidates, for up to MOST_MENTIONS: the time grows with the power of the mentions. A mention of
    which candidates were left out has more of them than there are mentions, so that costs relations alone.
    """
    mentions = description.objects
    if len(mentions) > MOST_MENTIONS:
        raise ValueError(_too_many(description))
    fitting = [_candidates(m, reading) for m in mentions]
    perfect = (len(mentions), len(description.relations))
    best: tuple[tuple[int, int], tuple[Found | None, ...]] = ((-1, -1), ())

    def extend(chosen: tuple[Found | None, ...]) -> None:
        nonlocal best
        bound = sum(o is not None for o in chosen)
        if best[0] == perfect or bound + len(mentions) - len(chosen) < best[0][0]:
            return  # nothing better can follow
        if len(chosen) == len(mentions):
            held = sum(_related(chosen, r, reading) for r in description.relations)
            best = max(best, ((bound, held), chosen), key=lambda b: b[0])
            return
        for candidate in [*fitting[len(chosen)], None]:
            if candidate is None or all(candidate is not o for o in chosen):
                extend((*chosen, candidate))

    extend(())
    return best[1]


def _too_many(description: Description) -> str:
    return (
        f"the prompt names {len(description.objects)} objects; the judge checks at most {MOST_MENTIONS}, "
        "as many as a scene has"
    )


def _related(bound: Sequence[Found | None], claimed: tuple[int, str, int], reading: Reading) -> bool:
    first, how, second = bound[claimed[0]], claimed[1], bound[claimed[2]]
    return None not in (first, second) and reading.relation(first, second) == how


def _listed(words: Sequence[str]) -> str:
    return " and ".join(dict.fromkeys(words)) or "nothing"


def _nearest(mention: Mention, candidates: Sequence[Found]) -> str:
    """The object that comes closest to a mention, in words; a shape in common counts before a colour."""

    def shared(o: Found) -> tuple[bool, bool, bool]:
        return o.shape == mention.shape, o.colour == mention.colour, o.size == mention.size

    return str(max(candidates, key=shared)) if candidates else "nothing"


def _check(claim: Claim, description: Description, reading: Reading, bound: tuple[Found | None, ...]) -> ClaimResult:
    objects, subject = reading.objects, claim.subject
    if claim.kind == "count":
        holds = not reading.unread and len(objects) == subject[0]
        seen = f"{'more than ' if reading.unread else ''}{len(objects)} object{'' if len(objects) == 1 else 's'}"
    elif claim.kind == "attribute" and subject[0] == "background":
        holds, seen = reading.background == subject[1], f"{reading.background} background"
    elif claim.kind == "attribute":
        words = [getattr(o, subject[0]) for o in objects]
        holds, seen = subject[1] in words, _listed(words)
    elif claim.kind == "binding":
        own = bound[subject[0]]
        free = [o for o in objects if all(o is not b for b in bound)]
        holds, seen = own is not None, str(own) if own else _nearest(description.objects[subject[0]], free)
    else:
        first, _, second = subject
        holds = _related(bound, subject, reading)
        mentions = [description.objects[i] for i in (first, second)]
        missing = [f"no {description.objects[i]}" for i in (first, second) if bound[i] is None]
        cut = [str(m) for m in mentions if len(_fitting(m, reading)) > MOST_CANDIDATES]
        if missing:
            seen = _listed(missing)
        elif cut and not holds:
            seen = f"more than {MOST_CANDIDATES} objects that are each a {_listed(cut)}: too many to try them all"
        else:
            how = reading.relation(bound[first], bound[second]) or "too close to"
            seen = f"{bound[first]} {how} {bound[second]}"
    if reading.unread and not holds and claim.kind != "count" and subject[0] != "background":
        seen = f"{seen}, among the {len(objects)} largest objects"
    return ClaimResult(claim=claim, holds=holds, seen=seen)


def check(reading: Reading, description: Description) -> Verdict:
    """Reading and description -> which claims hold; relations count between bound mentions alone.

    ValueError for a description of more than MOST_MENTIONS objects.
    """
    bound = _assign(description, reading)
    results = tuple(_check(c, description, reading, bound) for c in claims(description))
    return Verdict(results=results, reading=reading)


def verdict(picture: Image.Image | np.ndarray, description: Description) -> Verdict:
    """Picture and description of up to MOST_MENTIONS objects -> which claims hold."""
    return check(read(picture), description)


def no_verdict(prompt: str) -> str | None:
    """Why pictures cannot be judged by this prompt; None where they can."""
    description = parse(prompt)
    if description is None:
        return "the prompt names no shape that the judge knows"
    return _too_many(description) if len(description.objects) > MOST_MENTIONS else None


def judge(picture: Image.Image | np.ndarray, prompt: str) -> Verdict | NoVerdict:
    """Picture and prompt -> which claims hold, or why the prompt cannot be judged."""
    reason = no_verdict(prompt)
    return NoVerdict(reason=reason) if reason else verdict(picture, parse(prompt))
