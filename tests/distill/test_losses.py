"""Each term of the loss against a hand computation, and gradients that reach the student alone."""

import pytest
import torch

from koala.distill.loss.pairs import Pair
from koala.distill.loss.step import by_kind, feature_losses, noise_loss, snr_weight

PAIRS = [
    Pair(kind="SA", stage="UP-1", student="x", teacher="a"),
    Pair(kind="SA", stage="UP-2", student="y", teacher="b"),
]


def test_min_snr_weight_is_one_at_high_noise_and_gamma_over_snr_at_low_noise():
    alphas = torch.tensor([0.99, 0.5, 0.01])
    timesteps = torch.tensor([0, 1, 2])
    weight = snr_weight(alphas, timesteps, gamma=5.0)
    assert weight.tolist() == pytest.approx([5.0 / 99.0, 1.0, 1.0], rel=1e-4)
    lifted = snr_weight(alphas, timesteps, gamma=5.0, high_noise=0.5)
    assert (lifted / weight).tolist() == pytest.approx([(100 / 99) ** 0.5, 2**0.5, 10.0], rel=1e-4)
    assert snr_weight(alphas, timesteps, gamma=0.0).tolist() == [1.0, 1.0, 1.0]


def test_noise_loss_is_the_weighted_mean_square():
    predicted, target = torch.zeros(2, 4, 2, 2), torch.ones(2, 4, 2, 2)
    assert noise_loss(predicted, target * 2, torch.tensor([1.0, 0.5])).item() == pytest.approx(3.0)


def test_every_pair_has_one_vote_whatever_its_scale():
    teacher = {"a": torch.full((1, 3), 100.0), "b": torch.full((1, 3), 0.1)}
    student = {"x": torch.full((1, 3), 50.0), "y": torch.full((1, 3), 0.05)}
    terms = feature_losses(student, teacher, PAIRS)
    assert [t.item() for t in terms.values()] == pytest.approx([0.25, 0.25])
    assert by_kind(terms)["SA"].item() == pytest.approx(0.25)


def test_raw_features_are_summed_as_in_bk_sdm():
    teacher = {"a": torch.full((1, 3), 2.0), "b": torch.full((1, 3), 1.0)}
    student = {"x": torch.full((1, 3), 0.0), "y": torch.full((1, 3), 0.0)}
    terms = feature_losses(student, teacher, PAIRS, "raw")
    assert by_kind(terms, "raw")["SA"].item() == pytest.approx(4.0 + 1.0)


def test_half_precision_features_are_reduced_in_fp32():
    teacher = {"a": torch.full((1, 4), 300.0, dtype=torch.float16)}  # its square overflows fp16
    student = {"x": torch.zeros(1, 4, dtype=torch.float16, requires_grad=True)}
    loss = by_kind(feature_losses(student, teacher, PAIRS[:1]))["SA"]
    assert loss.item() == pytest.approx(1.0)
    loss.backward()
    assert student["x"].grad.abs().sum() > 0
