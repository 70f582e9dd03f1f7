"""python -m koala <verb>: JSON on stdout, progress on stderr.

Exit status: 0 done, 1 failed, 2 bad use. An error is one line; --debug shows its traceback as well.
"""

import argparse
from collections.abc import Sequence

from koala.console import quiet
from koala.last_resort import add_debug, finish
from koala.verbs import (
    attention,
    bench,
    compare,
    compress,
    convert,
    distill,
    evaluate,
    fetch,
    generate,
    gpu_report,
    lora,
    models,
    similarity,
)

VERBS = {
    "models": models,
    "fetch": fetch,
    "generate": generate,
    "compare": compare,
    "compress": compress,
    "convert": convert,
    "distill": distill,
    "lora": lora,
    "eval": evaluate,
    "attention": attention,
    "bench": bench,
    "gpu-report": gpu_report,
    "similarity": similarity,
}


def parser() -> argparse.ArgumentParser:
    """The parser of every verb; a verb is one entry of the table above."""
    top = argparse.ArgumentParser(prog="python -m koala", description="KOALA: small, fast SDXL.")
    add_debug(top)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        sub = verbs.add_parser(name, help=verb.HELP, description=verb.HELP)
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        add_debug(sub, argparse.SUPPRESS)
        sub.set_defaults(run=verb.run, smaller=getattr(verb, "SMALLER", "a smaller model"))
        verb.add(sub)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; its exit status is as the module says."""
    args = parser().parse_args(arguments)
    quiet()
    return finish("koala", lambda: args.run(args), debug=args.debug, smaller=args.smaller)
