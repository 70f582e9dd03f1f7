"""Options that the export and its gate share."""

import argparse

SENTENCES, LINES = "text", "json"  # of --progress


def add_depth(parser: argparse.ArgumentParser) -> None:
    """How much the gates do."""
    parser.add_argument(
        "--pictures", type=_count, default=8, metavar="N", help="pictures that the last gate draws (default: 8)"
    )
    parser.add_argument(
        "--thorough", action="store_true", help="draw with a large model on a CPU, too: many minutes a picture"
    )


def add_progress(parser: argparse.ArgumentParser) -> None:
    """How progress is told."""
    parser.add_argument(
        "--progress",
        choices=(SENTENCES, LINES),
        default=SENTENCES,
        help="how progress is told on stderr: as text, or one JSON object per line with its kind: estimate, lora, "
        "progress, finding or error (default: text)",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pictures; give 1 or more")
    return int(text)
