"""python -m koala <verb>, or koala <verb> where it is installed: JSON on stdout, progress on stderr.

Exit status: 0 done, 1 failed, 2 bad use. An error is one line; --debug shows its traceback as well.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from koala import __version__
from koala.cli import (
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
from koala.console import DEBUG, add_debug, finish, quiet

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
# Verbs with their own parser, imported when they are used.
OTHERS = {
    "export": "export a model to ONNX files that other runtimes load unchanged",
    "app": "start the app and serve it to the browser",
}


def program() -> str:
    """How this command was called: koala, or python -m koala."""
    return "koala" if Path(sys.argv[0]).stem == "koala" else "python -m koala"


def parser() -> argparse.ArgumentParser:
    """The parser of every verb; a verb is one entry of the table above."""
    top = argparse.ArgumentParser(prog=program(), description="KOALA: small, fast SDXL.")
    top.add_argument("--version", action="version", version=f"koala {__version__}")
    add_debug(top)
    verbs = top.add_subparsers(dest="verb", metavar="VERB")
    for name, verb in VERBS.items():
        sub = verbs.add_parser(name, help=verb.HELP, description=verb.HELP)
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        add_debug(sub, argparse.SUPPRESS)
        sub.set_defaults(run=verb.run, smaller=getattr(verb, "SMALLER", "a smaller model"))
        verb.add(sub)
    for name, text in OTHERS.items():
        verbs.add_parser(name, help=text, add_help=False)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; exit status as described above. Without a verb it prints the help."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug, rest = given[:1] == [DEBUG], given[given[:1] == [DEBUG] :]
    verb = rest[0] if rest else None
    if verb in OTHERS:
        return _other(verb, [*[DEBUG][:debug], *rest[1:]])
    top = parser()
    if verb is None:
        top.print_help()
        return 0
    if not verb.startswith("-") and verb not in VERBS:
        near = difflib.get_close_matches(verb, [*VERBS, *OTHERS], n=1, cutoff=0.6)
        meant = f"did you mean {near[0]}? " if near else ""
        top.exit(2, f"{program()}: there is no verb {verb!r}; {meant}{program()} --help lists them\n")
    args = top.parse_args(given)
    quiet()
    return finish("koala", lambda: args.run(args), debug=args.debug, smaller=args.smaller)


def _other(verb: str, arguments: list[str]) -> int:
    if verb == "export":
        from koala.export.__main__ import main
    else:
        from koala.ui.main import main
    return main(arguments)
