"""The verbs of `python -m koala`, one module each: HELP, add(parser) and run(args) -> exit status."""
