"""torch.compile for the fast preset, without touching the pixels of the others."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def compiled(unet: torch.nn.Module, wanted: bool) -> Iterator[None]:
    """Run the U-Net with its transformer blocks compiled, or exactly as it is; the first wanted run compiles them.

    Only the blocks: they repeat, so that one compilation of seconds serves all of them.
    """
    if wanted and not _has_compiled_blocks(unet):
        unet.compile_repeated_blocks(dynamic=True)  # one compilation for all sizes; what breaks it runs eagerly
    with torch.compiler.set_stance("default" if wanted else "force_eager"):
        yield


def _has_compiled_blocks(unet: torch.nn.Module) -> bool:
    return any(m._compiled_call_impl is not None for m in unet.modules())
