"""The bundle of the Space, built once by its own command."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def deploy() -> Callable[..., subprocess.CompletedProcess]:
    """Run spaces/deploy.py from another folder."""

    def run(*arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "spaces" / "deploy.py"), *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True)

    return run


@pytest.fixture(scope="session")
def bundle(deploy: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("space") / "bundle"
    done = deploy("--out", out)
    assert done.returncode == 0, done.stderr
    return out
