"""tap and listen: the forward-hook context managers; always removed, also on an exception."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch


@contextmanager
def listen(
    modules: Mapping[str, torch.nn.Module], on_output: Callable[[str, tuple, torch.Tensor], None]
) -> Iterator[None]:
    """Call `heard(name, inputs, output)` after every forward; a block's tuple counts as its first element."""

    def hook_of(name: str):
        def hook(module, inputs, output) -> None:  # what a hook returns would take the output's place
            on_output(name, inputs, output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def tap(modules: Mapping[str, torch.nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """Record each module's output under its name; a block's tuple counts as its first element.

    The first call after `clear()` wins: gradient checkpointing runs a forward again during backward, and that
    second output must not replace the one that the loss was computed from.
    """
    store: dict[str, torch.Tensor] = {}
    with listen(modules, lambda name, inputs, output: store.setdefault(name, output)):
        yield store
