"""Processes of a run never part: who waits for whom, and what one does alone, is looked up in the code itself.

Symptom: which step is the best was known to the first process alone, and it waited for the others at a checkpoint that
they did not make.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from koala.distill.processes import Processes
from koala.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FILES = [*sorted((ROOT / "koala" / "distill").rglob("*.py")), ROOT / "koala" / "cli" / "distill.py"]
HOME = "processes.py"
WAITS = {  # where a process waits for the others
    "wait_for_everyone", "reduce", "gather", "gather_object", "gather_for_metrics", "broadcast",
    "broadcast_object_list", "all_reduce", "all_gather", "all_gather_object", "barrier", "main_process_first",
    "local_main_process_first", "is_main_process", "is_local_main_process", "process_index",
}  # fmt: skip
COLLECTIVE = {  # what lets a process wait without saying so: of sharded tensors, wrapped networks and our own
    "on_main", "on_each", "any", "alike", "mean", "take", "all_stop", "may_stop", "backward", "clip_grad_norm_",
    "kept_weights", "contents", "encoded", "prepare", "wrap", "resume", "_loop", "_one_step", "_validate",
    "_checkpoint",
}  # fmt: skip
DECIDE = ("trainer.py", "preparation.py", "claim.py", "gathering.py")  # where what one process does meets what all do


def trees() -> Iterator[tuple[Path, ast.Module]]:
    return ((file, ast.parse(file.read_text())) for file in FILES)


def called(tree: ast.AST) -> set[str]:
    """Names of methods and functions that are called on something of a run's."""
    return {
        node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)
    }


def tasks(tree: ast.Module) -> set[str]:
    """Names of the functions that are given to `on_main`."""
    aliases = {"on_main"}
    return {
        ast.unparse(node.args[0]).rpartition(".")[2]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in aliases
    }


def test_processes_wait_for_each_other_in_one_module_alone():
    result = [
        f"{file.name}: {node.attr}"
        for file, tree in trees()
        if file.name != HOME
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in WAITS
    ]
    assert result == []


def test_what_the_first_process_does_alone_decides_nothing_and_waits_for_nobody():
    """Its result is what the others learn; an attribute that it set, of whatever object, would be known to it alone."""
    names = set.union(*(tasks(tree) for _, tree in trees()))
    assert {"_look", "_save", "_take", "begin", "_planned", "_try_again"} <= names
    result = []
    for file, tree in trees():
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef) or function.name not in names or file.name == HOME:
                continue
            targets = [
                target
                for node in ast.walk(function)
                if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)
                for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            ]
            attributes = [ast.unparse(t) for t in targets if isinstance(t, ast.Attribute)]
            if file.name in DECIDE:
                result += [f"{file.name}: {function.name} sets {name}" for name in attributes]
                result += [f"{file.name}: {function.name} calls {name}" for name in called(function) & COLLECTIVE]
    assert result == []


def test_no_branch_of_the_trainer_depends_on_which_process_it_is():
    """Only whether it speaks, and what it has in memory: an `if` around a wait would part the processes."""
    for file, tree in trees():
        for node in ast.walk(tree) if file.name in (*DECIDE, "distill.py") else ():
            if isinstance(node, ast.If) and "main" in {n.attr for n in ast.walk(node.test) if hasattr(n, "attr")}:
                assert not called(node) & COLLECTIVE, f"{file.name}:{node.lineno}"


def test_a_wait_inside_of_what_one_process_does_is_found_with_one_process_too():
    processes = Processes()
    with pytest.raises(AssertionError, match="they are not coming"):
        processes.on_main(lambda: processes.any(True))
    assert processes.any(True) and not processes.any(False)
    with pytest.raises(AssertionError, match="they are not coming"):
        processes.on_each(lambda: processes.on_main(int))


def test_an_error_is_everyones_as_what_it_is():
    processes = Processes(errors=(KeyError,))

    def fails(error: Exception) -> None:
        raise error

    for error in (UserError("no"), OSError("full"), KeyError("k"), ValueError("v")):
        with pytest.raises(type(error)):
            processes.on_main(fails, error)
        assert processes.shared is error
    assert processes.on_each(lambda: 7) == 7
