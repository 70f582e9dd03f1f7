"""fetch: download the missing files of a model."""

import argparse
from dataclasses import asdict

from koala.cli.output import emit, fetching
from koala.models.registry import find

HELP = "download models into the hub's cache: only the files that are needed, resuming interrupted downloads"


def add(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="name or hub id (owner/name), optionally at a revision (@)"
    )
    parser.add_argument("--tiny-vae", action="store_true", help="also the tiny VAE, for previews and little memory")
    parser.add_argument("--dry-run", action="store_true", help="only list the files and their sizes")


def run(args: argparse.Namespace) -> int:
    """Prints each model's folder, with --dry-run its files and the bytes missing, or JSON; exit status 0."""
    cards = [find(name) for name in args.models]
    from koala.models.downloads import fetch, plan_download

    entries, lines = [], []
    for card in cards:
        if args.dry_run:
            files = plan_download(card, tiny_vae=args.tiny_vae)
            missing = sum(f.size for f in files if not f.here)
            entries.append({"name": card.name, "files": [asdict(f) for f in files], "missing_bytes": missing})
            lines += [f"{f.size:>14,}  {'here   ' if f.here else 'missing'}  {f.repo}/{f.name}" for f in files]
            lines.append(f"{missing:>14,}  bytes missing for {card.name}")
        else:
            location = fetch(card, fetching(card.name), tiny_vae=args.tiny_vae)
            entries.append({"name": card.name, "location": str(location.folder), "revision": location.revision})
            lines.append(f"{card.name}: {location.folder}")
    emit(args, entries, "\n".join(lines))
    return 0
