"""What recording attention costs: a recorded run next to a plain one, a click, and a capture's bytes against its plan.

    python -m recipes.measure.attention_speed --out docs/measurements/attention.json

One thread and CPU time, so that other programs do not count; only saving and loading are wall-clock seconds.
Recording is a ratio of runs in turns. The full size is one 64x64 layer of ten heads, and KOALA-700M at 1024 px over ten
steps, of random queries and keys.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import torch
from PIL import Image

from koala.attention import view
from koala.attention.capture import Capture, Side
from koala.attention.plan import AttentionPlan, plan
from koala.attention.record import capture
from koala.attention.recorded import AttentionRecord
from koala.attention.together import prepare
from koala.console import no_bars
from koala.evaluate.reports import circumstances
from koala.files.outputs import new_file
from koala.models.library import Library
from koala.request import GenerationRequest
from koala.sampling.generate import generate, resolve
from koala.unet.specs import KOALA_700M

PROMPT = "a red circle left of a blue square"
TEACHER, STUDENT = "tiny-sdxl", "tiny-koala-700m"
STEPS, SIZE = 10, 1024  # of the full size


def milliseconds(work: Callable[[], object]) -> float:
    """Of the CPU."""
    began = time.process_time()
    work()
    return 1000 * (time.process_time() - began)


def recording(library: Library, rounds: int) -> dict:
    """Runs without and with a recorder, in turns; with one of all layers, too, which is the most that can be asked."""
    model = library.get(STUDENT)
    request = resolve(GenerationRequest(model=STUDENT, prompt=PROMPT, steps=STEPS), model.card)
    work = {"plain": partial(generate, request, model, num_previews=0)}
    for name, layers in (("one_layer_per_stage", "last"), ("all_layers", "all")):
        planned = plan(model.spec, request.width, request.height, STEPS, layers=layers)
        work[name] = partial(capture, model, request, planned, num_previews=0)
    took = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, run in work.items():
            ms = milliseconds(run)
            if turn:  # the first one warms up
                took[name].append(ms)
    plain = took.pop("plain")
    figures = {"model": STUDENT, "steps": STEPS, "size": [request.width, request.height], "rounds": rounds}
    figures["plain_ms"] = {"median": round(statistics.median(plain), 1), "least": round(min(plain), 1)}
    for name, own in took.items():
        figures[name] = {
            "ratio_of_medians": round(statistics.median(own) / statistics.median(plain), 4),
            "ratio_of_fastest": round(min(own) / min(plain), 4),
        }
    print(f"recording: {figures}", flush=True)
    return figures


def pair(library: Library) -> Capture:
    requests = [GenerationRequest(model=name, prompt=PROMPT) for name in (TEACHER, STUDENT)]
    together = prepare(requests, library, every=True)
    drawn = together.run(lambda k, step: None)
    sides = [
        Side(title=title, picture=result.images[0], record=record)
        for title, (result, record) in zip(together.titles, drawn, strict=True)
    ]
    return Capture(prompt=PROMPT, sides=tuple(sides))


def clicks(pair: Capture, count: int) -> dict:
    """What the tab computes for a click in UP-2: both models' rows, and that of a full-size layer."""
    planned = plan(KOALA_700M, SIZE, SIZE, 1, stages=["UP-2"], cross=False)
    layer, plain = planned.layers[0], Image.new("RGB", (64, 64))
    alone = Capture(prompt="", sides=(Side(title=KOALA_700M.name, picture=plain, record=full_size(planned)),))
    figures = {
        "embedded_both_models": click(pair, count, 0),
        "embedded_both_models_mean_of_steps": click(pair, count, "mean"),
        "full_size_layer": click(alone, count, 0) | {"grid": list(layer.grid), "heads": layer.heads, "dim": layer.dim},
    }
    print(f"a click: {figures}", flush=True)
    return figures


def click(capture: Capture, count: int, step: int | str) -> dict:
    places = torch.rand(count, 2, generator=torch.Generator().manual_seed(0)).tolist()
    asked = {"kind": "row", "stage": "UP-2", "head": "mean", "step": step}
    took = [milliseconds(partial(view.look, capture, asked | {"box": place * 2})) for place in places]
    return {"median_ms": round(statistics.median(took), 2), "most_ms": round(max(took), 2)}


def full_size(planned: AttentionPlan) -> AttentionRecord:
    """A record of random queries and keys, as such a run would leave it."""
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=getattr(torch, planned.dtype)).normal_(generator=generator)

    return AttentionRecord(
        model=KOALA_700M.name,
        revision="random",
        spec=KOALA_700M,
        prompt="",
        seed=None,
        guidance=None,
        width=planned.width,
        height=planned.height,
        images=planned.images,
        half="conditional",
        timesteps=tuple(float(t) for t in torch.linspace(999, 1, planned.steps)),
        tokens=(),
        overhead_ms=0.0,
        layers=planned.layers,
        frames=tuple(
            {x.path: tuple(tensor(1, x.heads, n, x.dim) for n in (x.queries, x.keys)) for x in planned.layers}
            for _ in range(planned.steps)
        ),
    )


def resident() -> int:
    """Bytes of memory that this process holds."""
    return psutil.Process().memory_info().rss


def memory() -> dict:
    """KOALA-700M, the last layer of each stage: the plan's bytes, the tensors', what the process grew by; its file."""
    planned = plan(KOALA_700M, SIZE, SIZE, STEPS, cross=False)
    before = resident()
    record = full_size(planned)
    grown = resident() - before
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        saved = record.save(Path(folder) / "capture")
        middle = time.perf_counter()
        AttentionRecord.load(saved)
        figures = {
            "model": KOALA_700M.name,
            "steps": STEPS,
            "size": [SIZE, SIZE],
            "stages": list(planned.stages),
            "predicted_bytes": planned.bytes,
            "tensor_bytes": record.bytes,
            "process_grew_by_bytes": grown,
            "file_bytes": sum(f.stat().st_size for f in saved.iterdir()),
            "save_seconds": round(middle - began, 2),
            "load_seconds": round(time.perf_counter() - middle, 2),
        }
    print(f"a capture at full size: {figures}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--rounds", type=int, default=20, help="of recording")
    parser.add_argument("--clicks", type=int, default=50)
    args = parser.parse_args()

    no_bars()
    torch.set_num_threads(1)
    library = Library("cpu")
    report = circumstances(
        sys.argv[1:], library.device, program="recipes.measure.attention_speed", weights=(TEACHER, STUDENT)
    ) | {
        "milliseconds": "of the CPU, one thread",
        "full_size": memory(),
        "recording": recording(library, args.rounds),
        "click": clicks(pair(library), args.clicks),
    }
    with new_file(args.out) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
