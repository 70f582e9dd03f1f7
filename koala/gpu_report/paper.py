"""Latency and memory that KOALA's authors published for their own cards: shown next to ours, never as a ratio.

KOALA, figure 7 (arXiv 2312.04005; README of youngwanLEE/sdxl-koala, whose bars show the numbers): fp16, batch 1,
PyTorch 2.1.2 without compilation, Turbo at 512 px and the others at 1024. KOALA-1B and KOALA-700M are only in the
project page's older figure (25 steps, guidance 7.5), which names its cards by their memory.
"""

from dataclasses import dataclass

CARDS = ("RTX 4090, 24 GB", "RTX 2080 Ti, 11 GB", "RTX 3060 Ti, 8 GB")
FIGURE_7, OLDER = "figure 7", "older figure"
OOM = "OOM"

Cell = tuple[float, float] | str  # seconds and GB, or out of memory


@dataclass(frozen=True, kw_only=True)
class Printed:
    """One row of a figure: what each of CARDS took."""

    title: str
    size: int  # px
    cells: tuple[Cell, Cell, Cell]
    figure: str = FIGURE_7


# Our model -> the paper's row of the same network, size and settings.
ROWS = {
    "koala-lightning-700m": Printed(
        title="KOALA-Lightning-700M", size=1024, cells=((0.66, 8.3), (1.94, 8.2), (2.88, 6.8))
    ),
    "koala-lightning-1b": Printed(title="KOALA-Lightning-1B", size=1024, cells=((0.79, 9.1), (2.33, 8.9), (3.53, 7.2))),
    "koala-700m": Printed(title="KOALA-700M", size=1024, cells=((1.42, 9.5), (4.33, 8.9), (6.21, 7.7)), figure=OLDER),
    "koala-1b": Printed(title="KOALA-1B", size=1024, cells=((1.77, 10.2), (5.29, 9.7), (7.70, 7.2)), figure=OLDER),
    "sdxl-base": Printed(title="SDXL-Base-1.0", size=1024, cells=((3.23, 11.9), (9.65, 10.4), OOM)),
    "ssd-1b": Printed(title="SSD-1B", size=1024, cells=((2.09, 9.4), (6.34, 9.3), OOM)),
    "segmind-vega": Printed(title="SSD-Vega", size=1024, cells=((1.49, 8.2), (4.52, 8.1), (6.75, 7.2))),
}
# SDXL-Turbo and SDXL-Lightning are in figure 7 too, but without their numbers of steps.
