"""python -m export: write ONNX files of a model; `verify`, `tensorrt` and `single-file` are commands beside it."""

import sys

from export.command import main

sys.exit(main())
