"""What a rehearsal needs: a device guard for CUDA, built once and kept in pytest's own cache."""

import os

import pytest

from recipes.rehearsal.fakes import NoCompiler, install


@pytest.fixture(scope="session")
def guard(pytestconfig) -> None:
    """Tensors may say that they are on cuda:0; without a compiler the test is skipped, and under CI=true it fails."""
    cache = getattr(pytestconfig, "cache", None)  # none with -p no:cacheprovider
    try:
        install(cache and cache.mkdir("koala-guard"))
    except NoCompiler as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
