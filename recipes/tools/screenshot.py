"""The README's picture of the app: its Compare tab after the prompt and the seed of the first screen.

python -m recipes.measure.first_screen --out docs/images/first-screen.png --report docs/measurements/first-screen.json
python -m recipes.tools.screenshot --out docs/images/compare.png
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

from koala.files.outputs import new_file
from recipes.measure.space_check import ROOT, draw, running, visit

SIZE = {"width": 1280, "height": 1130}  # px: a laptop's width, down to the verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser")
    parser.add_argument("--out", type=Path, required=True, help="the picture, a PNG")
    args = parser.parse_args()

    first = json.loads((ROOT / "docs" / "measurements" / "first-screen.json").read_text())
    with tempfile.TemporaryDirectory() as work:
        shot = Path(work) / "shot.png"
        with (
            running(sys.executable, ROOT, Path(work) / "app.log") as (url, _),
            visit(url, args.chromium) as (page, wrong),
        ):
            page.set_viewport_size(SIZE)
            page.get_by_label("Random each time").first.uncheck()
            page.get_by_label("Seed", exact=True).first.fill(str(first["number"]))
            draw(page, first["prompt"])
            page.screenshot(path=shot)
        if wrong:
            sys.exit(f"the page had something to say: {wrong}")
        with Image.open(shot) as picture, new_file(args.out) as file:
            picture.convert("RGB").save(file, "PNG", optimize=True)


if __name__ == "__main__":
    main()
