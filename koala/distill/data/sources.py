"""The config's `data` -> a source of pictures and captions."""

from koala.distill.config import DistillConfig
from koala.distill.data.samples import Source
from koala.distill.data.shapes import shapes_source
from koala.request import RequestError


def source_for(config: DistillConfig, resolution: int) -> Source:
    """Where the pictures come from; RequestError where there are none, or their captions are missing."""
    if config.data == "shapes":
        return shapes_source(config, resolution)
    raise RequestError(f"there is no data at {config.data!r}; give shapes")
