"""What stands in for a CUDA card: storages that count their bytes, a device guard, and fused attention."""

import hashlib
import os
import shutil
import subprocess
import weakref
from collections import Counter
from functools import cache
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from koala.files.outputs import new_file, user_cache
from koala.hardware.cuda import Cards

# What a GPU computes with: their precision is the run's.
HEAVY = ("convolution", "addmm", "mm", "bmm", "baddbmm", "_softmax")
HOST = torch.device("cpu")
FUSED = ("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention")
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


@cache
def _is_composite(operator: torch._ops.OpOverload) -> bool:
    """Whether it is made of others in C++, as on a card; torch's decompositions in Python make larger tensors."""
    return operator.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), _COMPOSITE)


class Storages(TorchDispatchMode):
    """Bytes by storage, each followed by a weak reference: views are one, and what is let go counts no longer.

    `busiest` has the most bytes at once in every stage, `kernels` how often each heavy one ran there, by stage, name
    and precision. A stage lasts until `stage` is set to another. What touches no tensor of the card runs as ever.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.learning = False  # whether gradients are computed
        self.now = 0
        self.stage = "loading"
        self.peak = 0  # the most bytes at once since the last reset
        self.busiest: Counter[str] = Counter()
        self.kernels: Counter[tuple[str, str, str]] = Counter()
        self.elsewhere: set[torch.device] = set()  # other cards that got a tensor
        self.dtypes: set[torch.dtype] = set()  # of all that was on the card
        self._known: dict[int, weakref.ref] = {}

    def reset(self) -> None:
        """Count `peak` from now on, as an allocator does; `busiest` is of the whole rehearsal."""
        self.peak = self.now

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.learning and func is torch.ops.prim.device.default:
            return HOST  # to C++ alone, where autograd's engine would ask a card for its streams; Python sees the card
        if not any(map(self._is_fake, tree_leaves((args, kwargs)))):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if _is_composite(func):  # under inference mode they arrive whole: what they make within counts as well
            with self:
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        output = func(*args, **kwargs)
        tensors = [t for t in tree_leaves(output) if isinstance(t, FakeTensor)]
        for tensor in tensors:
            self.follow(tensor)
        name = func.overloadpacket.__name__
        if tensors and name in (*HEAVY, *FUSED):
            self.kernels[self.stage, name, str(tensors[0].dtype).removeprefix("torch.")] += 1
        return output

    def _is_fake(self, value: object) -> bool:
        return isinstance(value, FakeTensor) or (
            isinstance(value, torch.device) and value.type == self.device.type != "cpu"
        )

    def follow(self, tensor: FakeTensor) -> None:
        """Count a tensor's storage from now on, as long as anything holds it."""
        if tensor.fake_device.type != self.device.type:
            return
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        if tensor.fake_device != self.device:
            self.elsewhere.add(tensor.fake_device)
            return

        def gone(_: weakref.ref) -> None:
            del self._known[key]
            self.now -= size

        self.dtypes.add(tensor.dtype)
        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)
        self.busiest[self.stage] = max(self.busiest[self.stage], self.now)


# --- A device guard for CUDA where torch was built without: without one, its engine takes no tensor that says cuda:0

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
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


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
    if (program := compiler()) is None:
        raise NoCompiler(f"a rehearsal needs a C++ compiler: {INSTALL_COMPILER}")
    library.parent.mkdir(parents=True, exist_ok=True)
    home = Path(torch.__file__).parent
    with new_file(library) as partial:
        options = ["-std=c++20", "-shared", "-fPIC", f"-I{home / 'include'}", f"-L{home / 'lib'}", "-x", "c++", "-"]
        done = subprocess.run(
            [program, *options, "-x", "none", "-lc10", "-o", partial], input=SOURCE, text=True, capture_output=True
        )
        if done.returncode:
            raise NoCompiler(f"{program} cannot build against torch {torch.__version__}: {done.stderr[-500:]}")


# --- The attention kernels that torch chooses on a card; without one it takes that which makes the whole N x N map

_WIDEST = 256  # channels of a head that flash attention takes
_HALF = (torch.float16, torch.bfloat16)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """torch's scaled_dot_product_attention of q (B, heads, N, d), k and v (B, heads, M, d), mask (.., N, M).

    Flash attention where it can be, else memory-efficient attention, as sdp_utils.cpp ranks them for CUDA.
    """
    if attn_mask is None and query.shape[-1] <= _WIDEST and query.dtype in _HALF:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    efficient, keeps = torch.ops.aten._scaled_dot_product_efficient_attention, query.requires_grad
    return efficient(query, key, value, attn_mask, keeps, dropout_p, is_causal, scale=scale)[0]
