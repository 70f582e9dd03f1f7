"""python -m koala <verb>: JSON on stdout, progress on stderr.

Exit status: 0 done, 1 failed, 2 bad use. A bad request is one line that names the remedy, never a traceback.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from koala.console import quiet
from koala.request import RequestError
from koala.verbs import (
    attention,
    bench,
    compare,
    compress,
    distill,
    evaluate,
    fetch,
    generate,
    lora,
    models,
    similarity,
)
from koala.verbs.output import say

VERBS = {
    "models": models,
    "fetch": fetch,
    "generate": generate,
    "compare": compare,
    "compress": compress,
    "distill": distill,
    "lora": lora,
    "eval": evaluate,
    "attention": attention,
    "bench": bench,
    "similarity": similarity,
}


def parser() -> argparse.ArgumentParser:
    """The parser of every verb; a verb is one entry of the table above."""
    top = argparse.ArgumentParser(prog="python -m koala", description="KOALA: small, fast SDXL.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        sub = verbs.add_parser(name, help=verb.HELP, description=verb.HELP)
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        sub.set_defaults(run=verb.run)
        verb.add(sub)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; its exit status is as the module says."""
    args = parser().parse_args(arguments)
    quiet()
    try:
        return args.run(args)
    except RequestError as error:
        say(f"koala: {error}")
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        say(f"koala: {error}")
        return 1
    except KeyboardInterrupt:
        say("koala: stopped")
        return 1
