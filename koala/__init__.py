"""KOALA: Stable Diffusion XL's U-Net, compressed and distilled by its self-attention (arXiv 2312.04005).

`from koala import GenerationRequest, Library, generate, compare` imports each name's module when it is first used, so
importing koala loads no torch.
"""

import os
from importlib import import_module

__version__ = "0.1.0"

_MODULES = {
    "GenerationRequest": "koala.request",
    "Library": "koala.models.library",
    "compare": "koala.sampling.compare",
    "generate": "koala.sampling.generate",
}
__all__ = sorted([*_MODULES, "__version__"])

# ONNX Runtime 1.29 and later send model names and hashes to their makers from the import on; only this stops it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
