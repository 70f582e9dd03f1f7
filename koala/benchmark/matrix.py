"""What a benchmark measures: models x sizes x batches x presets."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from koala.errors import UserError
from koala.presets import PRESETS
from koala.request import GenerationRequest

STOCK = "stock"  # this preset is diffusers' own pipeline
PRESET_NAMES = (*PRESETS, STOCK)
PROMPT = "a red circle left of a blue square"
MAX_REPEATS = 50


def _doc(text: str, **settings):
    return field(metadata={"help": text}, **settings)


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """What to measure: every model at every size, batch and preset."""

    models: tuple[str, ...] = _doc("models to measure; the first is the baseline of the speed-ups")
    sizes: tuple[int, ...] = _doc("picture sides in px (default: the first model's own)", default=())
    batch: tuple[int, ...] = _doc("pictures per run", default=(1,))
    presets: tuple[str, ...] = _doc(f"presets to measure, of {', '.join(PRESET_NAMES)}", default=("quality",))
    steps: int | None = _doc("denoising steps (default: each model's own)", default=None)
    repeats: int = _doc("measured runs per cell", default=3)
    time_limit: float | None = _doc("time limit in s; cells that would end later are skipped and listed", default=None)

    def __post_init__(self) -> None:
        for name in ("models", "batch", "presets"):
            if not getattr(self, name):
                raise UserError(f"a benchmark needs at least one of its {name}")
        for name in ("models", "sizes", "batch", "presets"):
            values = getattr(self, name)
            if twice := next((v for v in values if values.count(v) > 1), None):
                raise UserError(f"{twice} is listed twice in the {name}; name it once")
        if unknown := next((p for p in self.presets if p not in PRESET_NAMES), None):
            raise UserError(f"unknown preset {unknown!r}; choose from {', '.join(PRESET_NAMES)}")
        if not 1 <= self.repeats <= MAX_REPEATS:
            raise UserError(f"repeats must lie between 1 and {MAX_REPEATS}, not {self.repeats}; 3 is usual")
        if self.time_limit is not None and self.time_limit <= 0:
            raise UserError(f"the time limit must be above 0 seconds, not {self.time_limit:g}")
        for size in self.sizes or (None,):
            for images in self.batch:
                self.request(self.models[0], size, images)

    def request(self, model: str, size: int | None, images: int, preset: str = "quality") -> GenerationRequest:
        """One cell's run; without a size, at the model's own."""
        return GenerationRequest(
            model=model, prompt=PROMPT, steps=self.steps, width=size, height=size, images=images, preset=preset
        )

    def groups(self, native: int) -> Iterator[tuple[int, int]]:
        """(size, batch) of the cells that take turns, cheapest first."""
        for size in sorted(self.sizes or (native,)):
            for images in sorted(self.batch):
                yield size, images
