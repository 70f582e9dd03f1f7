"""ZeroGPU, rehearsed: every model is settled on the card, then a fork of the process draws with them.

    python -m recipes.rehearsal.zerogpu     # one JSON object

A process of its own, as the Space is one: a fork of a process that has computed may wait for threads it does not have.
"""

import json
import multiprocessing
import os
from collections.abc import Sequence

from koala.console import no_bars
from koala.hardware.cuda import DescribedCards, in_place
from koala.hardware.memory_plan import GB
from koala.request import GenerationRequest
from koala.sampling.compare import compare
from recipes.rehearsal.card import Rehearsal, RehearsedLibrary, rehearsed
from recipes.rehearsal.cases import STEPS, card

NAMES = ("sdxl-base", "koala-700m")
LENT = 48  # GB, of the card that ZeroGPU lends
QUESTIONS = {name for name in vars(DescribedCards) if not name.startswith("_")}
PATIENCE = 300  # s


class Asked(DescribedCards):
    """Described cards that note what they are asked, and by which process."""

    def __init__(self, *cards, **counts):
        super().__init__(*cards, **counts)
        self.heard: list[tuple[int, str]] = []

    def __getattribute__(self, name: str):
        if name in QUESTIONS:
            self.heard.append((os.getpid(), name))
        return super().__getattribute__(name)

    def by(self, process: int) -> list[str]:
        """What one process asked."""
        return sorted({name for pid, name in self.heard if pid == process})


def run(names: Sequence[str] = NAMES) -> dict:
    """What the card was asked before the fork and in it, the moves of both, and the sizes of the pictures in px."""
    with rehearsed(card(LENT)) as rehearsal:
        storages = rehearsal.storages
        cards = Asked([card(LENT)], peak=lambda: storages.peak, reset_peak=storages.reset)
        with in_place(cards):
            library = rehearsal.library(memory=LENT * GB, dtype="float16")  # as spaces/app.py makes it
            library.settle(names)
            report = {"before": cards.by(os.getpid()), "settled": list(rehearsal.moves)}
            fork = multiprocessing.get_context("fork")
            results = fork.Queue()
            worker = fork.Process(target=_draw, args=(results, names, library, rehearsal, cards), daemon=True)
            worker.start()
            report |= results.get(timeout=PATIENCE)
            worker.join(PATIENCE)
    return report


def _draw(
    results: multiprocessing.Queue, names: Sequence[str], library: RehearsedLibrary, rehearsal: Rehearsal, cards: Asked
) -> None:
    settled = len(rehearsal.moves)
    results = compare([GenerationRequest(model=name, prompt="a koala", steps=STEPS) for name in names], library)
    sizes = [result.images[0].size for result in results]
    results.put({"sizes": sizes, "moves": rehearsal.moves[settled:], "in_the_fork": cards.by(os.getpid())})


if __name__ == "__main__":
    no_bars()
    print(json.dumps(run()))
