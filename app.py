"""The app, in a clone: the same as `python -m koala app`."""

import sys

from koala.ui.main import main

if __name__ == "__main__":
    sys.exit(main())
