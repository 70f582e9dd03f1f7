"""A command at a terminal: what the libraries print on their own is switched off, and an error ends it in one line.

Called by entry points only.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable

from koala.errors import UserError
from koala.hardware.shortage import RanOut, ran_out, release, unplanned

DEBUG = "--debug"


def quiet() -> None:
    """Only errors from transformers and diffusers, no download progress bars, no usage statistics sent.

    Must run before any of them is imported: they read these variables once.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


def no_bars() -> None:
    """No progress bars from transformers and diffusers; imports both, so call it where they are needed anyway."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


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

    `smaller` is the advice when memory ran out; `tell` replaces the line on stderr.
    """
    tell = tell or (lambda sentence: print(f"{program}: {sentence}", file=sys.stderr, flush=True))
    try:
        return run()
    except BrokenPipeError:  # the reader of our output has exited, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        tell("stopped")
        return 1
    except Exception as error:  # the last resort: whatever it is, the user reads one line
        if debug:
            traceback.print_exception(error)
        if ran_out(error):
            release(error)
            error = unplanned(error, smaller)
        tell(sentence(error) + ("" if debug or _plain(error) else f" ({DEBUG} shows where)"))
        return 2 if isinstance(error, UserError) and not isinstance(error, RanOut) else 1


def sentence(error: Exception) -> str:
    """An error as one line, with its class first unless its message was written for users."""
    text = " ".join(str(error).split())
    return text if text and _plain(error) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _plain(error: Exception) -> bool:
    """Whether the message was written for users: our own errors, and the system's, which name file and cause."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "koala"
