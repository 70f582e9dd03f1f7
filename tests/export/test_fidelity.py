"""Fidelity of two pictures, against its formulas worked out by hand."""

import math

import pytest
from PIL import Image

from koala.export.gates.pictures import IDENTICAL, psnr, ssim


def plain(*colour: int) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", (32, 32), colour)


def test_psnr_counts_every_channel():
    """Blue is off by 10 of 255: the mean squared error is 100 / 3."""
    expected = 10 * math.log10(255**2 / (100 / 3))
    assert psnr(plain(50, 60, 70), plain(50, 60, 80)) == pytest.approx(expected)
    assert psnr(plain(50, 60, 70), plain(50, 60, 70)) == IDENTICAL


def test_ssim_of_plain_pictures_is_that_of_their_means():
    """No variance is left: (2 m n + C1) / (m^2 + n^2 + C1), C1 = (0.01 x 255)^2 (Wang et al. 2004)."""
    m, n, c = 60, 90, 2.55**2
    expected = (2 * m * n + c) / (m * m + n * n + c)
    assert ssim(plain(m, m, m), plain(n, n, n)) == pytest.approx(expected)
    assert ssim(plain(m, m, m), plain(m, m, m)) == pytest.approx(1)
