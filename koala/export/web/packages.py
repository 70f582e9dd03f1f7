"""A package of the npm registry at a pinned version, checked against its hash and cached."""

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from koala.errors import UserError
from koala.files.outputs import new_file, user_cache

_LONGEST = 300  # seconds that npm may take


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package as `npm pack NAME@VERSION` writes it; `integrity` is the registry's hash of the file."""

    name: str
    version: str
    integrity: str  # sha512-BASE64

    @property
    def file(self) -> str:
        """What npm calls the package's file."""
        return f"{self.name}-{self.version}.tgz"

    def check(self, content: bytes, source: str) -> None:
        """UserError if these bytes are a different file."""
        kind, _, expected = self.integrity.partition("-")
        if base64.b64encode(hashlib.new(kind, content).digest()).decode() != expected:
            raise UserError(
                f"{source} is not {self.name} {self.version} as it was published: its hash differs. Delete it "
                f"and get it again: npm pack {self.name}@{self.version}"
            )


RUNTIME = Package(
    name="onnxruntime-web",
    version="1.30.0",
    integrity="sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
)


def cache() -> Path:
    """Where packages are cached: $KOALA_PACKAGES, else the user's cache folder."""
    own = os.environ.get("KOALA_PACKAGES")
    return Path(own) if own else user_cache() / "npm"


def fetched(package: Package, file: Path | None = None) -> Path:
    """The package's file, checked: `file` if one is given, else the cached one, else npm's.

    UserError where there is none, or another one, with how to get it.
    """
    archive = file or cache() / package.file
    if file is not None or archive.is_file():
        package.check(_read(archive, package), str(archive))
        return archive
    with tempfile.TemporaryDirectory() as folder:
        brought = _packed(package, Path(folder))
        package.check(brought.read_bytes(), f"what npm brought as {package.file}")
        with new_file(archive) as partial:
            shutil.copyfile(brought, partial)
    return archive


def _read(file: Path, package: Package) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror or error}); name the file that "
            f"npm pack {package.name}@{package.version} writes"
        ) from error


def _packed(package: Package, folder: Path) -> Path:
    """The package as `npm pack` writes it into a folder, from whatever registry npm is configured for."""
    npm = shutil.which("npm")
    wanted = f"{package.name}@{package.version}"
    elsewhere = (
        f"run npm pack {wanted} on a machine that can, copy {package.file} here, and add --runtime {package.file}"
    )
    if npm is None:
        raise UserError(
            f"{wanted} is downloaded by npm, which this machine lacks; install Node.js with npm and try again, or "
            f"{elsewhere}"
        )
    command = [npm, "pack", wanted, "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=_LONGEST)
        reason = " ".join(done.stderr.split())[-300:] or f"exit status {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    if not (folder / package.file).is_file():
        raise UserError(
            f"npm could not download {wanted} ({reason}). Connect this machine to the network and try again, or "
            f"{elsewhere}"
        )
    return folder / package.file


def members(file: Path, names: Collection[str]) -> dict[str, bytes]:
    """Files of a package, by their paths in it; UserError where it has none of that name.

    One pass for all of them: what is unpacked for one is unpacked for all, and these packages have 100 MB.
    """
    wanted = {f"package/{name}": name for name in names}
    contents = {}
    with tarfile.open(file, "r|*") as archive:
        for entry in archive:
            if entry.name in wanted and entry.isfile():
                contents[wanted[entry.name]] = archive.extractfile(entry).read()
    for name in names:
        if name not in contents:
            raise UserError(f"{file} holds no {name}")
    return contents


def member(file: Path, name: str) -> bytes:
    """One file of a package, as `members` gives it."""
    return members(file, [name])[name]
