"""The checks that an export must pass before it gets its name."""
