"""Colours from principal components: the right subspace, one basis, and nothing that flips."""

import pytest
import torch

from koala.attention.maps import attend
from koala.attention.pca import colours, fit, paper_mode


@pytest.fixture
def frames():
    """Five steps of 60 patches with three strong directions of falling strength, in 20 dimensions, and noise."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(20, 3, generator=generator)).Q.mT
    strength = torch.tensor([5.0, 2.0, 1.0])
    return [
        torch.randn(60, 3, generator=generator) * strength @ directions + 0.1 * torch.randn(60, 20, generator=generator)
        for _ in range(5)
    ]


def test_the_basis_is_that_of_the_singular_values(frames):
    basis = fit(frames)
    rows = torch.cat(frames).double()
    rows = rows - rows.mean(0)
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    same = (basis.components @ vectors[:3].mT).abs().diagonal()
    print(f"cosine to the SVD's directions: {same.tolist()}")
    assert torch.allclose(same, torch.ones(3, dtype=torch.float64))
    assert basis.explained == pytest.approx((values[:3] ** 2 / values.square().sum()).tolist())
    assert basis.explained[0] > basis.explained[1] > basis.explained[2] and sum(basis.explained) > 0.95


def test_frames_in_another_order_keep_their_colours(frames):
    straight, basis = colours(frames)
    order = [3, 0, 4, 1, 2]
    shuffled, shuffled_basis = colours([frames[k] for k in order])
    assert basis.explained == pytest.approx(shuffled_basis.explained)
    gaps = [(straight[k].int() - shuffled[i].int()).abs().max().item() for i, k in enumerate(order)]
    print(f"largest difference: {max(gaps)} of 255")
    assert max(gaps) <= 1


def test_mirrored_data_keeps_the_sign_rule(frames):
    """The largest loading of every component is positive, whatever sign eigh returns."""
    for factor in (1, -1):
        components = fit([factor * f for f in frames]).components
        assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()


def test_colours_span_all_frames_together_not_each_alone(frames):
    faint = [frames[0], 0.1 * frames[1]]
    bright, dim = colours(faint)[0]
    assert int(bright.max()) - int(bright.min()) == 255
    assert (dim.float().std(0) < bright.float().std(0) / 3).all(), "a step that says little is grey"


def test_a_given_basis_is_used_as_it_is(frames):
    basis = fit(frames[:2])
    assert colours(frames[2:], basis)[1] is basis


def test_frames_that_do_not_vary_have_no_variance_to_explain():
    painted, basis = colours([torch.full((6, 4), 0.25)] * 2)
    assert basis.explained == (0.0, 0.0, 0.0) and all(torch.isfinite(basis.components).flatten())
    assert painted[0].shape == (6, 3) and len(painted[0].unique()) == 1


def layer(seed, drift=0.0):
    generator = torch.Generator().manual_seed(seed)
    q, k = 2 * torch.randn(2, 3, 40, 8, generator=generator)
    return q + drift, k


def test_paper_mode_is_the_pca_of_patches_by_heads_times_keys():
    q, k = layer(0)
    (painted,), (explained,) = paper_mode([(q, k)])
    rows = attend(q, k).transpose(0, 1).flatten(1)  # (N, heads * M)
    rows = rows - rows.mean(0)
    u, values, _ = torch.linalg.svd(rows.double(), full_matrices=False)
    expected = (u * values)[:, :3]
    assert explained == pytest.approx((values[:3] ** 2 / values.square().sum()).tolist(), rel=1e-3)
    shown = painted.double() / 255
    for c in range(3):
        wanted = (expected[:, c] - expected[:, c].min()) / (expected[:, c].max() - expected[:, c].min())
        gap = min((shown[:, c] - wanted).abs().max(), (shown[:, c] - (1 - wanted)).abs().max())
        print(f"component {c}: difference {gap:.1e}")
        assert gap < 0.02


def test_in_paper_mode_a_step_is_turned_onto_the_one_before():
    """Two steps that hardly differ must not swap or mirror their colours."""
    q, k = layer(0)
    painted, _ = paper_mode([(q, k), (q + 0.01, k - 0.01), (q, k)])
    assert (painted[0].int() - painted[1].int()).abs().float().mean() < 8
    assert (painted[0].int() - painted[2].int()).abs().float().mean() < 8


def test_paper_mode_without_the_diagonal_is_that_of_rows_which_do_not_see_themselves():
    q, k = layer(0)
    rows = attend(q, k) * (1 - torch.eye(40))
    rows = (rows / rows.sum(-1, keepdim=True)).transpose(0, 1).flatten(1)
    values = torch.linalg.svdvals((rows - rows.mean(0)).double())
    _, (explained,) = paper_mode([(q, k)], diagonal=False)
    assert explained == pytest.approx((values[:3] ** 2 / values.square().sum()).tolist(), rel=1e-3)
    assert explained != pytest.approx(paper_mode([(q, k)])[1][0], rel=1e-3)
