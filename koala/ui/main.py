"""The app's command line: `koala app`, or python app.py in a clone."""

import argparse
import sys
from pathlib import Path

from koala.console import add_debug, finish, quiet

quiet()  # before Gradio and transformers are imported: they read their environment once

from koala.errors import UserError  # noqa: E402
from koala.ui.build import LOCAL, launch  # noqa: E402
from koala.ui.session import Session  # noqa: E402


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage."""

    def error(self, message: str):
        """Print the message on stderr with a pointer to --help, and exit with 2."""
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help shows what is possible\n")


def program() -> str:
    """How the app was started: app.py in a clone, koala app elsewhere."""
    return "app.py" if Path(sys.argv[0]).name == "app.py" else "koala app"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The app's options. SystemExit for an unknown one, or a --vram outside 0.1 to 1024 GB."""
    parser = Parser(
        prog=program(), description="Serve the app: KOALA and its SDXL teacher, side by side and honestly timed."
    )
    parser.add_argument(
        "--models", nargs=2, metavar=("A", "B"), help="two models to begin with: names, folders or hub ids"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: the best one here)")
    parser.add_argument("--vram", type=float, metavar="GB", help="memory to plan for (default: all that is free)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="also answer to this host name, of a proxy or a tunnel; may be repeated",
    )
    parser.add_argument("--share", action="store_true", help="also open a public gradio.live address")
    parser.add_argument("--export", action="store_true", help="also let visitors export the embedded models")
    own = parser.add_mutually_exclusive_group()
    own.add_argument(
        "--auth",
        metavar="USER:PASSWORD",
        help="require this user name and password; other users of this machine can see them among its processes, "
        "but not those of an --auth-file",
    )
    own.add_argument(
        "--auth-file", type=Path, metavar="FILE", help="read users from a file, one USER:PASSWORD per line"
    )
    add_debug(parser)
    options = parser.parse_args(arguments)
    if options.vram is not None and not 0.1 <= options.vram <= 1024:
        parser.error(f"--vram takes gigabytes, such as 8, 6, 4 or 3, not {options.vram:g}")
    return options


def is_local(options: argparse.Namespace) -> bool:
    """Whether only the user of this machine, who is trusted, can reach the app."""
    return options.host in LOCAL and not options.share


def users(options: argparse.Namespace) -> list[tuple[str, str]] | None:
    """User names and passwords; None if no password is needed. UserError if one is missing."""
    lines = [options.auth] if options.auth is not None else None
    if options.auth_file:
        try:
            lines = [line for line in options.auth_file.read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--auth-file {options.auth_file} cannot be read: {error}") from error
    if lines is None:
        return None
    named = [line.partition(":")[::2] for line in lines]
    if not named or not all(user and password for user, password in named):
        raise UserError("a user is named as USER:PASSWORD, neither of them empty; a file holds one per line")
    return named


def main(arguments: list[str] | None = None) -> int:
    """Serve the app until it is stopped; exit status 0, 2 where it cannot start as asked, or 1 for any other error."""
    options = parse(arguments)
    return finish(program(), lambda: _serve(options), debug=options.debug)


def _serve(options: argparse.Namespace) -> int:
    memory = int(options.vram * 1e9) if options.vram else None
    local = is_local(options)
    session = Session(options.models, options.device, memory=memory, local=local, exports=options.export)
    try:
        demo = launch(session, options.host, options.port, options.share, users(options), options.allow_host)
    except OSError as error:
        if error.filename is not None:  # of a file, not of an address
            raise
        where = f"{options.host}:{options.port or '7860 and above'}"
        raise UserError(f"nothing can listen on {where}; choose another --port or --host") from error
    print(f"KOALA is at {demo.local_url}" + (f" and {demo.share_url}" if demo.share_url else ""), flush=True)
    demo.block_thread()
    return 0
