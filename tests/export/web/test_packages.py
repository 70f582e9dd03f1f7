"""The npm package of the runtime: fetched once, held against its published hash, refused with the way to bring it."""

import base64
import functools
import hashlib
import http.server
import io
import os
import stat
import tarfile
import threading
from pathlib import Path

import pytest

from export.web.packages import REGISTRY, RUNTIME, Package, fetched, member, registry
from koala.request import RequestError
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
def kept(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own, and a registry where nobody listens."""
    monkeypatch.setenv("KOALA_PACKAGES", str(tmp_path / "kept"))
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    return tmp_path / "kept"


def test_a_package_is_fetched_once_from_the_registry_that_npm_is_told(kept, tmp_path, monkeypatch):
    place = tmp_path / "some-package" / "-"
    place.mkdir(parents=True)
    (place / "some-package-1.2.3.tgz").write_bytes(ARCHIVE)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_port}")
        found = fetched(package())
        server.shutdown()
    assert found == kept / "some-package-1.2.3.tgz" and member(found, "dist/a.txt") == b"hello"
    assert fetched(package()) == found  # nobody serves it any more


def test_without_a_network_the_remedy_works(kept, tmp_path):
    with pytest.raises(RequestError, match="could not be fetched.*npm pack some-package@1.2.3.*--runtime some-package"):
        fetched(package())
    assert not kept.exists() or not list(kept.iterdir())
    brought = tmp_path / "some-package-1.2.3.tgz"
    brought.write_bytes(ARCHIVE)
    assert fetched(package(), brought) == brought


def test_another_file_than_the_published_one_is_refused(kept, tmp_path):
    other = tmp_path / "other.tgz"
    other.write_bytes(archive(b"tampered"))
    with pytest.raises(RequestError, match="is not some-package 1.2.3 as it was published"):
        fetched(package(), other)
    kept.mkdir()
    (kept / "some-package-1.2.3.tgz").write_bytes(ARCHIVE[:-1])
    with pytest.raises(RequestError, match="Delete it and get it again"):
        fetched(package())


@pytest.mark.parametrize("name", ["absent.tgz", "."])
def test_a_file_that_cannot_be_read_is_named(kept, tmp_path, name):
    with pytest.raises(RequestError, match="cannot be read.*npm pack some-package@1.2.3 writes"):
        fetched(package(), tmp_path / name)


def test_the_registry_is_npms_own_setting_then_its_default(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.upper() == "NPM_CONFIG_REGISTRY":
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert registry() == REGISTRY
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho http://mirror.example/npm\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    assert registry() == "http://mirror.example/npm/"
    monkeypatch.setenv("npm_config_registry", "http://other.example/")
    assert registry() == "http://other.example/"


def test_a_package_without_a_file_says_so(tmp_path):
    file = tmp_path / "a.tgz"
    file.write_bytes(ARCHIVE)
    with pytest.raises(RequestError, match="holds no dist/b.txt"):
        member(file, "dist/b.txt")


def test_continuous_integration_fetches_the_packages_that_the_tests_use():
    assert NPM.read_text().splitlines() == [f"{p.name} {p.version}" for p in (RUNTIME, AXE)]
    assert (
        'fetch_packages "$work/koala/tests/npm.txt" "$KOALA_PACKAGES"' in (NPM.parents[1] / ".ci" / "run").read_text()
    )
