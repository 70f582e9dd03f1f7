"""The device at hand: its memory, its clock, and what fits on it."""
