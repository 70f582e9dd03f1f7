"""The denoising strip of a run: a model's estimate of the picture after each step, as one small picture file.

The file is next to the run's pictures, in the folder that Gradio serves and cleans, so it goes when they go; what the
page is sent, and what the history of a visit keeps, is its address.
"""

import io
from typing import TYPE_CHECKING

from PIL import Image

from koala.ui import stage

if TYPE_CHECKING:
    from koala.sampling.result import GenerationResult

COLUMNS = 8  # of frames in the file
QUALITY = 80  # of WebP


def strip(result: "GenerationResult") -> dict | None:
    """The strip as the page takes it: its file, the size of a frame in px, and the step and noise of every frame.

    Noise is in percent of the latents' standard deviation. The last frame is the picture itself, the first of its run.
    None for a run without previews: its memory plan had no decoder on the device.
    """
    from koala.sampling.previews import frame

    if not result.frames:
        return None
    frames = (*result.frames, frame(result.request.steps, 0.0, result.images[0]))
    buffer, size = io.BytesIO(), result.frames[0].picture.size
    _sheet([one.picture for one in frames], size).save(buffer, "WEBP", quality=QUALITY)
    name = stage.file_name(result.request.model, result.request.seed).removesuffix(".png")
    return {
        "src": stage.file_data(stage.keep(buffer.getvalue(), f"{name}-denoising.webp")),
        "width": size[0],
        "height": size[1],
        "columns": COLUMNS,
        "steps": [one.step for one in frames],
        "noise": [round(100 * one.noise) for one in frames],
    }


def _sheet(pictures: list[Image.Image], size: tuple[int, int]) -> Image.Image:
    """All frames in rows of `COLUMNS`, each of this size in px."""
    width, height = size
    sheet = Image.new("RGB", (width * min(COLUMNS, len(pictures)), height * -(-len(pictures) // COLUMNS)))
    for k, picture in enumerate(pictures):
        sheet.paste(picture.resize(size), (k % COLUMNS * width, k // COLUMNS * height))
    return sheet
