"""The npm package of the runtime: fetched once, checked against its published hash, refused with how to get it."""

import base64
import hashlib
import io
import stat
import tarfile
from pathlib import Path

import pytest

from koala.errors import UserError
from koala.export.web.packages import RUNTIME, Package, fetched, member
from tests.export.web.conftest import AXE

NPM = Path(__file__).parents[2] / "npm.txt"


def archive(content: bytes = b"hello") -> bytes:
    """A package as npm packs it, with one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        info = tarfile.TarInfo("package/dist/a.txt")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


ARCHIVE = archive()


def package(content: bytes = ARCHIVE) -> Package:
    hashed = base64.b64encode(hashlib.sha512(content).digest()).decode()
    return Package(name="some-package", version="1.2.3", integrity=f"sha512-{hashed}")


@pytest.fixture
def cache_folder(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own, and no npm."""
    monkeypatch.setenv("KOALA_PACKAGES", str(tmp_path / "kept"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "kept"


def install_npm(tmp_path: Path, script: str) -> None:
    """An npm that does this; $2 is the package and $5 the folder that it is packed into."""
    npm = tmp_path / "bin" / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)


def test_a_package_is_brought_by_npm_once(cache_folder, tmp_path):
    (tmp_path / "published.tgz").write_bytes(ARCHIVE)
    copy = f"/bin/cp {tmp_path / 'published.tgz'} $5/some-package-1.2.3.tgz"
    install_npm(tmp_path, f'[ "$1 $2" = "pack some-package@1.2.3" ] && {copy}')
    result = fetched(package())
    assert result == cache_folder / "some-package-1.2.3.tgz" and member(result, "dist/a.txt") == b"hello"
    install_npm(tmp_path, "exit 1")
    assert fetched(package()) == result  # it is kept


def test_another_file_of_npms_is_refused_and_not_kept(cache_folder, tmp_path):
    install_npm(tmp_path, "echo tampered > $5/some-package-1.2.3.tgz")
    with pytest.raises(UserError, match="is not some-package 1.2.3 as it was published"):
        fetched(package())
    assert not cache_folder.exists()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (None, "is downloaded by npm, which this machine lacks; install Node.js"),
        ("echo no network >&2; exit 1", "npm could not download some-package@1.2.3 .no network.. Connect this machine"),
    ],
)
def test_without_npm_or_a_network_the_remedy_works(cache_folder, tmp_path, script, says):
    if script:
        install_npm(tmp_path, script)
    with pytest.raises(UserError, match=f"{says}.*npm pack some-package@1.2.3.*--runtime some-package"):
        fetched(package())
    assert not cache_folder.exists() or not list(cache_folder.iterdir())
    brought = tmp_path / "some-package-1.2.3.tgz"
    brought.write_bytes(ARCHIVE)
    assert fetched(package(), brought) == brought


def test_another_file_than_the_published_one_is_refused(cache_folder, tmp_path):
    tampered = tmp_path / "other.tgz"
    tampered.write_bytes(archive(b"tampered"))
    with pytest.raises(UserError, match="is not some-package 1.2.3 as it was published"):
        fetched(package(), tampered)
    cache_folder.mkdir()
    (cache_folder / "some-package-1.2.3.tgz").write_bytes(ARCHIVE[:-1])
    with pytest.raises(UserError, match="Delete it and get it again"):
        fetched(package())


@pytest.mark.parametrize("name", ["absent.tgz", "."])
def test_a_file_that_cannot_be_read_is_named(cache_folder, tmp_path, name):
    with pytest.raises(UserError, match="cannot be read.*npm pack some-package@1.2.3 writes"):
        fetched(package(), tmp_path / name)


def test_a_package_without_a_file_says_so(tmp_path):
    file = tmp_path / "a.tgz"
    file.write_bytes(ARCHIVE)
    with pytest.raises(UserError, match="holds no dist/b.txt"):
        member(file, "dist/b.txt")


def test_continuous_integration_fetches_the_packages_that_the_tests_use():
    assert NPM.read_text().splitlines() == [f"{p.name} {p.version}" for p in (RUNTIME, AXE)]
    assert '< "$work/koala/tests/npm.txt"' in (NPM.parents[1] / ".ci" / "run").read_text()
