"""Nothing is written in place: who reads a file while it is written, or after a full disk, sees the old or the new.

The walk finds every call that writes to a path. It must stand in a `with new_file(...)`, `with new_folder(...)` or
temporary folder, or in a function of the table below, which is handed a path of such a block.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = {"new_file", "new_folder", "TemporaryDirectory", "TemporaryFile", "NamedTemporaryFile"}
METHODS = {"write_text", "write_bytes", "save", "save_pretrained", "save_config", "savez", "tofile", "symlink_to"}
FUNCTIONS = {"save_file", "copyfile", "copy", "copy2", "copytree", "ZipFile", "open"}

# Functions that write to a path which they are handed: (module, function) -> why that is right. A call of one of
# them is itself a write, and has to stand in a block.
HANDED = {
    ("koala.files.tensorfiles", "save_tensors"): "a safetensors file, for others' blocks",
    ("koala.files.tensorfiles", "write_tensors"): "a safetensors file, for others' blocks",
    ("koala.models.pipeline_folder", "write_folder"): "a model in the folder of `compress` or `convert`",
    ("koala.models.pipeline_folder", "_load_in_single"): "a config in the same folder",
    ("koala.models.pipeline_folder", "_write_part"): "a component in the same folder",
    ("koala.models.reading", "complete_tokenizer"): "a config in the folder of `compress`, `convert` or `export`",
    ("koala.attention.archive", "_side"): "a temporary folder of `load`",
    ("koala.distill.run.intact", "write_manifest"): "the last file in the folder of a checkpoint",
    ("koala.models.export_manifest", "write"): "the manifest in the folder of `export`",
    ("koala.export.manifest", "add_metadata"): "a graph in the folder of `export`",
    ("koala.export.to_onnx", "save"): "a graph in the folder of `export`",
    ("koala.export.gates.numbers", "widen"): "a graph in the temporary folder of a gate",
    ("koala.export.network", "write_unet"): "a graph in the temporary folder of a card's report",
    ("koala.export.folder", "_component"): "a component in the folder of `export`",
    ("koala.export.folder", "_settings"): "the settings in the folder of `export`",
    ("koala.export.folder", "_spell_out"): "a tokenizer in the folder of `export`",
    ("koala.export.web.parts", "enclose"): "a file in the folder of `site.write`",
    ("koala.export.web.parts", "entry_of"): "a model's files in the folder of `site.write`",
    ("koala.export.web.parts", "_graph"): "a graph in the folder of `site.write`",
    ("koala.export.web.site", "_fill"): "the page in the folder of `site.write`",
    ("koala.export.web.site", "_runtime"): "the runtime in the folder of `site.write`",
    ("recipes.measure.full_size_export", "make"): "a temporary folder of `main`",
    ("recipes.measure.bk_sdm_speed", "write_pictures"): "a temporary folder of `main`",
    ("recipes.measure.mutants", "copy_of"): "a copy of the project for one mutant, in a temporary folder",
    ("recipes.embedded.assemble", "edit"): "a stage of the chain: a recipe fills its own folder in many steps",
    ("recipes.embedded.assemble", "save_text"): "a stage of the chain",
    ("recipes.embedded.assemble", "save_sampling"): "a stage of the chain",
    ("recipes.embedded.assemble", "main"): "a stage of the chain",
    ("recipes.embedded.assemble", "name_as_of_old"): "a stage of the chain",
    ("recipes.embedded.text", "save_tokenizer"): "a stage of the chain",
    ("recipes.embedded.text", "main"): "a stage of the chain",
}

# Functions that write in place on purpose -> why.
IN_PLACE = {
    ("koala.distill.run.folder", "log"): "appends a line; half a line is left out by its readers",
    ("koala.distill.run.manager", "_launch"): "a log that a process appends to",
    ("koala.hardware.timing", "_reset_process_peak"): "a switch of the kernel, no file",
    ("koala.export.numpy_runner", "main"): "a script that leaves the project with an export and imports nothing of it",
    ("recipes.measure.damage", "flip"): "does damage",
    ("recipes.measure.reliability.alone", "_distil"): "a log that a process appends to",
    ("recipes.measure.reliability.running", "served"): "a log that a process appends to",
    ("recipes.measure.damage", "flip_and_resume"): "a copy that is to be damaged",
    ("recipes.clients.common", "write"): "runs in another program's environment, without the project's packages",
    ("recipes.clients.files", "write_zeros"): "files for other recipes, made again in a minute",
    ("recipes.clients.files", "write_loras"): "the same",
    ("recipes.clients.files", "write_small"): "the same",
    ("recipes.measure.fresh_clone", "main"): "runs without the project's packages",
    ("recipes.measure.optimum_check", "main"): "runs without the project's packages",
    ("recipes.measure.space_check", "main"): "runs without the project's packages",
    ("recipes.measure.space_check", "running"): "a log that a process appends to",
}

# Calls that only look like a write: into memory, or of a function of ours that has its own block.
WHOLE = {
    "stage.save", "archive.save", "record.save", "side.record.save", "result.save", "r.save", "snapshots.save",
    "values.copy", "scene.copy", "picture.copy", "copy.copy",
}  # fmt: skip
MEMORY = {"buffer", "io.BytesIO()"}  # first arguments


def modules() -> Iterator[tuple[str, Path]]:
    files = [f for folder in ("koala", "spaces", "recipes") for f in sorted((ROOT / folder).rglob("*.py"))]
    for file in [*files, ROOT / "app.py"]:
        yield ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), file


def name_of(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def mode_of(call: ast.Call) -> str:
    """What an `open` or `ZipFile` is opened for; reading where nothing is said, anything where it cannot be told."""
    given = [k.value for k in call.keywords if k.arg == "mode"]
    method = isinstance(call.func, ast.Attribute) and ast.unparse(call.func) not in (
        "zipfile.ZipFile",
        "io.open",
        "fsspec.open",
    )
    given += call.args[0 if method else 1 :][:1]
    if not given:
        return "r"
    return given[0].value if isinstance(given[0], ast.Constant) and isinstance(given[0].value, str) else "w"


def is_handed(module: str, name: str) -> bool:
    """Whether a function of the table is called: a private one is its own module's."""
    common = {"main", "edit", "make", "write", "save"}
    return any(f == name and f not in common and (not f.startswith("_") or m == module) for m, f in HANDED)


def writes(module: str, call: ast.Call) -> bool:
    """Whether a call writes to a path."""
    name, text = name_of(call), ast.unparse(call.func)
    if text in WHOLE or call.args and ast.unparse(call.args[0]) in MEMORY:
        return False
    if name in ("open", "ZipFile"):
        opens = name == "ZipFile" or text in ("open", "io.open") or isinstance(call.func, ast.Attribute)
        return (
            opens and bool(set(mode_of(call)) & set("wax+")) and text not in ("os.open", "tarfile.open", "Image.open")
        )
    if name == "copy":
        return text == "shutil.copy"
    return name in METHODS | FUNCTIONS or is_handed(module, name) or text == "exported.write"


def in_place(module: str, tree: ast.AST) -> Iterator[tuple[str, int, str]]:
    """Every write outside a block: (function, line, call)."""

    def walk(node: ast.AST, function: str, safe: bool) -> Iterator[tuple[str, int, str]]:
        if isinstance(node, ast.FunctionDef):
            function, safe = node.name, False
        if isinstance(node, ast.With):
            for item in node.items:
                yield from walk(item, function, safe)
                safe = safe or any(
                    isinstance(c, ast.Call) and name_of(c) in BLOCKS for c in ast.walk(item.context_expr)
                )
            for child in node.body:
                yield from walk(child, function, safe)
            return
        if isinstance(node, ast.Call) and not safe and writes(module, node):
            yield function, node.lineno, ast.unparse(node)[:100]
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function, safe)

    yield from walk(tree, "", False)


def test_nothing_is_written_in_place():
    result = []
    for module, file in modules():
        for function, line, call in in_place(module, ast.parse(file.read_text())):
            if (module, function) not in HANDED and (module, function) not in IN_PLACE:
                result.append(f"{file.relative_to(ROOT)}:{line}: {call}")
    assert not result, "written in place; use koala.files.outputs.new_file or new_folder:\n" + "\n".join(result)


def test_every_exception_is_needed():
    existing = {(module, f) for module, file in modules() for f, _, _ in in_place(module, ast.parse(file.read_text()))}
    assert not (HANDED.keys() | IN_PLACE.keys()) - existing


@pytest.mark.parametrize(
    "line",
    [
        'path.write_text("a")', "picture.save(path)", 'open(path, "w").write("a")', 'path.open(mode="ab")',
        "save_file(tensors, path)", "shutil.copyfile(a, b)", 'zipfile.ZipFile(path, "w")',
        "pipeline.save_pretrained(path)", "save_tensors(path, tensors)", "open(path, mode)",
    ],
)  # fmt: skip
def test_a_write_in_place_is_found(line):
    block = f"with {{}} as path:\n    {line}"
    assert [n for *_, n in in_place("m", ast.parse(line))]
    assert [n for *_, n in in_place("m", ast.parse(block.format("opened(out)")))]
    assert not list(in_place("m", ast.parse(block.format("new_file(out)"))))


@pytest.mark.parametrize(
    "line",
    ["path.read_text()", "open(path)", 'open(path, "rb")', "path.open()", "Image.open(path)", "a.save(buffer, 'PNG')"],
)
def test_reading_and_memory_are_no_writes(line):
    assert not list(in_place("m", ast.parse(line)))
