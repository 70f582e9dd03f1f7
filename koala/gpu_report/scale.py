"""What a report measures: which models at which sizes, in full or small enough for a test."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from koala.models.cards import CARDS, ModelCard
from koala.unet.specs import SDXL

FIRST = ("sdxl-base", "koala-1b", "koala-700m")  # the teacher is the baseline of the others


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Names of models, sides in px and numbers of steps; None means a model's own number."""

    groups: tuple[tuple[str, ...], ...]  # of the latencies; those of a group take turns
    group_shares: tuple[float, ...]  # of the time left when a group begins
    sizes: tuple[int, ...]  # the most important first
    preset_models: tuple[str, ...]
    preset_size: int
    plan_models: tuple[str, ...]
    plan_size: int
    plan_memories: tuple[int, ...]  # bytes of the cards to plan for
    attention_model: str
    attention_size: int
    attention_steps: int
    teacher: str
    student: str  # the name of a spec
    resolution: int  # of the distillation
    batches: tuple[int, ...]  # pictures per step; the largest that fits is taken
    exported: str
    steps: int | None = None
    repeats: int = 3
    clicks: int = 50


def same_run(card: ModelCard) -> tuple:
    """What determines a run's time and memory at a size: models that agree in it are measured once."""
    network = (card.spec.notation, card.spec.channels) if card.spec else card.name
    return network, card.steps, card.guidance > 1


def alike(name: str) -> list[str]:
    """The other models of the registry for which a measurement of this one is valid too."""
    run = same_run(CARDS[name])
    return [card.name for card in CARDS.values() if same_run(card) == run and card.name != name]


def _others(names: Sequence[str], cards: Iterable[ModelCard]) -> Iterator[ModelCard]:
    """Every model of SDXL's width whose run differs from those of the names and of the models before it."""
    known = {same_run(CARDS[name]) for name in names}
    for card in cards:
        if card.spec and card.spec.channels == SDXL.channels and same_run(card) not in known:
            known.add(same_run(card))
            yield card


def full_groups(cards: Iterable[ModelCard] = tuple(CARDS.values())) -> tuple[tuple[str, ...], ...]:
    """All models of full size in the registry: the three of KOALA's figure, those of few steps, and the rest."""
    rest = list(_others(FIRST, cards))
    few = tuple(card.name for card in rest if card.steps < CARDS[FIRST[0]].steps)
    return FIRST, few, tuple(card.name for card in rest if card.name not in few)


FULL = Scale(
    groups=full_groups(),
    group_shares=(1 / 2, 2 / 3, 1),
    sizes=(1024, 512),
    preset_models=("koala-lightning-700m", "sdxl-base"),
    preset_size=1024,
    plan_models=("koala-700m", "sdxl-base", "koala-1b"),
    plan_size=1024,
    plan_memories=tuple(gb * 10**9 for gb in (24, 12, 8, 6, 4, 3)),
    attention_model="koala-700m",
    attention_size=1024,
    attention_steps=10,
    teacher="sdxl-base",
    student="koala-700m",
    resolution=1024,
    batches=(8, 4, 2, 1),
    exported="koala-700m",
)


# --- Latency and memory that KOALA's authors published for their own cards: shown next to ours, never as a ratio

PAPER_CARDS = ("RTX 4090, 24 GB", "RTX 2080 Ti, 11 GB", "RTX 3060 Ti, 8 GB")
FIGURE_7, OLDER = "figure 7", "older figure"
OOM = "OOM"

Cell = tuple[float, float] | str  # seconds and GB, or out of memory


@dataclass(frozen=True, kw_only=True)
class Printed:
    """One row of a figure: what each of PAPER_CARDS took."""

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
