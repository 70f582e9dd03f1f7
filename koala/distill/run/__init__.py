"""The life of a run: its folder, checkpoints, processes, signals and resumption."""
