"""CMMD against its formula, written out."""

import math

import pytest
import torch

from koala.evaluate import clip as module
from koala.evaluate.clip import cmmd


def unit(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Unit vectors (count, 12); a larger shift turns them towards the first axis."""
    values = torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))
    values[:, 0] += shift
    return torch.nn.functional.normalize(values, dim=1)


def by_hand(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """(minimum variance, unbiased), pair by pair."""

    def k(a, b) -> float:
        return math.exp(-sum((p - q) ** 2 for p, q in zip(a.tolist(), b.tolist(), strict=True)) / (2 * 10**2))

    n, m = len(x), len(y)
    across = 2 * sum(k(a, b) for a in x for b in y) / (n * m)
    whole = sum(k(a, b) for a in x for b in x) / n**2 + sum(k(a, b) for a in y for b in y) / m**2
    apart = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    apart += sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return 1000 * (whole - across), 1000 * (apart - across)


@pytest.mark.parametrize("rows", [1024, 3])
def test_it_is_the_formula(monkeypatch, rows):
    monkeypatch.setattr(module, "ROWS", rows)
    x, y = unit(7, 0), unit(5, 1, shift=1.0)
    distance, (minimum_variance, unbiased) = cmmd(x, y), by_hand(x, y)
    print("difference", abs(distance.minimum_variance - minimum_variance), abs(distance.unbiased - unbiased))
    assert distance.minimum_variance == pytest.approx(minimum_variance, abs=1e-8)
    assert distance.unbiased == pytest.approx(unbiased, abs=1e-8)


def test_a_set_is_no_distance_from_itself_and_farther_the_more_it_is_shifted():
    x = unit(60, 0)
    assert cmmd(x, x).minimum_variance == pytest.approx(0, abs=1e-9)
    distances = [cmmd(x, unit(60, 1, shift=s)).minimum_variance for s in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert distances == sorted(distances)
    assert distances[-1] > 10 * distances[0]


def test_few_pictures_of_one_kind_look_apart_to_the_papers_estimate_and_not_to_the_unbiased_one():
    pairs = [cmmd(unit(10, k), unit(10, 1000 + k)) for k in range(200)]
    paper = sum(p.minimum_variance for p in pairs) / len(pairs)
    unbiased = sum(p.unbiased for p in pairs) / len(pairs)
    assert paper > 1.5
    assert abs(unbiased) < 0.1 * paper
