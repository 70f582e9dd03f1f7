"""The bundle of the Space, built once by its own command."""

import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def deploy() -> Callable[..., subprocess.CompletedProcess]:
    """Run spaces/deploy.py from another folder; `largest` is the size in bytes that a file may have."""

    def run(*arguments: object, largest: int | None = None) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "spaces" / "deploy.py"), *map(str, arguments)]
        limit = largest and partial(resource.setrlimit, resource.RLIMIT_FSIZE, (largest, largest))
        return subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True, preexec_fn=limit)

    return run


@pytest.fixture(scope="session")
def bundle(deploy: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("space") / "bundle"
    done = deploy("--out", out)
    assert done.returncode == 0, done.stderr
    return out
