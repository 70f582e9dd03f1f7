"""What an import costs, seen in a fresh interpreter: of koala no torch, of any module no I/O."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_arrows import MODULES, ROOT, covers, fail_with, light


def run_python(code: str, *arguments: str, cwd: Path) -> dict:
    """The JSON that the code prints, run by a fresh interpreter in an empty folder that is its home too."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(cwd)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


IMPORT_ALL = """
import importlib, json, sys
before = set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def test_importing_koala_imports_no_torch(tmp_path):
    """Neither does any other module of the list LIGHT: they load the standard library alone."""
    names = [name for name in MODULES if light(name)]
    loaded = run_python(IMPORT_ALL, *names, cwd=tmp_path)
    assert "koala" in loaded
    assert set(loaded) - sys.stdlib_module_names == {"koala"}


FIRST_NAMES = """
import json, sys
import koala
listed = set(koala.__all__) <= set(dir(koala))
from koala import GenerationRequest
print(json.dumps({"listed": listed, "request": GenerationRequest.__module__, "torch": "torch" in sys.modules}))
"""


def test_a_first_name_loads_its_own_module_alone(tmp_path):
    seen = run_python(FIRST_NAMES, cwd=tmp_path)
    assert seen == {"listed": True, "request": "koala.request", "torch": False}


LIST_MODELS = """
import contextlib, io, json, sys
import koala.models.downloads
from koala.cli.main import main
with contextlib.redirect_stdout(io.StringIO()) as printed:
    status = main(["models", "--json"])
models = [card["name"] for card in json.loads(printed.getvalue())]
print(json.dumps({"status": status, "models": models, "torch": "torch" in sys.modules}))
"""


def test_models_are_listed_without_torch(tmp_path):
    """Nor is it there to fetch one: importing it takes two seconds."""
    seen = run_python(LIST_MODELS, cwd=tmp_path)
    assert seen["status"] == 0 and "tiny-sdxl" in seen["models"] and not seen["torch"]


# Lists what our modules themselves do while they are imported. An event is ours if, going out from it, one of
# our files comes before the import system: what other packages do while they are imported does not count.
WATCH_IMPORTS = """
import importlib, json, os, sys
root, names = sys.argv[1], sys.argv[2:]
ours = tuple(os.path.join(root, folder, "") for folder in ("koala",))
events = []

def watch(event, arguments):
    if event == "open" or event.startswith(("os.", "socket.", "subprocess.", "shutil.", "tempfile.")):
        frame = sys._getframe(1)
        while frame is not None and "importlib" not in (file := frame.f_code.co_filename):
            if file.startswith(ours):
                events.append(f"{file}:{frame.f_lineno}: {event} {arguments!r:.200}")
                break
            frame = frame.f_back

sys.addaudithook(watch)
for name in names:
    importlib.import_module(name)
print(json.dumps({"events": events, "gradio": "gradio" in sys.modules}))
"""


@pytest.mark.slow
def test_importing_any_module_does_no_io(tmp_path):
    faces = ("koala.ui.*", "app")
    names = [n for n in MODULES if not n.endswith("__main__") and not any(covers(face, n) for face in faces)]
    seen = run_python(WATCH_IMPORTS, str(ROOT), *names, cwd=tmp_path)
    fail_with([f"I/O at import: {event}" for event in seen["events"]])
    assert not seen["gradio"]
    assert not list(tmp_path.iterdir())
