"""The verbs of `python -m koala`, one module each: HELP, add(parser) and run(args) -> exit status.

SMALLER, if a verb has it, names remedies for running out of memory.
"""
