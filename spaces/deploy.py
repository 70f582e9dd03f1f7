"""Build the Space as a self-contained folder, and push it."""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the koala of this repository, whatever is installed

from koala.console import add_debug, finish  # noqa: E402
from koala.errors import UserError  # noqa: E402
from koala.files.outputs import new_folder  # noqa: E402
from koala.files.reading import read_object  # noqa: E402

SPACE = ("README.md", "app.py", "requirements.txt")  # of this folder
WHOLE = ("LICENSE", "NOTICE.md", "koala")  # of the repository
CONSTRAINTS = "constraints-server.txt"
STAMP = ".koala-space.json"  # marks a folder as a bundle
SWITCH = "# zerogpu: "  # begins the lines of README.md that only a Space on ZeroGPU has
HARDWARE = {False: "cpu-basic", True: "zero-a10g"}  # as huggingface_hub still names ZeroGPU
STATIC, PAGE_MODELS = "static", ("tiny-sdxl", "tiny-koala-700m")  # the page that draws in a browser


def readme(zerogpu: bool) -> str:
    """The Space's README with the front matter of its hardware."""
    lines = (ROOT / "spaces" / "README.md").read_text(encoding="utf-8").splitlines(keepends=True)
    if zerogpu:
        return "".join(line.removeprefix(SWITCH) for line in lines)
    return "".join(line for line in lines if not line.startswith(SWITCH))


def requirements() -> str:
    """The Space's requirements with every version of the web stack: the platform reads this one file alone."""
    own = (ROOT / "spaces" / "requirements.txt").read_text(encoding="utf-8")
    pinned = {line.partition("==")[0].replace("_", "-") for line in own.splitlines()}
    stack = (ROOT / CONSTRAINTS).read_text(encoding="utf-8").splitlines()
    more = [line for line in stack if "==" in line and line.partition("==")[0] not in pinned]
    return own + f"\n# What Gradio needs, as {CONSTRAINTS} of the repository pins it.\n" + "\n".join(more) + "\n"


def sources() -> Iterator[tuple[str, Path]]:
    """(path in the bundle, file) of every copied file; `readme` and `requirements` rewrite two of them."""
    for name in SPACE:
        yield name, ROOT / "spaces" / name
    for name in WHOLE:
        whole = ROOT / name
        for file in sorted(whole.rglob("*")) if whole.is_dir() else [whole]:
            if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".pyc":
                yield file.relative_to(ROOT).as_posix(), file


def build(out: Path, *, zerogpu: bool = False) -> None:
    """Write the bundle; once complete it replaces an earlier bundle, but no other folder."""
    files, out = dict(sources()), out.resolve()
    needed, replace = sum(f.stat().st_size for f in files.values()), (out / STAMP).is_file()
    with new_folder(out, needed, replace=replace) as folder:
        for name, file in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
        (folder / "README.md").write_text(readme(zerogpu), encoding="utf-8")
        (folder / "requirements.txt").write_text(requirements(), encoding="utf-8")
        (folder / STAMP).write_text(json.dumps({"hardware": HARDWARE[zerogpu]}) + "\n")


def build_static(out: Path, page: Path | None) -> None:
    """The same with a page that draws in the visitor's browser: `page`, or a new one."""
    out = out.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        if page is None:
            from koala.export.command import main as export

            page = Path(scratch) / "page"
            if export(["--target", "web", "--models", *PAGE_MODELS, "--out", str(page)]):
                raise UserError("the page could not be made; the reason is above")
        elif not (page / "site.json").is_file():
            raise UserError(
                f"{page} is not a page of this project; make one with python -m koala export --target web --models "
                f"{' '.join(PAGE_MODELS)} --out {page}, or leave the folder out"
            )
        needed = sum(f.stat().st_size for f in page.rglob("*") if f.is_file())
        with new_folder(out, needed, replace=(out / STAMP).is_file()) as folder:
            shutil.copytree(page, folder, dirs_exist_ok=True)
            shutil.copyfile(ROOT / "spaces" / "static.md", folder / "README.md")
            shutil.copyfile(ROOT / "NOTICE.md", folder / "NOTICE.md")
            (folder / STAMP).write_text(json.dumps({"sdk": STATIC}) + "\n")


def kind(folder: Path) -> dict[str, str]:
    """The arguments with which huggingface_hub creates a bundle's Space."""
    stamp = read_object(folder / STAMP, "build the bundle again")
    if stamp.get("sdk") == STATIC:
        return {"space_sdk": STATIC}
    if (hardware := stamp.get("hardware")) not in HARDWARE.values():
        raise UserError(f"{folder / STAMP} names no hardware of a Space: {hardware!r}; build the bundle again")
    return {"space_sdk": "gradio", "space_hardware": hardware}


def push(folder: Path, repo: str) -> str:
    """Upload a bundle to a Space, which is created if it is missing; the Space's address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    api, own = HfApi(), kind(folder)
    try:
        url = api.create_repo(repo, repo_type="space", exist_ok=True, **own)
        api.upload_folder(
            repo_id=repo,
            repo_type="space",
            folder_path=folder,
            delete_patterns="*",
            ignore_patterns=["**/__pycache__/**", "runs/**", "exports/**", ".gradio/**"],  # of a bundle that has run
            commit_message="The Space as its repository builds it",
        )
    except (HTTPError, HFValidationError) as error:
        first = str(error).strip().splitlines()[0]
        remedy = f"the bundle is in {folder}; check name and network, and `hf auth login` with a token that may write"
        raise UserError(f"{repo} could not be pushed: {first.rstrip('.')}; {remedy}") from error
    return str(url)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; exit status 0, 2 for a refusal or failed push, 1 for any other error."""
    parser = argparse.ArgumentParser(prog="deploy.py", description="Build the Hugging Face Space, and push it.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the bundle")
    parser.add_argument("--push", metavar="OWNER/NAME", help="then upload it to this Space, replacing its files")
    parser.add_argument(
        "--zerogpu", action="store_true", help="for ZeroGPU with the real checkpoints, instead of CPU Basic"
    )
    parser.add_argument(
        "--static",
        nargs="?",
        const=True,
        metavar="PAGE",
        help="build a static Space, which draws in the browser, from a page of export --target web or a new one",
    )
    parser.add_argument("--dry-run", action="store_true", help="only list the files and their sizes")
    add_debug(parser)
    options = parser.parse_args(arguments)
    return finish("deploy.py", lambda: _run(options), debug=options.debug)


def _run(options: argparse.Namespace) -> int:
    if options.static and (options.zerogpu or options.dry_run):
        option = "--zerogpu" if options.zerogpu else "--dry-run"
        raise UserError(f"{option} is for a Space with a server, and --static for one without; leave one of them out")
    if options.static:
        build_static(options.out, None if options.static is True else Path(options.static))
        sizes = {f: f.stat().st_size for f in options.out.rglob("*") if f.is_file()}
    elif options.dry_run:
        sizes = {name: file.stat().st_size for name, file in sources()}
        print("\n".join(f"{size:>12,}  {name}" for name, size in sizes.items()))
    else:
        build(options.out, zerogpu=options.zerogpu)
        sizes = {f: f.stat().st_size for f in options.out.rglob("*") if f.is_file()}
    print(f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB", "" if options.dry_run else f"in {options.out}")
    if options.push and not options.dry_run:
        print(f"The Space is at {push(options.out, options.push)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
