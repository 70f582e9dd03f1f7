"""A package of the npm registry at a pinned version, held against its hash and kept for the next time."""

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from koala.outputs import new_file, user_cache
from koala.request import RequestError

REGISTRY = "https://registry.npmjs.org/"  # npm's own default
_VARIABLE = "NPM_CONFIG_REGISTRY"
_LARGEST = 200_000_000  # bytes of a package


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package as `npm pack NAME@VERSION` writes it; `integrity` is the registry's own, of the whole file."""

    name: str
    version: str
    integrity: str  # sha512-BASE64

    @property
    def file(self) -> str:
        """What npm calls the package's file."""
        return f"{self.name}-{self.version}.tgz"

    def check(self, content: bytes, source: str) -> None:
        """RequestError where these bytes are another file."""
        kind, _, expected = self.integrity.partition("-")
        if base64.b64encode(hashlib.new(kind, content).digest()).decode() != expected:
            raise RequestError(
                f"{source} is not {self.name} {self.version} as it was published: its hash is another one. Delete it "
                f"and get it again: npm pack {self.name}@{self.version}"
            )


RUNTIME = Package(
    name="onnxruntime-web",
    version="1.30.0",
    integrity="sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
)


def cache() -> Path:
    """Where packages are kept: $KOALA_PACKAGES, else the user's cache folder."""
    own = os.environ.get("KOALA_PACKAGES")
    return Path(own) if own else user_cache() / "npm"


def registry() -> str:
    """The registry that npm is configured for on this machine, or npm's default."""
    if own := next((value for name, value in os.environ.items() if name.upper() == _VARIABLE), None):  # npm takes both
        return own.rstrip("/") + "/"
    if npm := shutil.which("npm"):
        done = subprocess.run([npm, "config", "get", "registry"], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip().startswith("http"):
            return done.stdout.strip().rstrip("/") + "/"
    return REGISTRY


def fetched(package: Package, file: Path | None = None) -> Path:
    """The package's file, checked: `file` if one is given, else the one that is kept, else from the registry.

    RequestError where there is none, or another one, with the way to bring it.
    """
    kept = file or cache() / package.file
    if file is not None or kept.is_file():
        package.check(_read(kept, package), str(kept))
        return kept
    content = _download(package)
    with new_file(kept) as partial:
        partial.write_bytes(content)
    return kept


def _read(file: Path, package: Package) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise RequestError(
            f"{file} cannot be read ({error.strerror or error}); name the file that "
            f"npm pack {package.name}@{package.version} writes"
        ) from error


def _download(package: Package) -> bytes:
    url = f"{registry()}{package.name}/-/{package.file}"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content = answer.read(_LARGEST)
    except (OSError, ValueError) as error:  # urllib's own are OSErrors; ValueError: an address that is none
        raise RequestError(
            f"{package.name} {package.version} could not be fetched from {url} ({getattr(error, 'reason', error)}). "
            f"Connect this machine to the network and try again; or, on one that is connected, run "
            f"npm pack {package.name}@{package.version}, copy {package.file} here, and add --runtime {package.file}"
        ) from error
    package.check(content, url)
    return content


def member(file: Path, name: str) -> bytes:
    """One file of a package, by its path in it; RequestError where it has none of that name."""
    with tarfile.open(file) as archive:
        try:
            return archive.extractfile(f"package/{name}").read()
        except (KeyError, AttributeError) as error:  # AttributeError: it is a folder
            raise RequestError(f"{file} holds no {name}") from error
