"""Small real distillations on the embedded teacher: 128 px, two pictures a step, a cache that the session shares."""

from pathlib import Path

import pytest

from koala.distill.config import DistillConfig

SMALL = dict(
    num_pictures=24,
    resolution=128,
    batch_size=2,
    num_steps=2,
    learning_rate=1e-4,
    precision="fp32",
    teacher_precision="fp32",
    min_snr_gamma=5.0,
    ema_decay=0.99,
    validation_pictures=4,
    checkpoint_every=100,
    validate_every=0,
    log_every=1,
    threads=1,
)


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("distill-cache")


@pytest.fixture
def small(small_cache):
    """A config of a run of a few seconds, with settings of the test's own."""

    def make(**settings) -> DistillConfig:
        return DistillConfig(**SMALL | {"cache": str(small_cache)} | settings)

    return make
