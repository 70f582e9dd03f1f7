"""How far two pictures of the same request are apart."""

import math

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

_LEVELS = 255.0
_C1, _C2 = (0.01 * _LEVELS) ** 2, (0.03 * _LEVELS) ** 2
_SIGMA = 1.5  # of the window of 11 px
IDENTICAL = 100.0  # dB that equal pictures are said to have, so that a mean can be taken


def psnr(picture: Image.Image, reference: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB, over all channels; 100 at most."""
    error = float(np.mean((np.asarray(picture, float) - np.asarray(reference, float)) ** 2))
    return min(IDENTICAL, 10 * math.log10(_LEVELS**2 / error)) if error else IDENTICAL


def ssim(picture: Image.Image, reference: Image.Image) -> float:
    """Structural similarity of the luminance, 1 for equal pictures (Wang et al. 2004: Gaussian window, sigma 1.5)."""
    x, y = (np.asarray(p.convert("L"), float) for p in (picture, reference))

    def mean(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, _SIGMA, truncate=3.5)

    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    found = (2 * mx * my + _C1) * (2 * both + _C2) / ((mx * mx + my * my + _C1) * (vx + vy + _C2))
    return float(found.mean())
