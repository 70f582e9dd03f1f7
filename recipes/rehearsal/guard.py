"""A device guard for CUDA where torch was built without: without one, its engine takes no tensor that says cuda:0.

It does nothing, for this process alone. A build of torch for CUDA has its own.
"""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch

from koala.files.outputs import new_file, user_cache
from koala.hardware.cuda import Cards

SOURCE = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace {
c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> cuda;
c10::impl::DeviceGuardImplRegistrar cuda_registrar(c10::DeviceType::CUDA, &cuda);
#ifndef __APPLE__
c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::MPS> mps;
c10::impl::DeviceGuardImplRegistrar mps_registrar(c10::DeviceType::MPS, &mps);
#endif
}
"""
INSTALL_COMPILER = "sudo apt-get install g++"
_loaded: list[Path] = []


class NoCompiler(RuntimeError):
    """Nothing here compiles C++; the message says what to install."""


def compiler() -> str | None:
    """The C++ compiler: $CXX, else the system's."""
    return next(
        (found for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (found := shutil.which(name))),
        None,
    )


def install(cache: Path | None = None) -> None:
    """Have this process take tensors on cuda:0. Built once for each version of torch, in three seconds, into `cache`.

    NoCompiler where nothing builds it.
    """
    if _loaded or Cards().build():
        return
    library = (cache or user_cache() / "rehearsal") / f"guard-{_version()}.so"
    if not library.is_file():
        build(library)
    torch.ops.load_library(library)
    _loaded.append(library)


def _version() -> str:
    return hashlib.sha256(f"{torch.__version__}{SOURCE}".encode()).hexdigest()[:16]


def build(library: Path) -> None:
    """Compile it; NoCompiler with what to install, or with the compiler's words."""
    if (found := compiler()) is None:
        raise NoCompiler(f"a rehearsal needs a C++ compiler: {INSTALL_COMPILER}")
    library.parent.mkdir(parents=True, exist_ok=True)
    home = Path(torch.__file__).parent
    with new_file(library) as partial:
        options = ["-std=c++20", "-shared", "-fPIC", f"-I{home / 'include'}", f"-L{home / 'lib'}", "-x", "c++", "-"]
        done = subprocess.run(
            [found, *options, "-x", "none", "-lc10", "-o", partial], input=SOURCE, text=True, capture_output=True
        )
        if done.returncode:
            raise NoCompiler(f"{found} cannot build against torch {torch.__version__}: {done.stderr[-500:]}")
