"""The page as a static Space: its README, its headers, its files, and how it is pushed."""

import re
import subprocess
import sys
from pathlib import Path

from tests.export.web.conftest import Server
from tests.spaces.test_push import hub, push  # noqa: F401

ROOT = Path(__file__).parents[3]


def deploy(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "spaces" / "deploy.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_bundle_is_the_page_with_the_readme_of_a_static_space(pages, tmp_path):
    done = deploy("--static", pages, "--out", tmp_path / "space")
    assert done.returncode == 0, done.stderr
    files = {f.relative_to(tmp_path / "space").as_posix() for f in (tmp_path / "space").rglob("*") if f.is_file()}
    own = {f.relative_to(pages).as_posix() for f in pages.rglob("*") if f.is_file()}
    assert files == own | {"README.md", "NOTICE.md", ".koala-space.json"}
    block = re.match(r"---\n(.*?)\n---\n", (tmp_path / "space" / "README.md").read_text(), re.S)[1]
    result = dict(re.findall(r"^([\w-]+): (.+)$", block, re.M))
    assert (result["sdk"], result["app_file"]) == ("static", "index.html") and len(result["short_description"]) <= 60
    headers = dict(re.findall(r"^  (cross-[\w-]+): (.+)$", block, re.M))
    asked = {name.lower(): value for name, value in Server.HEADERS.items()}
    assert headers == asked | {"cross-origin-resource-policy": "cross-origin"}  # the hub's frame may show it
    assert deploy("--static", pages, "--out", tmp_path / "space").returncode == 0  # its own bundle is replaced


def test_it_is_pushed_as_a_static_space(pages, hub, tmp_path):  # noqa: F811
    handler, endpoint = hub
    done = push(endpoint, tmp_path / "space", "--static", str(pages))
    assert done.returncode == 0, done.stderr
    (created,) = handler.asked["create"]
    assert created["sdk"] == "static" and "hardware" not in created


def test_what_does_not_go_together_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        (["--static", "--zerogpu"], "--zerogpu is for a Space with a server"),
        (["--static", "--dry-run"], "--dry-run is for a Space with a server"),
        (
            ["--static", tmp_path / "empty"],
            "is not a page of this project; make one with python -m koala export --target web",
        ),
    ):
        done = deploy("--out", tmp_path / "out", *arguments)
        assert done.returncode == 2 and words in done.stderr and not (tmp_path / "out").exists()
