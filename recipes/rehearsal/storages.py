"""Counts the bytes that are alive on a described card, and the kernels that would have run on it."""

import weakref
from collections import Counter
from functools import cache

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
        found = func(*args, **kwargs)
        made = [t for t in tree_leaves(found) if isinstance(t, FakeTensor)]
        for tensor in made:
            self.follow(tensor)
        name = func.overloadpacket.__name__
        if made and name in (*HEAVY, *FUSED):
            self.kernels[self.stage, name, str(made[0].dtype).removeprefix("torch.")] += 1
        return found

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
