"""The arrows of the design as data: every module has a level, imports go down or sideways, some go nowhere.

L0 standard library <- L1 torch, numpy, PIL <- L2 diffusers, huggingface_hub <- L3 jobs, export <- L4 faces.
A pattern `a.b.*` covers the package a.b and everything inside it; `*` covers everything.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Every module of koala/ and export/, and app.py. A name wins over a pattern, a longer pattern over a shorter.
LEVELS = {
    0: (
        "koala",
        "koala.specs",
        "koala.fields",
        "koala.part_configs",
        "koala.unet_config",
        "koala.costs",
        "koala.parts",
        "koala.plans",
        "koala.latency",
        "koala.bench_matrix",
        "koala.registry",
        "koala.drawing",
        "koala.layer_map",
        "koala.layout",
        "koala.original_layout",
        "koala.read_json",
        "koala.read_text",
        "koala.similarity_figure",
        "koala.request",
        "koala.resolve",
        "koala.semantics",
        "koala.hub_address",
        "koala.accounting",
        "koala.tokenizer_config",
        "koala.shortage",
        "koala.presets",
        "koala.palette",
        "koala.exported",
        "koala.child",
        "koala.hashing",
        "koala.attention",
        "koala.attention.about",
        "koala.attention.plan",
        "koala.attention.pairing",
        "koala.shapes",
        "koala.shapes.scene",
        "koala.shapes.captions",
        "koala.distill",
        "koala.distill.config",
        "koala.distill.pairs",
        "koala.distill.activations",
        "koala.distill.estimate",
        "koala.distill.memory",
        "koala.distill.data",
        "koala.distill.data.buckets",
        "koala.distill.data.order",
        "koala.distill.data.files",
        "koala.distill.data.content",
        "koala.distill.data.tables",
        "koala.distill.stopping",
        "koala.distill.records",
        "koala.distill.presets",
    ),
    1: (
        "koala.process",
        "koala.outputs",
        "koala.distill.run_folder",
        "koala.distill.reporter",
        "koala.distill.intact",
        "koala.distill.place",
        "koala.distill.resuming",
        "koala.shipped",
        "koala.hooks",
        "koala.finite",
        "koala.tensorfiles",
        "koala.timing",
        "koala.cuda",
        "koala.device",
        "koala.residence",
        "koala.result",
        "koala.fidelity",
        "koala.attention.recorded",
        "koala.attention.agreement",
        "koala.attention.render",
        "koala.attention.colours",
        "koala.attention.figures",
        "koala.attention.maps",
        "koala.attention.pca",
        "koala.attention.questions",
        "koala.attention.view",
        "koala.attention.page",
        "koala.attention.archive",
        "koala.shapes.colour",
        "koala.shapes.render",
        "koala.shapes.reading",
        "koala.shapes.judge",
        "koala.distill.losses",
        "koala.distill.muon",
        "koala.distill.noising",
        "koala.distill.data.samples",
        "koala.distill.data.depths",
        "koala.distill.data.decoding",
        "koala.distill.data.pictures",
        "koala.distill.data.captions",
        "koala.distill.data.metadata",
        "koala.distill.data.beside",
        "koala.distill.data.choice",
        "koala.distill.data.forms",
        "koala.distill.data.shapes",
        "koala.distill.data.encoded",
        "koala.distill.data.rows",
        "koala.distill.data.folder",
        "koala.distill.data.parquet",
        "koala.distill.data.webdataset",
        "koala.distill.draws",
        "koala.distill.ema",
        "koala.distill.optimizers",
        "koala.distill.snapshots",
    ),
    2: (
        "koala.surgery",
        "koala.checkpoints",
        "koala.pipeline_folder",
        "koala.single_file.*",
        "koala.lora",
        "koala.lora_files",
        "koala.lora_formulas",
        "koala.locate",
        "koala.measured",
        "koala.downloads",
        "koala.from_files",
        "koala.networks",
        "koala.loading",
        "koala.runtimes",
        "koala.runtimes.ort",
        "koala.schedulers",
        "koala.guidance",
        "koala.adapters",
        "koala.decoding",
        "koala.nan_causes",
        "koala.tokens",
        "koala.compilation",
        "koala.generate",
        "koala.attention.record",
        "koala.calibration",
        "koala.random_weights",
        "koala.stock",
        "koala.distill.data.encoders",
        "koala.distill.data.chunks",
        "koala.distill.data.filling",
        "koala.distill.data.again",
    ),
    3: (
        "koala.bench",
        "koala.bench_report",
        "koala.compare",
        "koala.out_of_memory",
        "koala.report",
        "koala.similarity",
        "koala.attention.together",
        "koala.distill.step",
        "koala.distill.student_folder",
        "koala.distill.validation",
        "koala.distill.means",
        "koala.distill.preflight",
        "koala.distill.trainer",
        "koala.distill.runs",
        "koala.distill.turns",
        "koala.distill.pauses",
        "koala.distill.forecast",
        "koala.distill.processes",
        "koala.distill.claim",
        "koala.distill.gathering",
        "koala.evaluate.*",
        "koala.distill.data.hub",
        "koala.distill.data.sources",
        "koala.distill.data.cache",
        "export.*",
    ),
    4: (
        "app",
        "export.__main__",
        "export.command",
        "koala.cli",
        "koala.verbs.*",
        "koala.__main__",
        "koala.console",
        "koala.last_resort",
        "koala.ui.*",
    ),
}

# Every package that is imported, by its import name; the standard library is L0.
PACKAGES = {
    1: ("torch", "numpy", "PIL", "scipy", "safetensors", "bitsandbytes", "filelock", "fsspec", "pyarrow", "psutil"),
    2: ("diffusers", "huggingface_hub", "transformers", "tokenizers", "onnxruntime", "open_clip"),
    3: ("accelerate", "datasets", "onnx", "onnx_ir", "onnxscript"),
    4: ("gradio", "gradio_client", "starlette"),
}


@dataclass(frozen=True, kw_only=True)
class Never:
    """`importer` never imports `imported`, whatever their levels; `but` names the importers that may."""

    importer: str
    imported: str
    reason: str
    but: tuple[str, ...] = ()


NEVER = (
    Never(importer="*", imported="gradio.*", but=("koala.ui.*",), reason="the core has no face"),
    Never(importer="*", imported="gradio_client.*", but=("koala.ui.*",), reason="the core has no face"),
    Never(importer="koala.*", imported="export.*", reason="the export is built on koala"),
    Never(importer="export.*", imported="koala.ui.*", reason="the export knows models, not faces"),
    Never(importer="export.*", imported="koala.cli", reason="the export has its own command line"),
    Never(importer="export.*", imported="koala.distill.*", reason="a trained model is a folder like any"),
    Never(importer="koala.ui.*", imported="koala.cli", reason="they are two faces of one core"),
    Never(importer="koala.ui.*", imported="koala.verbs.*", reason="they are two faces of one core"),
    Never(importer="koala.verbs.*", imported="koala.cli", reason="the command line is made of its verbs"),
    Never(importer="koala.attention.*", imported="koala.distill.*", reason="what they share is below both"),
    Never(importer="koala.distill.*", imported="koala.attention.*", reason="what they share is below both"),
    Never(importer="*", imported="spaces.*", reason="a deployment folder, and the name of a PyPI package"),
    Never(importer="*", imported="tests.*", reason="the code does not know its tests"),
    Never(importer="*", imported="recipes.*", reason="recipes are run, not imported"),
    Never(importer="*", imported="app", reason="the entry point is run, not imported"),
)

# Imports that may go against the arrows, inside a function only: (importer, imported) -> reason.
LAZY = {
    ("koala.registry", "koala.single_file.*"): "a file's card is told by its header; read when a file is named",
    ("koala.ui.tabs.export", "export.*"): "the tab is the export's face; loads it when asked",
}


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import as it stands in a file; `lazy` inside a function."""

    importer: str
    imported: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        file = MODULES[self.importer].relative_to(ROOT)
        return f"{file}:{self.line}: {self.importer} imports {self.imported}"


def find_modules() -> dict[str, Path]:
    """Dotted name -> file, of koala/, export/ and app.py."""
    files = [f for folder in ("koala", "export") for f in (ROOT / folder).rglob("*.py")] + [ROOT / "app.py"]
    names = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}
    return {name: file for name, file in sorted(names.items()) if file.exists()}


MODULES = find_modules()


def covers(pattern: str, name: str) -> bool:
    """Whether a pattern of this file means this dotted name."""
    if pattern.endswith(".*"):
        return name == pattern[:-2] or name.startswith(pattern[:-1])
    return pattern in ("*", name)


def level_of(name: str) -> int | None:
    """The level of a module or package; None where the tables do not place it."""
    placed = {entry: level for level, entries in LEVELS.items() for entry in entries}
    if name in placed:
        return placed[name]
    for pattern in sorted(placed, key=len, reverse=True):
        if covers(pattern, name):
            return placed[pattern]
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        return 0
    return next((level for level, packages in PACKAGES.items() if top in packages), None)


def with_packages(name: str) -> list[str]:
    """a.b.c -> a, a.b, a.b.c: importing a module runs its packages first."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def targets(node: ast.AST, importer: str) -> list[str]:
    """The dotted names that one statement or call imports."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            base = node.module or ""
            if node.level:  # relative: one dot is the package of the importer
                is_package = MODULES[importer].name == "__init__.py"
                package = importer.split(".")[: len(importer.split(".")) - node.level + is_package]
                base = ".".join([*package, *([base] if base else [])])
            return [name if (name := f"{base}.{alias.name}") in MODULES else base for alias in node.names]
        case ast.Call(func=ast.Name(id=function) | ast.Attribute(attr=function), args=[ast.Constant(value=name), *_]):
            return [name] if function in ("import_module", "__import__") else []
    return []


def imports(importer: str) -> Iterator[Import]:
    """Every import of one module, also in functions and under TYPE_CHECKING, and its own packages."""
    for package in with_packages(importer)[:-1]:
        yield Import(importer=importer, imported=package, line=1, lazy=False)

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for target in targets(node, importer):
            for name in with_packages(target) if target in MODULES else [target]:
                yield Import(importer=importer, imported=name, line=node.lineno, lazy=lazy)
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, lazy)

    yield from walk(ast.parse(MODULES[importer].read_text(encoding="utf-8")), False)


def allowed_lazily(found: Import) -> bool:
    return found.lazy and any(
        covers(importer, found.importer) and covers(imported, found.imported) for importer, imported in LAZY
    )


def least_level(name: str, seen: tuple[str, ...] = ()) -> int:
    """The lowest level that a module's imports allow it."""
    found = {i.imported for i in imports(name)} - {*seen, name}
    levels = [(i, level_of(i)) for i in found]
    unplaced = [i for i, level in levels if level is None and i in MODULES]
    return max([level or 0 for _, level in levels] + [least_level(i, (*seen, name)) for i in unplaced], default=0)


def fail_with(problems: list[str]) -> None:
    if problems:
        pytest.fail("\n".join(dict.fromkeys(problems)), pytrace=False)


def test_every_module_has_a_level():
    fail_with(
        [
            f"{file.relative_to(ROOT)} has no level: in tests/test_arrows.py add "
            f'"{name}", to LEVELS[{least}] (or higher: its imports ask for L{least})'
            for name, file in MODULES.items()
            if level_of(name) is None and (least := least_level(name)) is not None
        ]
    )


def test_the_table_names_only_what_is_there():
    """A pattern may be ahead of its folder."""
    entries = Counter(entry for names in LEVELS.values() for entry in names)
    gone = [entry for entry in entries if not entry.endswith(".*") and entry not in MODULES]
    twice = [entry for entry, count in entries.items() if count > 1]
    fail_with(
        [f'there is no module {e}: in tests/test_arrows.py take "{e}" out of LEVELS' for e in gone]
        + [f'"{e}" stands twice: in tests/test_arrows.py take one out of LEVELS' for e in twice]
    )


def test_imports_go_down_or_sideways():
    problems = []
    for name in MODULES:
        own = level_of(name)
        for found in imports(name):
            level = level_of(found.imported)
            forbidden = any(covers(rule.imported, found.imported) for rule in NEVER)
            if found.imported.startswith(("koala.", "export.")) and found.imported not in MODULES:
                problems.append(f"{found}: there is no such module")
            elif level is None and not forbidden and found.imported not in MODULES:
                problems.append(
                    f"{found}, which has no level: add it to PACKAGES in tests/test_arrows.py, "
                    f"and to requirements.txt and pyproject.toml"
                )
            elif None not in (own, level) and level > own and not allowed_lazily(found):
                problems.append(f"{found}: up from L{own} to L{level}")
    fail_with(problems)


def test_some_imports_never_happen():
    problems = []
    for name in MODULES:
        for found in imports(name):
            for rule in NEVER:
                if (
                    covers(rule.importer, name)
                    and covers(rule.imported, found.imported)
                    and not any(covers(pattern, name) for pattern in rule.but)
                    and not allowed_lazily(found)
                ):
                    problems.append(f"{found}: never ({rule.reason})")
    fail_with(problems)


def test_every_lazy_exception_is_used():
    """An exception may be ahead of its module."""
    problems = []
    for importer, imported in LAZY:
        found = [i for name in MODULES if covers(importer, name) for i in imports(name)]
        if found and not any(i.lazy and covers(imported, i.imported) for i in found):
            problems.append(f"{importer} does not import {imported} in a function: take its line out of LAZY")
    fail_with(problems)


def test_every_folder_with_code_is_a_package_except_spaces():
    """Without an __init__.py a folder is left out of the wheel; with one, `spaces` hides the PyPI package."""
    folders = {parent for file in MODULES.values() for parent in file.parents if ROOT in parent.parents}
    bare = [folder.relative_to(ROOT) for folder in folders if not (folder / "__init__.py").exists()]
    fail_with([f"{folder} needs an __init__.py" for folder in sorted(bare)])
    assert not list((ROOT / "spaces").rglob("__init__.py"))
