"""tap: the one forward-hook context manager; always removed, also on an exception."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


@contextmanager
def tap(modules: Mapping[str, torch.nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """Record each module's output under its name; a block's tuple counts as its first element.

    The first call after `clear()` wins: gradient checkpointing runs a forward again during backward, and that
    second output must not replace the one that the loss was computed from.
    """
    store: dict[str, torch.Tensor] = {}

    def recorder(name: str):
        def hook(module, inputs, output):
            store.setdefault(name, output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [module.register_forward_hook(recorder(name)) for name, module in modules.items()]
    try:
        yield store
    finally:
        for handle in handles:
            handle.remove()
