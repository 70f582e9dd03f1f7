"""sRGB -> CIELAB (D65) and colour differences: dE76 is Euclidean, dE2000 is perceptual."""

import numpy as np

_WHITE = np.array([0.95047, 1.0, 1.08883], np.float32)  # D65, 2 degree observer
_TO_XYZ = np.array(  # linear sRGB -> XYZ (IEC 61966-2-1)
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    np.float32,
)
_TO_RELATIVE_XYZ = (_TO_XYZ / _WHITE[:, None]).T
_KNEE = 216 / 24389  # below it the CIE's cube root is a line


def linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB in 0..1 -> linear light in 0..1, any shape (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((np.maximum(srgb, 0) + 0.055) / 1.055) ** 2.4)


_LINEAR_OF_BYTE = linear(np.arange(256) / 255).astype(np.float32)  # a picture has only 256 levels


def lab(srgb: np.ndarray) -> np.ndarray:
    """sRGB (..., 3), uint8 or float in 0..1 -> CIELAB (..., 3): L in 0..100, a, b (CIE 15)."""
    light = _LINEAR_OF_BYTE[srgb] if srgb.dtype == np.uint8 else linear(srgb)
    t = light @ _TO_RELATIVE_XYZ  # (..., 3): X, Y, Z relative to white
    f = np.where(t > _KNEE, np.cbrt(t), t * (24389 / 27 / 116) + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def delta_e_2000(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """CIEDE2000 difference of Lab colours (..., 3), broadcast (Sharma, Wu, Dalal 2005, eqs. 2 to 22)."""
    l1, a1, b1 = np.moveaxis(np.asarray(first, np.float64), -1, 0)
    l2, a2, b2 = np.moveaxis(np.asarray(second, np.float64), -1, 0)
    chroma7 = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    stretch = 1 + 0.5 * (1 - np.sqrt(chroma7 / (chroma7 + 25.0**7)))  # neutral colours: a weighs more
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1)) % 360, np.degrees(np.arctan2(b2, a2)) % 360
    grey = c1 * c2 == 0  # grey has no hue: no hue difference, and the mean hue is the other's

    turn = np.where(grey, 0, (h2 - h1 + 180) % 360 - 180)  # in -180..180
    d_light, d_chroma = l2 - l1, c2 - c1
    d_hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))

    light, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    apart = np.abs(h1 - h2) > 180
    hue = np.where(grey, h1 + h2, (h1 + h2) / 2 + np.where(apart, np.where(h1 + h2 < 360, 180, -180), 0))
    t = (
        1
        - 0.17 * np.cos(np.radians(hue - 30))
        + 0.24 * np.cos(np.radians(2 * hue))
        + 0.32 * np.cos(np.radians(3 * hue + 6))
        - 0.20 * np.cos(np.radians(4 * hue - 63))
    )
    s_light = 1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2)
    s_chroma, s_hue = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    chroma7 = chroma**7
    rotation = -2 * np.sqrt(chroma7 / (chroma7 + 25.0**7))
    rotation = rotation * np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    lightness, c, h = d_light / s_light, d_chroma / s_chroma, d_hue / s_hue
    return np.sqrt(lightness**2 + c * c + h * h + rotation * c * h)
