"""Options that the export and its gate share."""

import argparse


def add_depth(parser: argparse.ArgumentParser) -> None:
    """How much the gates do."""
    parser.add_argument(
        "--pictures", type=int, default=8, metavar="N", help="pictures that the last gate draws (default: 8)"
    )
    parser.add_argument(
        "--thorough", action="store_true", help="draw with a large model on a CPU, too: many minutes a picture"
    )
