"""Presets: what a run may trade for speed or memory, each with an honest label."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Preset:
    """`guided` is the interval of the steps, as shares from 0 to 1, in which guidance runs the U-Net twice; None for a
    preset that draws without guidance."""

    name: str
    label: str
    guided: tuple[float, float] | None = (0.0, 1.0)
    tiny_decoder: bool = False  # decode with the small VAE of the previews, where the model names one
    compiled: bool = False  # transformer blocks through torch.compile, on a CUDA GPU
    frugal: bool = False  # take the smallest memory plan, however much memory there is

    def guided_steps(self, steps: int) -> range:
        """Indices of the guided ones among `steps` denoising steps; at least one, unless no step is guided."""
        if self.guided is None:
            return range(0)
        first, last = (share * steps for share in self.guided)
        return range(math.floor(first), max(math.ceil(last), math.floor(first) + 1))


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(name="quality", label="every step guided, full decoder: the pixels of the stock pipeline"),
        Preset(
            name="fast",
            label="guidance in half of the steps, small decoder, compiled on a GPU: other pixels, less detail",
            guided=(0.0, 0.5),
            tiny_decoder=True,
            compiled=True,
        ),
        Preset(
            name="turbo",
            label="no guidance, small decoder, compiled on a GPU: one U-Net call per step, for models distilled for it",
            guided=None,
            tiny_decoder=True,
            compiled=True,
        ),
        Preset(
            name="low-memory",
            label="only the active part is in memory, decoded in tiles: slower, and faint seams are possible",
            frugal=True,
        ),
    )
}
