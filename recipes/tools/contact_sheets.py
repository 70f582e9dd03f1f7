"""A model's pictures of 64 prompts on one sheet, as they come: nobody chooses among them.

    python -m recipes.tools.contact_sheets --models tiny-sdxl tiny-koala-1b tiny-koala-700m --out docs/images

They are the score's first 64 prompts with two objects, each from the noise of its own number. A corner is marked where
the judge finds that a claim of the prompt does not hold. Two minutes a model.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from koala.evaluate.shapes import STEPS, draw, prompts
from koala.files.outputs import new_file
from koala.models.library import Library
from koala.shapes.captions import parse
from koala.shapes.judge import verdict

SUITE = "two_objects"
COLUMNS, ROWS = 8, 8
CELL, GAP = 128, 4  # px
PAPER, WRONG = "#ffffff", "#c6282f"


def sheet(cells: list[tuple[Image.Image, bool]]) -> Image.Image:
    """Pictures, each with whether all of its claims hold, in rows."""
    pitch = CELL + GAP
    paper = Image.new("RGB", (COLUMNS * pitch - GAP, ROWS * pitch - GAP), PAPER)
    pen = ImageDraw.Draw(paper)
    for k, (picture, right) in enumerate(cells):
        x, y = k % COLUMNS * pitch, k // COLUMNS * pitch
        paper.paste(picture.resize((CELL, CELL), Image.Resampling.LANCZOS), (x, y))
        if not right:
            pen.polygon([(x, y), (x + 16, y), (x, y + 16)], fill=WRONG, outline=PAPER)
    return paper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder; a sheet is contact-MODEL.png in it")
    args = parser.parse_args()

    library = Library("cpu")
    texts = prompts(SUITE, COLUMNS * ROWS)
    for name in args.models:
        model, cells = library.get(name), []
        for start in range(0, len(texts), COLUMNS):
            row = texts[start : start + COLUMNS]
            pictures = draw(model, row, start, steps=STEPS, guidance=model.card.guidance)
            cells += [(p, verdict(p, parse(t)).all) for p, t in zip(pictures, row, strict=True)]
        drawn = sheet(cells)
        with new_file(args.out / f"contact-{model.card.name}.png") as file:
            drawn.quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        print(f"{name}: all claims hold in {sum(right for _, right in cells)} of {len(cells)}", flush=True)


if __name__ == "__main__":
    main()
