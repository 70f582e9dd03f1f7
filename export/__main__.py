"""python -m export: write ONNX files of a model; `verify`, `tensorrt` and `single-file` are commands beside it."""

import signal
import sys

from export.command import main

signal.signal(signal.SIGTERM, signal.default_int_handler)  # told to end, it leaves nothing half-written
sys.exit(main())
