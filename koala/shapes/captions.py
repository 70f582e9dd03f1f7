"""Captions of a scene in two styles, and the way back: text -> description -> claims that a judge can check.

A *short* caption names colour and shape; a *detailed* one adds sizes and the background. A relation is stated
between the first two objects.
"""

import random
import re
from dataclasses import dataclass

from koala.shapes.scene import BACKGROUNDS, COLOURS, HELD_OUT, SHAPES, SIZES, Scene, relation
from koala.words import many

STYLES = ("short", "detailed")
CLAIM_KINDS = ("attribute", "binding", "relation", "count")
# Example prompts; the last one joins a shape and a colour that no training picture joins.
EXAMPLES = (
    "a red circle left of a blue square",
    "a yellow star above a purple ring",
    "a small pink triangle on a night background",
    "a large green square and a small cyan circle",
    "a blue cross below a red star",
    "a purple circle",
)
assert ("circle", "purple") in HELD_OUT

_PHRASES = {  # relation -> how captions say it
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_FRAMES = {  # style -> frames around the objects
    "short": ("{objects}", "{objects}", "a picture of {objects}"),
    "detailed": (
        "{objects} on a {background} background",
        "{objects} against a {background} background",
        "on a {background} background, {objects}",
        "a picture of {objects} on a {background} background",
    ),
}
_SYNONYMS = {
    "big": "large",
    "huge": "large",
    "tiny": "small",
    "little": "small",
    "gray": "grey",
    "plus": "cross",
}
_NUMBERS = {"two": 2, "three": 3}
_RELATION_PATTERN = re.compile(
    r"\b(?:(?:to|on) the )?(left|right) of\b|\b(above|over|below|under|beneath|underneath)\b"
)
_RELATION_WORDS = {
    "left": "left of",
    "right": "right of",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
    "beneath": "below",
    "underneath": "below",
}
_SILENT = frozenset(
    re.findall(
        r"\w+",
        "a an the one of on against with is there and picture to background shape shapes in at it"
        " left right above over below under beneath underneath two three next",
    )
)


@dataclass(frozen=True, kw_only=True)
class Mention:
    """One object as a prompt names it; None where the prompt is silent."""

    shape: str
    colour: str | None = None
    size: str | None = None

    def __str__(self) -> str:
        return " ".join(word for word in (self.size, self.colour, self.shape) if word)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a prompt says: objects in order, relations (first index, relation, second index), background."""

    objects: tuple[Mention, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    background: str | None = None
    unknown: tuple[str, ...] = ()  # words that the shapes world has no meaning for


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One checkable statement. `kind` is of CLAIM_KINDS; `subject` says which part of the description it checks."""

    kind: str
    text: str
    subject: tuple


def _noun_phrase(rng: random.Random, words: tuple[str | None, ...]) -> str:
    body = " ".join(w for w in words if w)
    article = "an" if body[0] in "aeiou" else "a"
    return f"{article} {body}"


def caption(scene: Scene, style: str, rng: random.Random) -> str:
    """A caption of `scene` in one of several phrasings, drawn from `rng`."""
    if style not in STYLES:
        raise ValueError(f"caption style {style!r} is not one of {', '.join(STYLES)}")
    detailed = style == "detailed"
    nouns = []
    for o in scene.objects:
        size = o.size if detailed else None
        if size == "large" and rng.random() < 0.2:
            size = "big"
        nouns.append(_noun_phrase(rng, (size, o.colour, o.shape)))
    text = nouns[0]
    if len(nouns) > 1:
        how = relation(scene.objects[0], scene.objects[1], min(scene.width, scene.height))
        if how is None:
            raise ValueError("the first two objects of a scene must lie clearly to one side of each other")
        text += f" {rng.choice(_PHRASES[how])} {nouns[1]}"
    if len(nouns) > 2:
        text += f" and {nouns[2]}"
    return rng.choice(_FRAMES[style]).format(objects=text, background=scene.background)


def parse(text: str) -> Description | None:
    """Prompt -> description; None when it names no shape of this world, so that there is nothing to judge."""
    lowered = text.lower()
    mentions: list[tuple[int, str, str]] = []  # (position, what, value)
    for match in _RELATION_PATTERN.finditer(lowered):
        mentions.append((match.start(), "relation", _RELATION_WORDS[match.group(1) or match.group(2)]))
    background = None
    unknown: dict[str, None] = {}  # in order, each once
    words = [(m.start(), m.group()) for m in re.finditer(r"[^\W\d_]+", lowered)]
    for i, (position, raw) in enumerate(words):
        word = _SYNONYMS.get(raw, raw)
        following = words[i + 1][1] if i + 1 < len(words) else ""
        singular = word[:-2] if word in ("crosses",) else word.removesuffix("s")
        if word in BACKGROUNDS and following == "background":
            background = word
        elif word in COLOURS and following != "background":
            mentions.append((position, "colour", word))
        elif word in SIZES:
            mentions.append((position, "size", word))
        elif word in SHAPES or singular in SHAPES:
            mentions.append((position, "shape", word if word in SHAPES else singular))
        elif word in _NUMBERS:
            mentions.append((position, "number", word))
        elif word not in _SILENT:
            unknown[raw] = None
    objects: list[Mention] = []
    relations: list[tuple[int, str, int]] = []
    pending: dict[str, str] = {}
    how: str | None = None
    for _, what, value in sorted(mentions):
        if what == "shape":
            first = len(objects)
            mention = Mention(shape=value, colour=pending.get("colour"), size=pending.get("size"))
            objects += [mention] * _NUMBERS.get(pending.get("number", ""), 1)
            if how and first:
                relations.append((first - 1, how, first))
            pending, how = {}, None
        elif what == "relation":
            how = value
        else:
            pending[what] = value
    if not objects:
        return None
    return Description(
        objects=tuple(objects), relations=tuple(relations), background=background, unknown=tuple(unknown)
    )


def claims(description: Description) -> tuple[Claim, ...]:
    """Every claim of a description: count, then each word, each object as a whole, each relation."""
    num = len(description.objects)
    listed = [Claim(kind="count", text=many(num, "object"), subject=(num,))]
    seen = set()
    for mention in description.objects:
        for what in ("shape", "colour", "size"):
            word = getattr(mention, what)
            if word and (what, word) not in seen:
                seen.add((what, word))
                listed.append(Claim(kind="attribute", text=word, subject=(what, word)))
    if description.background:
        listed.append(
            Claim(
                kind="attribute",
                text=f"{description.background} background",
                subject=("background", description.background),
            )
        )
    for index, mention in enumerate(description.objects):
        if mention.colour or mention.size:
            listed.append(Claim(kind="binding", text=str(mention), subject=(index,)))
    for first, how, second in description.relations:
        text = f"{description.objects[first]} {how} {description.objects[second]}"
        listed.append(Claim(kind="relation", text=text, subject=(first, how, second)))
    return tuple(listed)
