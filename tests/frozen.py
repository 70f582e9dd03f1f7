"""Imported last by the server of forks: no fork's collection of garbage looks through what was imported before it."""

import gc

gc.collect()
gc.freeze()
