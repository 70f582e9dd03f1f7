"""python -m koala."""

import sys

from koala.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
