"""The verbs of `python -m koala`, one module each: HELP, add(parser) and run(args) -> exit status.

SMALLER, where a verb has it, is what helps where memory ran out.
"""
