"""The judge's cost: prompts that name many things, pictures that show many things."""

import itertools
import time

from PIL import Image, ImageDraw

from koala.shapes.captions import parse
from koala.shapes.judge import check, no_verdict, read
from koala.shapes.scene import COLOURS, SHAPES
from recipes.measure.reliability.trial import Trial

MOST_CPU = 0.1  # s of one verdict
MOST_READING = 10  # s of CPU of the largest picture
SIDE = 2048  # px: the largest picture of a request
PROMPTS = {
    "forty circles in a row": " left of ".join(["a circle"] * 40),
    "two thousand characters of stars": (" above ".join(["a star"] * 150))[:2000],
    "every colour and shape": ", ".join(f"a {c} {s}" for c, s in itertools.product(COLOURS, SHAPES))[:2000],
    "three circles": "a circle left of a circle left of a circle",
}
BLOBS = (1, 10, 40, 400, 4000)


def blobs(count: int) -> Image.Image:
    """A picture with `count` discs of all colours on a grid."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    draw, across = ImageDraw.Draw(picture), int(count**0.5 + 0.999)
    step = SIDE / across
    radius, colours = min(step * 0.35, 48), list(COLOURS.values())
    for k in range(count):
        y, x = divmod(k, across)
        middle = ((x + 0.5) * step, (y + 0.5) * step)
        box = [middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius]
        draw.ellipse(box, fill=colours[k % len(colours)])
    return picture


def cost() -> Trial:
    """CPU seconds of every prompt on every picture, whose reading is measured apart."""
    failures, tried, slowest, refused, reading = [], 0, 0.0, set(), {}
    for count in BLOBS:
        picture = blobs(count)
        begun = time.process_time()
        seen = read(picture)
        reading[f"{count} blobs"] = round(time.process_time() - begun, 2)
        for name, prompt in PROMPTS.items():
            begun = time.process_time()
            if no_verdict(prompt):
                refused.add(name)
            else:
                check(seen, parse(prompt))
            took = time.process_time() - begun
            slowest, tried = max(slowest, took), tried + 1
            if took > MOST_CPU:
                failures.append(f"{name} on {count} blobs: {took:.2f} s")
        if reading[f"{count} blobs"] > MOST_READING:
            failures.append(f"{count} blobs were read in {reading[f'{count} blobs']} s")
    return Trial(
        what=f"{len(PROMPTS)} prompts of up to 2,000 characters on each of {len(BLOBS)} pictures of {SIDE} px "
        f"with up to {BLOBS[-1]:,} blobs",
        tried=tried,
        survived=tried - len(failures),
        figures={
            "slowest verdict, CPU seconds": round(slowest, 4),
            "reading, CPU seconds": reading,
            "prompts without a verdict, and told why": len(refused),
        },
        failures=tuple(failures),
    )
