"""ONNX files of SDXL-family models that other runtimes load unchanged: `python -m koala export`."""

import koala  # noqa: F401  (before onnxruntime, whose reports to its makers it switches off)
