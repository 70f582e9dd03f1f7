"""tap records the first output of a step and always lets go."""

import pytest
import torch

from koala.models.hooks import tap


def test_first_call_wins_until_cleared():
    layer = torch.nn.Linear(2, 2)
    with tap({"layer": layer}) as seen:
        first = layer(torch.ones(1, 2))
        layer(torch.zeros(1, 2))
        assert torch.equal(seen["layer"], first)
        seen.clear()
        second = layer(torch.zeros(1, 2))
        assert torch.equal(seen["layer"], second)


def test_hooks_are_gone_after_an_exception():
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="boom"), tap({"layer": layer}) as seen:
        raise RuntimeError("boom")
    layer(torch.ones(1, 2))
    assert seen == {}
    assert not layer._forward_hooks
