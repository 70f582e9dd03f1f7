"""Maps as pictures: heat over a picture, principal components as colours, tables, strips and films with a caption.

A patch stays a square of one colour: attention has no more detail than that.
"""

import io
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

# Nine stops of matplotlib's inferno (CC0): lightness rises evenly, so more is brighter for every viewer.
_STOPS = (
    (0, 0, 4),
    (31, 12, 72),
    (85, 15, 109),
    (136, 34, 106),
    (186, 54, 85),
    (227, 89, 51),
    (249, 140, 10),
    (249, 201, 50),
    (252, 255, 164),
)
_PLACES = np.linspace(0, len(_STOPS) - 1, 256)
TABLE = (
    np.column_stack([np.interp(_PLACES, range(len(_STOPS)), c) for c in np.array(_STOPS).T]).round().astype(np.uint8)
)
MARK = (255, 40, 40)  # of marked patches
# Okabe and Ito's colours, which colour-blind viewers can tell apart; segment 0 is the largest
SEGMENTS = torch.tensor(
    [
        [0, 114, 178],
        [230, 159, 0],
        [0, 158, 115],
        [204, 121, 167],
        [86, 180, 233],
        [213, 94, 0],
        [240, 228, 66],
        [120, 120, 120],
    ],
    dtype=torch.uint8,
)
PAPER, INK, FAINT = (255, 255, 255), (30, 30, 30), (120, 120, 120)
_PAD = 10
STRIP = 8  # frames in a strip at most
SIDE = 256  # px of the longer side of one picture in a table

Frame = Sequence[Image.Image | str]  # per model a picture, or the reason why there is none


def levels(values: torch.Tensor, *, gamma: float = 1.0, high: float | None = None) -> torch.Tensor:
    """Values of 0 and more -> uint8, the largest (or `high`) at 255; a gamma below 1 raises the low ones."""
    top = max(float(values.max()) if high is None else high, 1e-12)
    return ((values / top).clamp(0, 1) ** gamma * 255).round().to(torch.uint8)


def patches(colours: np.ndarray, grid: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """uint8 (N, 3) as a picture of `size` (width, height) px, one square per patch."""
    return Image.fromarray(np.ascontiguousarray(colours).reshape(*grid, 3)).resize(size, Image.Resampling.NEAREST)


def heat(
    picture: Image.Image,
    values: torch.Tensor,
    grid: tuple[int, int],
    *,
    opacity: float = 0.75,
    gamma: float = 1.0,
    high: float | None = None,
) -> Image.Image:
    """The picture under a map's colours; opacity 1 hides it."""
    over = patches(TABLE[levels(values, gamma=gamma, high=high).numpy()], grid, picture.size)
    return Image.blend(picture.convert("RGB"), over, opacity)


def components(colours: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """`pca.colours` of one frame, uint8 (N, 3), as a picture."""
    return patches(colours.numpy(), grid, size)


def segments(labels: torch.Tensor) -> torch.Tensor:
    """Colours (N, 3) of `maps.segments`; the ninth has the first one's again."""
    return SEGMENTS[labels % len(SEGMENTS)]


def marked(picture: Image.Image, cells: tuple[int, int, int, int], grid: tuple[int, int]) -> Image.Image:
    """The picture with a red box, white on both sides, around patches: left, top, right, bottom (exclusive)."""
    height, width = picture.height / grid[0], picture.width / grid[1]
    left, top, right, bottom = cells
    thick = max(2, picture.width // 128)
    drawn = picture.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    for out, colour, line in ((thick + 1, PAPER, thick + 2), (thick, MARK, thick)):
        edges = (left * width - out, top * height - out, right * width + out - 1, bottom * height + out - 1)
        draw.rectangle(edges, outline=colour, width=line)
    return drawn


@cache
def _font(px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(px)


@lru_cache(maxsize=64)
def _wrapped(text: str, font, width: int) -> tuple[str, ...]:
    """The text in lines of at most `width` px."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return tuple(lines)


def table(
    cells: Sequence[Sequence[Image.Image | str]],
    *,
    columns: Sequence[str],
    rows: Sequence[str],
    note: str,
    cell: tuple[int, int] = (256, 256),
) -> Image.Image:
    """Pictures in rows and columns with headings, a text instead of a missing one, and `note` below."""
    font, small = _font(16), _font(13)
    left = max([int(font.getlength(r)) for r in rows if r], default=0)
    left += 2 * _PAD if left else _PAD
    width = left + len(columns) * (cell[0] + _PAD)
    lines = _wrapped(note, small, width - 2 * _PAD)
    top = 16 + 2 * _PAD
    bottom = top + len(rows) * (cell[1] + _PAD)
    sheet = Image.new("RGB", (width, bottom + len(lines) * 18 + _PAD), PAPER)
    draw = ImageDraw.Draw(sheet)
    for k, text in enumerate(columns):
        draw.text((left + k * (cell[0] + _PAD) + cell[0] / 2, top / 2), text, INK, font, anchor="mm")
    for r, (text, line) in enumerate(zip(rows, cells, strict=True)):
        y = top + r * (cell[1] + _PAD)
        draw.text((_PAD, y + cell[1] / 2), text, INK, font, anchor="lm")
        for k, one in enumerate(line):
            x = left + k * (cell[0] + _PAD)
            if isinstance(one, str):
                draw.rectangle((x, y, x + cell[0] - 1, y + cell[1] - 1), outline=FAINT)
                texts = _wrapped(one, small, cell[0] - 2 * _PAD)
                draw.multiline_text((x + cell[0] / 2, y + cell[1] / 2), "\n".join(texts), FAINT, small, anchor="mm")
            else:
                sheet.paste(one.resize(cell, Image.Resampling.NEAREST), (x, y))
    draw.multiline_text((_PAD, bottom), "\n".join(lines), INK, small, spacing=4)
    return sheet


def note(text: str, width: int) -> Image.Image:
    """A text of this width in px, in lines."""
    font = _font(13)
    lines = _wrapped(text, font, width - 2 * _PAD)
    sheet = Image.new("RGB", (width, len(lines) * 18 + 2 * _PAD), PAPER)
    ImageDraw.Draw(sheet).multiline_text((_PAD, _PAD), "\n".join(lines), INK, font, spacing=4)
    return sheet


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures one above the other."""
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), PAPER)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def cell_of(picture: Image.Image) -> tuple[int, int]:
    """(width, height) px of a picture in a table: its own shape, the longer side SIDE px."""
    scale = SIDE / max(picture.size)
    return round(picture.width * scale), round(picture.height * scale)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the positions 0 .. count - 1, evenly spread, the first and the last among them."""
    number = min(most, count)
    return [round(k * (count - 1) / max(1, number - 1)) for k in range(number)]


def _cell(frames: Sequence[Frame]) -> tuple[int, int]:
    return cell_of(next(one for frame in frames for one in frame if not isinstance(one, str)))


def strip(frames: Sequence[Frame], labels: Sequence[str], *, titles: Sequence[str], note: str) -> Image.Image:
    """Frames as columns with a label each, models as rows with a title each."""
    return table(list(zip(*frames, strict=True)), columns=labels, rows=titles, note=note, cell=_cell(frames))


def film(frames: Sequence[Frame], labels: Sequence[str], *, titles: Sequence[str], note: str) -> bytes:
    """A GIF of the same frames, models side by side."""
    cell = _cell(frames)
    return gif(
        [
            table([frame], columns=titles, rows=[label], note=note, cell=cell)
            for frame, label in zip(frames, labels, strict=True)
        ]
    )


def gif(frames: Sequence[Image.Image], milliseconds: int = 250) -> bytes:
    """A GIF that loops forever; all frames share one palette, so that a colour means the same in all of them."""
    small = [frame.resize([max(1, side // 4) for side in frame.size], Image.Resampling.NEAREST) for frame in frames]
    wide = Image.new("RGB", (small[0].width * len(small), small[0].height))
    for k, frame in enumerate(small):
        wide.paste(frame, (k * frame.width, 0))
    palette = wide.quantize(255, Image.Quantize.MEDIANCUT)
    flat = [frame.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    flat[0].save(buffer, "GIF", save_all=True, append_images=flat[1:], duration=milliseconds, loop=0, disposal=1)
    return buffer.getvalue()
