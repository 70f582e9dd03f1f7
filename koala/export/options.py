"""Options that the export and its gate share."""

import argparse

SENTENCES, LINES = "text", "json"  # of --progress


def add_depth(parser: argparse.ArgumentParser) -> None:
    """Options for how thorough the gates are."""
    parser.add_argument(
        "--pictures", type=_count, default=8, metavar="N", help="how many pictures the gate draws (default: 8)"
    )
    parser.add_argument(
        "--thorough", action="store_true", help="also draw pictures with a large model on a CPU: many minutes each"
    )


def add_progress(parser: argparse.ArgumentParser) -> None:
    """The option for the format of the progress."""
    parser.add_argument(
        "--progress",
        choices=(SENTENCES, LINES),
        default=SENTENCES,
        help="format of the progress on stderr: text, or one JSON object per line with its kind: estimate, lora, "
        "progress, finding or error (default: text)",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pictures; give 1 or more")
    return int(text)
