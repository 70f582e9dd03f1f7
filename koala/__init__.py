"""KOALA: Stable Diffusion XL's U-Net, compressed and distilled in its self-attention (arXiv 2312.04005)."""

import os

__version__ = "0.1.0"

# ONNX Runtime 1.29 and later report every model and its hashes to their makers, from the import on; only this stops it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
