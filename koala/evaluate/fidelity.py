"""How similar two pictures of the same request are."""

import math

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

_LEVELS = 255.0
_C1, _C2 = (0.01 * _LEVELS) ** 2, (0.03 * _LEVELS) ** 2
_SIGMA = 1.5  # of the window of 11 px
IDENTICAL = 100.0  # dB reported for equal pictures, so that a mean exists


def psnr(picture: Image.Image, reference: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB, over all channels; at most 100."""
    error = float(np.mean((np.asarray(picture, float) - np.asarray(reference, float)) ** 2))
    return min(IDENTICAL, 10 * math.log10(_LEVELS**2 / error)) if error else IDENTICAL


def ssim(picture: Image.Image, reference: Image.Image) -> float:
    """Structural similarity of luminance, 1 for equal pictures (Wang et al. 2004: Gaussian window, sigma 1.5)."""
    x, y = (np.asarray(p.convert("L"), float) for p in (picture, reference))

    def mean(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, _SIGMA, truncate=3.5)

    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    similarity = (2 * mx * my + _C1) * (2 * both + _C2) / ((mx * mx + my * my + _C1) * (vx + vy + _C2))
    return float(similarity.mean())
