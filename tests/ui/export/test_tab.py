"""The Export tab without a browser: what a process says, what may be begun, what is shown, packed and deleted."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace

import gradio as gr
import pytest

from koala.errors import UserError
from koala.export.estimate import Estimate, Progress
from koala.export.gates.case import Finding
from koala.export.reporting import ProgressReporter
from koala.export.targets import TARGETS
from koala.export.to_tensorrt import recipe
from koala.export.verify import GATES
from koala.models.export_manifest import MANIFEST, Exported, list_exports
from koala.ui.export import panel as export_panel
from koala.ui.export.jobs import DONE, FAILED, RUNNING, STOPPED, Job, Process
from koala.ui.export.panel import lines_to_copy
from koala.ui.export.store import Exports, Order
from koala.ui.export.tab import Export
from koala.ui.session import Session

VISITOR = SimpleNamespace(session_hash="visitor")
ORDER = Order(model="tiny-koala-700m", target="universal", dtype="fp16", components="unet")

HALF_WRITTEN = """
import sys, time
from pathlib import Path
from koala.files.outputs import new_folder
with new_folder(Path(sys.argv[1]), 1):
    print('{"kind": "progress", "stage": "trace unet", "share": 0.01, "left_s": null}', file=sys.stderr, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("KOALA_EXPORTS", str(tmp_path / "exports"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "files"))
    return tmp_path / "exports"


@pytest.fixture
def shelf(root, exported_700m):
    """A copy of an export in the place where the tab looks."""
    shutil.copytree(exported_700m, root / "one")
    return root


def tab(session: Session | None = None) -> Export:
    with gr.Blocks():
        return Export(session or Session())


def job(folder, **settings) -> Job:
    return Job(title="Tiny KOALA-700M for universal, fp16", folder=folder, **settings)


def shown(page: Export, chosen: str = "") -> dict:
    """The first update of the page, by the components' names."""
    update = page.look(chosen, {})
    names = {component: name for name, component in vars(page).items() if isinstance(component, gr.blocks.Block)}
    return {names[component]: value for component, value in update.items()}


def printed(capsys, say, *what) -> list[str]:
    """The lines that the export prints for a program when it says this."""
    say(ProgressReporter(lines=True), *what)
    return capsys.readouterr().err.splitlines(keepends=True)


def test_what_the_export_says_is_heard(tmp_path, capsys):
    heard = job(tmp_path)
    estimate = Estimate(memory=700_000_000, disk=60_000_000, seconds=52)
    for line in printed(capsys, ProgressReporter.estimate, "tiny-koala-700m for universal", estimate):
        heard.hear(line)
    strange = [
        "/some/file.py:105: FutureWarning: 10%  of it is old\n",
        '{"half of\n',
        "[1]\n",
        "7\n",
        '{"kind": "error"}\n',
    ]
    stages = [("trace unet", 0.0, None), ("convert vae_decoder, about 5 s left", 0.39, 67.4)]
    for text, done, left in stages:
        for line in printed(capsys, ProgressReporter.progress, Progress(text=text, done=done, left=left)):
            heard.hear(line)
    for line in strange:
        heard.hear(line)
    assert heard.message.startswith("will take about 0.7 GB of memory")
    assert [step.text for step in heard.steps] == [text for text, *_ in stages]
    assert (heard.share, heard.left) == (0.39, 67.4)
    assert "1 min 7 s" in export_panel.standing(heard)
    findings = [Finding(gate=g, passed=p, text=f"{g} said\nso") for g, p in (("structure", True), ("parts", None))]
    for finding in findings:
        for line in printed(capsys, ProgressReporter.finding, finding):
            heard.hear(line)
    assert [(f["gate"], f["passed"], f["text"]) for f in heard.findings] == [
        ("structure", True, "structure said\nso"),
        ("parts", None, "parts said\nso"),
    ]
    assert list(heard.log) == [line.rstrip() for line in strange]


def test_people_at_a_terminal_read_sentences(capsys):
    reporter = ProgressReporter(lines=False)
    reporter.estimate("tiny-sdxl for web", Estimate(memory=700_000_000, disk=60_000_000, seconds=52))
    reporter.progress(Progress(text="trace unet", done=0.39, left=67.4))
    reporter.finding(Finding(gate="speed", passed=False, text="slow"))
    reporter.finding(Finding(gate="structure", passed=True, text="valid"), sys.stdout)
    output = capsys.readouterr()
    assert output.err.splitlines() == [
        "tiny-sdxl for web will take about 0.7 GB of memory, 0.06 GB of disk and 52 s, gates not counted",
        " 39%  trace unet, about 67 s left",
        "FAIL  speed      slow",
    ]
    assert output.out == "pass  structure  valid\n" and reporter.error is None


def test_the_page_knows_every_gate_and_shows_which_runs(tmp_path, capsys):
    assert list(export_panel.GATES) == list(GATES)
    heard = job(tmp_path)
    for line in printed(capsys, ProgressReporter.finding, Finding(gate="structure", passed=True, text="valid")):
        heard.hear(line)
    page = export_panel.standing(heard)
    words = [page.split(f'data-gate="{gate}" data-word="')[1].split('"')[0] for gate in GATES]
    assert words == ["pass", "runs"] + ["waits"] * (len(GATES) - 2)


ENDED = {"kind": "finding", "gate": "numbers", "passed": False, "text": "fp16 is off", "figures": {}}
STAGE = {"kind": "progress", "stage": "trace unet", "share": 0.1, "left_s": 5.0}


@pytest.mark.parametrize(
    ("lines", "code", "state", "words"),
    [
        (["export: [Errno 28] No space left on device"], 1, FAILED, "[Errno 28] No space left on device"),
        (
            [{"kind": "error", "text": "unknown model 'x'; choose another"}, "bye"],
            2,
            FAILED,
            "unknown model 'x'; choose",
        ),
        ([ENDED], 1, FAILED, "the gate 'numbers', and nothing was"),
        ([STAGE], -signal.SIGKILL, FAILED, "lack of memory"),
    ],
    ids=["full disk", "bad use", "gate", "killed"],
)
def test_an_export_that_fails_says_why_in_one_line(tmp_path, lines, code, state, words):
    heard = job(tmp_path)
    for line in lines:
        heard.hear(line if isinstance(line, str) else json.dumps(line))
    heard.end(code, '{"findings": [')  # cut off
    assert heard.state == state and words in heard.message and "\n" not in heard.message
    assert words.replace("'", "&#39;")[1:] in export_panel.standing(heard)


@pytest.mark.slow
def test_a_process_that_cannot_begin_ends_with_its_own_words(tmp_path):
    heard = job(tmp_path / "out")
    words = ["--json", "--progress", "json", "--model", "tiny-koala-700m", "--out", str(tmp_path), "--target", "abacus"]
    process = Process(heard, words)
    process.wait(120)
    assert heard.error
    assert heard.state == FAILED and heard.message.startswith("unknown target 'abacus'; choose one of universal")


def test_what_a_killed_export_left_is_removed(tmp_path):
    """Killed as for lack of memory, it cannot clean up; the app does."""
    command = [sys.executable, "-u", "-c", HALF_WRITTEN]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("koala.ui.export.jobs.COMMAND", command)
        heard = job(tmp_path / "out")
        process = Process(heard, [str(tmp_path / "out")])
    while not heard.steps:
        time.sleep(0.05)
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".partial")
    os.kill(process._process.pid, signal.SIGKILL)
    process.wait(20)
    assert heard.state == FAILED and "killed" in heard.message
    assert list(tmp_path.iterdir()) == []


def test_one_export_at_a_time_and_every_mistake_is_named(root):
    exports = Exports(Session())
    for order, words in (
        (Order(model="koala-700m", target="universal", dtype="fp16"), "not on this machine|is not here|fetch"),
        (Order(model="no-such-model", target="universal", dtype="fp16"), "unknown model"),
    ):
        with pytest.raises(UserError, match=words):
            exports.start(order, "visitor")
    exports.job = job(root / "first")
    with pytest.raises(UserError, match="is running; wait until it ends"):
        exports.start(ORDER, "visitor")
    assert not root.exists()


def test_strangers_export_nothing_unless_the_app_says_so(root):
    closed = tab(Session(local=False))
    assert not hasattr(closed, "start")
    with pytest.raises(UserError, match="off on this server"):
        closed.exports.start(ORDER, "stranger")
    opened = Exports(Session(local=False, exports=True))
    few = ["tiny-lightning", "tiny-koala-lightning-1b", "tiny-koala-lightning-700m"]
    assert [name for _, name in opened.models()] == ["tiny-sdxl", "tiny-koala-1b", "tiny-koala-700m", *few]
    assert opened.root == root / ".public"
    with pytest.raises(UserError, match="without a LoRA"):
        opened.start(Order(model="tiny-sdxl", target="universal", dtype="fp16", lora="/etc/passwd"), "stranger")
    for deed in (lambda: opened.delete("one"), lambda: opened.check("one", None, "stranger")):
        with pytest.raises(UserError, match="your own machine"):
            deed()
    opened.job = job(root / ".public" / "one", visitor="somebody")
    with pytest.raises(UserError, match="another visitor"):
        opened.stop("stranger")


def test_the_folder_says_what_is_in_it_and_no_two_are_one(root):
    exports = Exports(Session())
    card = exports.session.catalogue.card("tiny-koala-700m")
    assert ORDER.stem(card) == "tiny-koala-700m-universal-fp16-unet"
    odd = Order(model=card.name, target="cpu-int8", dtype="fp32", lora="/x/My LoRA ü;rm -rf.safetensors")
    assert odd.stem(card) == "tiny-koala-700m-cpu-int8-fp32-My-LoRA-rm-rf"
    for expected in ("a", "a-2", "a-3"):
        assert exports._free("a") == expected
        (root / expected).mkdir(parents=True)


def test_every_target_offers_its_own_weights(root):
    page = tab()
    assert page.target.choices == [(name, name) for name in TARGETS]
    for name, target in TARGETS.items():
        description, dtype = page.aim(name)
        assert target.text in description and [c[0] for c in dtype.choices] == list(target.dtypes)


def test_an_export_is_shown_with_sizes_figures_and_lines(shelf):
    page = shown(tab())
    assert page["chosen"] == "one"
    exported = Exported.read(shelf / "one")
    for name, part in exported.components.items():
        assert export_panel.NAMES[name] in page["details"] and f"{part.parameters:,}" in page["details"]
    assert "has not passed any gate" in page["details"]
    assert "koala generate --model" in page["lines"] and "numpy_runner.py" in page["lines"]
    assert "--stronglyTyped" in page["lines"]
    assert page["save"]["visible"] and page["check"]["visible"] and page["ask_delete"]["visible"]


def test_the_figures_that_an_export_carries_are_told(shelf):
    exported = Exported.read(shelf / "one")
    parity = {
        "passed": ["structure", "numbers", "speed"],
        "skipped": ["pictures"],
        "numbers": {"file": 3.5e-4, "twin": 4.2e-7},
    }
    values = json.loads((shelf / "one" / MANIFEST).read_text()) | {"parity": parity}
    (shelf / "one" / MANIFEST).write_text(json.dumps(values))
    assert exported.parity == {}
    details = shown(tab())["details"]
    assert "the file 3.5e-04, the same graph in fp32 4.2e-07" in details
    assert re.findall(r'data-gate="(\w+)" data-word="(\w+)"', details) == [
        ("structure", "pass"),
        ("numbers", "pass"),
        ("pictures", "skip"),
        ("speed", "pass"),
    ]


def test_what_the_gates_found_here_has_the_ratio_first(shelf):
    page = tab()
    finding = {
        "gate": "speed",
        "passed": True,
        "text": "1.76x",
        "figures": {"ratio": 1.76, "ms": {"onnx": 21.0, "torch": 36.9}, "threads": 2},
    }
    page.exports.job = job(shelf / "one", checks=True)
    page.exports.job.end(0, json.dumps({"findings": [finding]}))
    assert page.exports.job.state == DONE
    details = shown(page)["details"]
    assert "<strong>1.76×</strong>" in details and "21.0 ms in ONNX Runtime, 36.9 ms in torch" in details
    assert "2 threads" in details


def test_a_manifest_that_cannot_be_read_hides_nothing_else(shelf):
    (shelf / "two").mkdir()
    (shelf / "two" / MANIFEST).write_text('{"format": 1')
    page = shown(tab(), "two")
    assert "damaged" in page["details"] and not page["save"]["visible"] and page["ask_delete"]["visible"]
    assert "one" in page["list"] and "unreadable" in page["list"]


def test_the_lines_for_onnx_runtime_run_as_they_stand(exported_700m):
    lines = lines_to_copy(Exported.read(exported_700m), str(exported_700m), {})
    (step,) = [line.text for line in lines if "onnxruntime" in line.text]
    done = subprocess.run([sys.executable, "-c", step], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 4, 32, 32) float16"


def test_a_target_that_tensorrt_cannot_take_says_so_instead_of_lines(shelf):
    values = json.loads((shelf / "one" / MANIFEST).read_text()) | {"target": "cpu-int8", "dtype": "dynamic-int8"}
    (shelf / "one" / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(UserError):
        recipe(shelf / "one")
    lines = shown(tab())["lines"]
    assert "trtexec" not in lines and "TensorRT has neither" in lines


def test_strangers_learn_no_path_of_this_machine(shelf, exported_700m):
    for name, values in (("one", {"target": "cpu-int8", "dtype": "dynamic-int8"}), ("two", {"format": 99})):
        shutil.copytree(exported_700m, shelf / ".public" / name)
        manifest = shelf / ".public" / name / MANIFEST
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | values))
    page = tab(Session(local=False, exports=True))
    page.exports.job = job(shelf / ".public" / "three")
    needs = {"kind": "error", "text": f"{shelf / '.public' / 'three'} needs 9.00 GB"}
    page.exports.job.hear(json.dumps(needs))
    page.exports.job.end(1, "")
    for name, words in (("one", "one is an export for cpu-int8"), ("two", "two/export.json is of format 99")):
        values = repr(shown(page, name))
        assert words in values and "Three needs 9.00 GB" in values and str(shelf.parent) not in values


def test_the_zip_holds_every_file_as_it_is(shelf):
    packed = Exports(Session()).pack("one")
    assert packed.name == "one.zip"
    with zipfile.ZipFile(packed) as archive:
        assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}
        files = {f"one/{f.relative_to(shelf / 'one').as_posix()}" for f in (shelf / "one").rglob("*") if f.is_file()}
        assert set(archive.namelist()) == files
        assert archive.read("one/unet/model.onnx") == (shelf / "one" / "unet" / "model.onnx").read_bytes()
    (shelf / "one" / "tensorrt.md").write_text("lines")  # made later, and not named in the manifest
    with zipfile.ZipFile(Exports(Session()).pack("one")) as archive:
        assert archive.read("one/tensorrt.md") == b"lines"


def test_a_large_export_is_taken_from_its_folder(shelf, monkeypatch):
    for module in ("koala.ui.export.store", "koala.ui.export.tab"):
        monkeypatch.setattr(f"{module}.LARGEST_ZIP", 1000)
    page = tab()
    assert not shown(page)["save"]["visible"] and str(shelf / "one") in shown(page)["details"]
    with pytest.raises(UserError, match="copy its folder"):
        page.exports.pack("one")


def test_deleted_after_a_question_and_never_while_it_draws(shelf):
    session = Session()
    page = tab(session)
    _, question = page.ask("one")
    assert "Delete one for good" in question
    with session.device.using(str((shelf / "one").resolve())), pytest.raises(gr.Error, match="drawing"):
        page.remove("one", {})
    page.remove("one", {})
    assert list_exports(shelf) == [] and list(shelf.iterdir()) == []


@pytest.mark.slow
def test_stop_leaves_nothing(root):
    exports = Exports(Session())
    begun = exports.start(ORDER, "visitor")
    assert begun.state == RUNNING
    deadline = time.monotonic() + 240
    while "trace unet" not in [step.text for step in begun.steps] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [f.name for f in root.iterdir()] == [f".{begun.folder.name}.{exports._process._process.pid}.partial"]
    exports.stop("visitor")
    exports._process.wait(60)
    assert begun.state == STOPPED and begun.message == "stopped; nothing was written"
    assert list(root.iterdir()) == []
