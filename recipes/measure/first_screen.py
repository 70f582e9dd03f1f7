"""The README's first picture: a teacher and its two students on one prompt and one noise, and what they attend to.

    python -m recipes.measure.first_screen --out docs/images/first-screen.png \\
        --report docs/measurements/first-screen.json

Nobody chooses the prompt: it is the first of the score's own prompts with two objects, each drawn from its own noise,
of which all three models keep every claim. The report tells which one that was, whose claims failed before it, and the
times: of five comparisons each model's fastest run, which is what a shared machine disturbs least. Two minutes.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from PIL import Image

from koala.attention import layer_maps
from koala.attention.capture import Capture
from koala.attention.render import components, table
from koala.attention.together import prepare
from koala.evaluate.reports import circumstances
from koala.evaluate.shapes import prompts
from koala.files.outputs import new_file
from koala.hardware.timing import device_name
from koala.models.library import Library
from koala.request import GenerationRequest
from koala.sampling.compare import compare, speedup
from koala.sampling.generate import generate
from koala.sampling.report import claims, comparison
from koala.sampling.result import GenerationResult

MODELS = ("tiny-sdxl", "tiny-koala-1b", "tiny-koala-700m")
SUITE = "two_objects"
STAGE = "UP-2"  # the finest grid with attention: 16x16 patches of a picture of 256 px
REPEATS = 5
SIDE = 256  # px of one picture on the page: its own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the picture, a PNG")
    parser.add_argument("--report", type=Path, required=True, help="its JSON")
    parser.add_argument("--num-prompts", type=int, default=500, help="of the suite, to look through at most")
    args = parser.parse_args()

    library = Library("cpu")
    number, prompt, rejected = _first(library, args.num_prompts)
    requests = [GenerationRequest(model=name, prompt=prompt, seed=number) for name in MODELS]
    runs = [compare(requests, library, num_previews=0) for _ in range(REPEATS)]
    results = [min(own, key=lambda result: result.timing.total_ms) for own in zip(*runs, strict=True)]
    together = prepare(requests, library, stages=[STAGE], words=False)
    capture = together.kept(together.run(lambda *_: None))
    picture, share = _picture(results, capture)
    with new_file(args.out) as file:
        picture.quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    report = circumstances(sys.argv[1:], library.device, program="recipes.measure.first_screen", weights=MODELS) | {
        "machine": device_name(torch.device("cpu")),
        "repeats": REPEATS,
        "rule": f"the first prompt of the suite {SUITE}, from the noise of its number, that all three draw right",
        "prompt": prompt,
        "number": number,
        "rejected": rejected,
        "components": {"stage": STAGE, "variance": share},
    }
    report |= comparison(results, [()] * len(results))
    with new_file(args.report) as file:
        file.write_text(json.dumps(report, indent=1) + "\n")


def _first(library: Library, count: int) -> tuple[int, str, list[dict]]:
    """Number and prompt by the rule, and who failed each one before it; the cheapest model is asked first."""
    rejected = []
    for number, prompt in enumerate(prompts(SUITE, count)):
        for name in reversed(MODELS):
            request = GenerationRequest(model=name, prompt=prompt, seed=number)
            result = generate(request, library.get(name), num_previews=0)
            if not all(claim["holds"] for claim in claims(result)):
                rejected.append({"number": number, "prompt": prompt, "by": name})
                break
        else:
            return number, prompt, rejected
    raise SystemExit(f"all of {count} prompts failed in one of {', '.join(MODELS)}; look through more: --num-prompts")


def _picture(results: list[GenerationResult], capture: Capture) -> tuple[Image.Image, list[float]]:
    """Models as columns: pictures above, components of their last layer's attention beneath; and the variance shown."""
    ((_, layers),) = ((stage, rows[-1]) for stage, rows in capture.stages.items())
    records = [side.record for side in capture.sides]
    painted = layer_maps.joint_colours(records, layers, "mean")
    middle = records[0].steps // 2
    shown = [
        components(own[0][middle], layer.grid, side.picture.size)
        for own, layer, side in zip(painted, layers, capture.sides, strict=True)
    ]
    explained = painted[0][1][middle]
    share = layer_maps.variance_shown(explained)
    height, width = layers[0].grid
    ratios = " and ".join(f"{speedup(results[0].timing, r.timing).per_call:.1f}x" for r in results[1:])
    note = (
        f"“{capture.prompt}”, seed {records[0].seed}, {records[0].steps} steps, on {results[0].device}. Every claim of "
        f"the prompt holds in all three; a U-Net call is {ratios} as fast as the teacher's. Beneath: self-attention of "
        f"{STAGE} ({width}x{height} patches) at step {middle + 1} as three principal components on one basis for all "
        f"three, {share} of the variance: patches that look at the same places are alike."
    )
    columns = [
        f"{side.title}: {r.parameters / 1e6:.1f} M, {r.timing.total_ms / 1000:.1f} s"
        for side, r in zip(capture.sides, results, strict=True)
    ]
    rows = [[side.picture for side in capture.sides], shown]
    return table(rows, columns=columns, rows=["", ""], note=note, cell=(SIDE, SIDE)), [round(e, 4) for e in explained]


if __name__ == "__main__":
    main()
