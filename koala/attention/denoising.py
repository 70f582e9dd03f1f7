"""How a picture emerges: each model's estimate of it after every step, one row per model (KOALA, figure 5)."""

from collections.abc import Mapping, Sequence

from PIL import Image

from koala.attention import render
from koala.request import GenerationRequest

PREVIEWS = render.STRIP - 1  # of a run: the last picture of a row is the one that was drawn
_HIDDEN = "not shown: with this memory plan the decoder is not in memory while the U-Net runs"


def denoising_strip(
    requests: Sequence[GenerationRequest],
    titles: Sequence[str],
    previews: Sequence[Mapping[int, Image.Image | None]],
    pictures: Sequence[Image.Image],
) -> Image.Image:
    """Rows of the estimates without noise after some steps, the drawn picture last; all models began at one noise.

    `previews` has for each run: step, counted from 1 -> the estimate, or None where it could not be decoded.
    """
    cell = render.cell_of(pictures[0])
    rows = [
        _row(*one, cell=cell, note=_how(one[0], title))
        for title, *one in zip(titles, requests, previews, pictures, strict=True)
    ]
    first = requests[0]
    shared = (
        f"Every model began at the same noise, and each picture is what it takes the clean one for after that step. "
        f"“{first.prompt}”, seed {first.seed}, {first.width}x{first.height} px."
    )
    return render.stacked([*rows, render.note(shared, max(row.width for row in rows))])


def _row(
    request: GenerationRequest,
    previews: Mapping[int, Image.Image | None],
    picture: Image.Image,
    *,
    cell: tuple[int, int],
    note: str,
) -> Image.Image:
    shown = {step: preview or _HIDDEN for step, preview in sorted(previews.items())} | {request.steps: picture}
    labels = [f"step {step} of {request.steps}" for step in shown]
    return render.table([list(shown.values())], columns=labels, rows=[""], note=note, cell=cell)


def _how(request: GenerationRequest, title: str) -> str:
    guidance = f"guidance {request.guidance:g}" if request.guidance > 1 else "no guidance"
    return f"{title}: {request.steps} steps, {guidance}, {request.scheduler}"
