"""ONNX files of SDXL-family models that other runtimes load as they are: `python -m export`."""

import koala  # noqa: F401  (before onnxruntime, whose reports to its makers it switches off)
