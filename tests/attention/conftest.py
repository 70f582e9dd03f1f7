"""Records of random queries and keys, for what is made of records."""

import pytest
import torch

from koala.attention.plan import plan
from koala.attention.recorded import AttentionRecord


def random_record(spec, timesteps, seed=0, **settings):
    """A record of random q and k, on 64x64 px."""
    generator = torch.Generator().manual_seed(seed)
    planned = plan(spec, 64, 64, len(timesteps), **({"cross": False} | settings))

    def pair(x):
        return tuple(torch.randn(1, x.heads, n, x.dim, generator=generator) for n in (x.queries, x.keys))

    return AttentionRecord(
        model=spec.name,
        revision="local",
        spec=spec,
        prompt="",
        seed=0,
        guidance=1.0,
        width=64,
        height=64,
        images=1,
        half="conditional",
        timesteps=timesteps,
        tokens=(),
        overhead_ms=0.0,
        layers=planned.layers,
        frames=tuple({x.path: pair(x) for x in planned.layers} for _ in timesteps),
    )


@pytest.fixture
def record_of():
    """random_record: a spec and timesteps -> AttentionRecord."""
    return random_record
