"""The rooms of koala/ as data: which room may import which. A room is a folder, or a module that lies in koala/ itself.

Each row may name only rows above it, so imports go down and no cycle can come about between rooms. Inside a room the
same holds from folder to folder and from module to module, which is read from the imports themselves.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Room -> the rooms that it imports.
ROOMS = {
    "errors": "",
    "palette": "",
    "presets": "",
    "process": "",
    "words": "",
    "charts": "palette",
    "files": "errors process words",
    "finite": "errors",
    "request": "errors presets",
    "shapes": "words",
    "unet": "errors files request",
    "hardware": "errors presets words request unet",
    "lora": "errors files unet",
    "console": "errors hardware",
    "models": "errors words files finite request unet hardware lora",
    "compress": "errors words files unet models",
    "convert": "errors words files unet models",
    "sampling": "errors presets files finite request shapes unet hardware lora models",
    "attention": "errors presets words files finite request unet hardware models sampling",
    "benchmark": "errors presets words request unet hardware models sampling",
    "evaluate": "errors palette presets words charts files finite request shapes unet hardware models sampling",
    "distill": "errors process words files finite request shapes unet hardware lora models compress sampling benchmark "
    "evaluate",
    "export": "errors palette words files finite request shapes unet hardware lora console models convert sampling "
    "evaluate",
    "gpu_report": "errors words files request unet hardware models sampling attention benchmark evaluate distill",
    "ui": "errors palette presets process words charts files request shapes unet hardware console models "
    "compress sampling attention benchmark evaluate distill export",
    "cli": "errors words files request unet hardware lora console models compress convert sampling attention "
    "benchmark evaluate distill export gpu_report ui",
    "__main__": "cli",
}

# Modules that load the standard library alone, so that a command's help and a page's first words come at once.
LIGHT = [
    "koala",
    "koala.errors",
    "koala.request",
    "koala.presets",
    "koala.palette",
    "koala.words",
    "koala.charts",
    "koala.unet.*",
    "koala.shapes",
    "koala.shapes.captions",
    "koala.shapes.scene",
    "koala.files",
    "koala.files.fields",
    "koala.files.hashing",
    "koala.files.reading",
    "koala.hardware",
    "koala.hardware.latency",
    "koala.hardware.memory_plan",
    "koala.hardware.shortage",
    "koala.hardware.torch_build",
    "koala.models",
    "koala.models.accounting",
    "koala.models.export_manifest",
    "koala.models.hub_address",
    "koala.models.layout",
    "koala.models.lora_drawing",
    "koala.models.registry",
    "koala.models.sampling_defaults",
    "koala.models.semantics",
    "koala.sampling",
    "koala.sampling.resolve",
    "koala.attention",
    "koala.attention.about",
    "koala.attention.kinds",
    "koala.attention.pairing",
    "koala.attention.plan",
    "koala.benchmark",
    "koala.benchmark.matrix",
    "koala.evaluate",
    "koala.evaluate.similarity_figure",
    "koala.distill",
    "koala.distill.config",
    "koala.distill.presets",
    "koala.distill.data",
    "koala.distill.data.buckets",
    "koala.distill.data.files",
    "koala.distill.data.tables",
    "koala.distill.estimate",
    "koala.distill.estimate.activations",
    "koala.distill.estimate.memory",
    "koala.distill.estimate.total",
    "koala.distill.loss",
    "koala.distill.loss.pairs",
    "koala.distill.run",
    "koala.distill.run.records",
    "koala.export.command",  # it silences the libraries before they are imported
    "koala.gpu_report",
    "koala.gpu_report.budget",
    "koala.gpu_report.scale",
    "koala.gpu_report.tables",
]

# Every package of others, by its import name, and the rooms that may import it; none means all.
PACKAGES = {
    "torch numpy PIL scipy safetensors filelock fsspec pyarrow psutil": None,
    "diffusers huggingface_hub transformers tokenizers": None,
    "accelerate bitsandbytes datasets": ("distill",),
    "open_clip": ("evaluate",),
    "onnxruntime": ("models", "export", "gpu_report"),
    "onnx onnx_ir onnxscript": ("export",),
    "gradio jinja2 starlette": ("ui",),
}
# Never imported by koala: a deployment folder that is named like a package, the tests, what is run, and entry points.
NEVER = ("spaces", "tests", "recipes", "app", "export")
MAY = {("koala.ui.zerogpu", "spaces"): "Hugging Face's package of that name, on a Space"}


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import as it stands in a file."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{MODULES[self.importer].relative_to(ROOT)}:{self.line}: imports {self.imported}"


def find_modules() -> dict[str, Path]:
    """Dotted name -> file, of koala/ and app.py."""
    files = [*(ROOT / "koala").rglob("*.py"), ROOT / "app.py"]
    names = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}
    return dict(sorted(names.items()))


MODULES = find_modules()


def covers(pattern: str, name: str) -> bool:
    """Whether a pattern means this dotted name: `a.b.*` is the package a.b and everything inside it."""
    return name == pattern or (pattern.endswith(".*") and (name == pattern[:-2] or name.startswith(pattern[:-1])))


def light(name: str) -> bool:
    """Whether this module loads the standard library alone."""
    return any(covers(pattern, name) for pattern in LIGHT)


def room(name: str) -> str:
    """The room of a module of koala; of koala itself, the word koala."""
    return name.split(".")[1] if "." in name else name


def targets(node: ast.AST) -> list[str]:
    """The dotted names that one statement or call imports; the modules, where it takes names out of a package."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            assert not node.level, "imports name the whole path"
            return [name if (name := f"{node.module}.{a.name}") in MODULES else node.module for a in node.names]
        case ast.Call(func=ast.Name(id=function) | ast.Attribute(attr=function), args=[ast.Constant(value=name), *_]):
            return [name] if function in ("import_module", "__import__") else []
    return []


def imports(importer: str) -> Iterator[Import]:
    """Every import of one module, also in functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(MODULES[importer].read_text(encoding="utf-8"))):
        for target in targets(node):
            if target != importer:
                yield Import(importer=importer, imported=target, line=node.lineno)


IMPORTS = [result for name in MODULES for result in imports(name)]
OURS = [result for result in IMPORTS if result.imported in MODULES and result.imported != "koala"]


def cycles(arrows: Iterable[tuple[str, str]]) -> list[list[str]]:
    """The nodes that cannot be taken away from below, one list; empty where no arrows form a circle."""
    uses = defaultdict(set)
    for a, b in arrows:
        uses[a].add(b)
    left = set(uses)
    while ready := {node for node in left if not uses[node] & left}:
        left -= ready
    return [sorted(left)] if left else []


def fail_with(problems: list[str]) -> None:
    if problems:
        pytest.fail("\n".join(dict.fromkeys(problems)), pytrace=False)


def test_every_room_has_a_row_and_every_row_a_room():
    rooms = {room(name) for name in MODULES} - {"koala", "app"}
    assert rooms == set(ROOMS)


def test_a_row_names_only_rows_above_it():
    above = set()
    for name, words in ROOMS.items():
        assert set(words.split()) <= above, f"{name} names a room below it"
        above.add(name)


def test_rooms_import_what_their_rows_say():
    allowed = {(name, other) for name, words in ROOMS.items() for other in words.split()}
    crossing = [i for i in OURS if i.importer != "app" and room(i.importer) != room(i.imported)]
    crossing = [i for i in crossing if room(i.importer) != "koala"]
    result = {(room(i.importer), room(i.imported)) for i in crossing}
    problems = [f"{i}: not in its row" for i in crossing if (room(i.importer), room(i.imported)) not in allowed]
    fail_with(problems + [f"{a} does not import {b}: take it out of its row" for a, b in sorted(allowed - result)])


def test_no_circle_between_modules():
    result = cycles((i.importer, i.imported) for i in OURS)
    assert result == []


def test_no_circle_between_the_children_of_a_folder():
    """A folder inside a room counts as one thing among its neighbours, as a room does in koala/."""
    levels = defaultdict(set)
    for i in OURS:
        a, b = i.importer.split("."), i.imported.split(".")
        same = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        if same is not None:
            levels[".".join(a[:same])].add((a[same], b[same]))
    fail_with([f"{folder}: a circle among {result}" for folder, arrows in levels.items() for result in cycles(arrows)])
    assert len(levels) > 15


def test_a_circle_is_found():
    assert cycles([("a", "b"), ("b", "c"), ("c", "a"), ("d", "a"), ("c", "e")]) == [["a", "b", "c", "d"]]
    assert cycles([("a", "b"), ("b", "c"), ("a", "c")]) == []


def test_every_module_that_is_named_is_there():
    names = [name for name in LIGHT if not name.endswith(".*")]
    fail_with([f"there is no module {name}" for name in names if name not in MODULES])
    assert len(LIGHT) == len(set(LIGHT))
    inner = [i for i in IMPORTS if i.imported.startswith("koala.") and i.imported not in MODULES]
    fail_with([f"{i}: there is no such module" for i in inner])


def test_packages_of_others_are_imported_where_they_may_be():
    rooms = {name: where for names, where in PACKAGES.items() for name in names.split()}
    problems = []
    for result in IMPORTS:
        top = result.imported.partition(".")[0]
        if top in ("koala", *sys.stdlib_module_names) or (result.importer, top) in MAY:
            continue
        if top in NEVER:
            problems.append(f"{result}: never")
        elif top not in rooms:
            problems.append(f"{result}: add it to PACKAGES, to requirements.txt and to pyproject.toml")
        elif rooms[top] and room(result.importer) not in rooms[top]:
            problems.append(f"{result}: only {', '.join(rooms[top])} may")
    fail_with(problems)
    assert {top for i in IMPORTS if (top := i.imported.partition(".")[0]) in rooms} == set(rooms)


def test_only_a_few_modules_lie_in_koala_itself():
    flat = [name for name, file in MODULES.items() if file.parent == ROOT / "koala"]
    assert len(flat) <= 15, flat


def test_every_module_has_fewer_than_400_lines():
    for name, file in MODULES.items():
        assert len(file.read_text(encoding="utf-8").splitlines()) < 400, name


def bound(body: Iterable[ast.stmt]) -> Iterator[str]:
    """The names that the statements of a module bind, once for each time."""
    for node in body:
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Assign():
                yield from (n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.ImportFrom():
                yield from (alias.asname or alias.name for alias in node.names)


def test_no_module_binds_a_name_twice():
    """Symptom: two modules became one, and a bound of a gate was replaced by a number type of the same name."""
    problems = []
    for name, file in MODULES.items():
        names = list(bound(ast.parse(file.read_text(encoding="utf-8")).body))
        problems += [f"{name} binds {twice} twice" for twice in {n for n in names if names.count(n) > 1}]
    fail_with(problems)


def test_every_folder_with_code_is_a_package():
    """Without an __init__.py a folder is left out of the wheel."""
    folders = {parent for file in MODULES.values() for parent in file.parents if ROOT in parent.parents}
    assert [f.relative_to(ROOT) for f in folders if not (f / "__init__.py").exists()] == []
    assert not (ROOT / "spaces" / "__init__.py").exists(), "it would hide the PyPI package of that name"
