"""Small real distillations on the embedded teacher: 128 px, two pictures a step, a cache that the session shares."""

import shutil
from pathlib import Path

import pytest

from koala.distill.config import DistillConfig
from koala.distill.run.folder import RunFolder

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
    validation_pictures=2,
    checkpoint_every=100,
    validate_every=0,
    log_every=1,
    threads=1,
)


@pytest.fixture(scope="session")
def small_cache(once) -> Path:
    return once("distill-cache", Path.mkdir)


@pytest.fixture(scope="session")
def small(small_cache):
    """A config of a run of a few seconds, with settings of the test's own."""

    def make(**settings) -> DistillConfig:
        return DistillConfig(**SMALL | {"cache": str(small_cache)} | settings)

    return make


@pytest.fixture(scope="session")
def trained(once, small) -> RunFolder:
    """A run of one step that is done; a test that changes it takes a `copy`."""
    from koala.distill.trainer import train

    config = small(num_steps=1, validation_pictures=4)  # two passes of two
    return RunFolder(path=once("trained", lambda folder: train(RunFolder(path=folder), config)))


@pytest.fixture
def copy(trained, tmp_path) -> RunFolder:
    """The run of `trained` for one test alone."""
    return RunFolder(path=shutil.copytree(trained.path, tmp_path / "copy"))
