"""python -m koala.export: the same as `koala export`."""

import signal
import sys
from collections.abc import Sequence

from koala.export import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line of the export; its exit status is 0, 1 where it failed, or 2 for bad use."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # terminated, it leaves nothing half-written
    return command.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
