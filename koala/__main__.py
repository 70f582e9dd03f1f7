"""python -m koala."""

import sys

from koala.cli import main

sys.exit(main())
