"""python -m export, in a clone: the same as `python -m koala export`."""

import sys

from koala.export.__main__ import main

sys.exit(main())
