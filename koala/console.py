"""What the libraries print and send on their own, switched off for people at a terminal. Called by faces only."""

import os


def quiet() -> None:
    """Only errors from transformers and diffusers, no progress bars for downloads, no usage statistics to anyone.

    Must run before any of them is imported: they read these variables once.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


def no_bars() -> None:
    """No progress bars from transformers and diffusers; imports both, so a face calls it when it needs them anyway."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
