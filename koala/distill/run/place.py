"""Where a new run may be written: a folder that holds nothing of others in the places that a run takes.

Files and their names only. A run that has no checkpoint yet has nothing to lose: its name may be used again.
"""

from koala.distill.run.folder import RunFolder
from koala.errors import UserError

_FILES = ("config.json", "status.json", "metrics.jsonl", "history.json", "student.json", "student", "samples")


def check_place(run: RunFolder) -> None:
    """UserError where a new run would replace anything that is not of a run without checkpoints."""
    if run.path.exists() and not run.path.is_dir():
        raise UserError(f"{run.path} is a file; name a folder, for example --out {run.path}-run")
    elsewhere = f"choose another folder, for example --out {run.path}-2"
    if run.checkpoints():
        raise UserError(f"{run.path} holds a run already; go on with --resume {run.path}, or {elsewhere}")
    if _is_run(run):
        return
    there = [name for name in (*_FILES, "checkpoints") if _holds_something(run, name)]
    if there:
        raise UserError(f"{run.path} holds {', '.join(there)} of no run, and a run writes there; {elsewhere}")


def _is_run(run: RunFolder) -> bool:
    """Whether a run began here: its config or its status can be read."""
    try:
        run.config()
        return True
    except UserError:
        pass
    try:
        return run.status() is not None
    except UserError:
        return False


def _holds_something(run: RunFolder, name: str) -> bool:
    place = run.path / name
    return place.is_symlink() or place.is_file() or place.is_dir() and any(place.iterdir())
