"""How a command ends that failed: one line on stderr and an exit status, the same for every entry point."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable

from koala.errors import UserError
from koala.hardware.shortage import RanOut, ran_out, release, unplanned

DEBUG = "--debug"


def add_debug(parser: argparse.ArgumentParser, default: object = False) -> None:
    """The option that every command has; SUPPRESS as default leaves the value of a parser around it as it is."""
    parser.add_argument(DEBUG, action="store_true", default=default, help="show the traceback of an error as well")


def finish(
    program: str,
    run: Callable[[], int],
    *,
    debug: bool,
    smaller: str = "a smaller model",
    tell: Callable[[str], None] | None = None,
) -> int:
    """Run a command. Its exit status: its own, 2 for a request that was refused, 1 for any other error.

    `smaller` is what helps where memory ran out; `tell` says why the command failed, in another way than a line.
    """
    tell = tell or (lambda sentence: print(f"{program}: {sentence}", file=sys.stderr, flush=True))
    try:
        return run()
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        tell("stopped")
        return 1
    except Exception as error:  # the last resort: whatever it is, its person reads one line
        if debug:
            traceback.print_exception(error)
        if ran_out(error):
            release(error)
            error = unplanned(error, smaller)
        tell(sentence(error) + ("" if debug or _plain(error) else f" ({DEBUG} shows where)"))
        return 2 if isinstance(error, UserError) and not isinstance(error, RanOut) else 1


def sentence(error: Exception) -> str:
    """An error as one line; the kind of one that was not made for people comes first."""
    text = " ".join(str(error).split())
    return text if text and _plain(error) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _plain(error: Exception) -> bool:
    """Whether the error was made for people, as our own are; the system's name file and cause."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "koala"
