"""The bundle: whole, alone, replaceable, and its app serves a comparison to a stranger."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import distribution

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from packaging.requirements import Requirement

from recipes.measure import space_check

pytestmark = pytest.mark.long

ZEROGPU_TORCH = ("2.8.0", "2.9.1", "2.10.0", "2.11.0")  # the platform's documentation, August 2026
NOT_IN_THE_SPACE = {"datasets", "onnxruntime-gpu"}  # LoRAs and data sets are for one's own machine
OLDER_IN_THE_SPACE = {"pydantic", "pydantic-core"}  # as Gradio's extra `mcp`, which the platform adds, wants them


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w-]+)==([\w.]+)", text, re.M))


def front_matter(text: str) -> dict[str, str]:
    """The scalars of a README's front matter."""
    block = re.fullmatch(r"---\n(.*?)\n---\n.*", text, re.S)[1]
    return dict(re.findall(r'^(\w+): "?(.+?)"?$', block, re.M))


def test_the_bundle_has_all_that_the_app_needs_and_no_rubbish(bundle):
    names = {f.relative_to(bundle).as_posix() for f in bundle.rglob("*") if f.is_file()}
    assert {"README.md", "app.py", "requirements.txt", "LICENSE", "NOTICE.md", "koala/ui/session.py"} <= names
    assert "koala/embedded/hashes.json" in names
    assert {f"koala/embedded/tiny-{n}/unet/diffusion_pytorch_model.safetensors" for n in ("sdxl", "koala-1b")} <= names
    assert not [n for n in names if "__pycache__" in n or n.startswith(("tests", "spaces", "recipes", "docs"))]


def test_a_dry_run_tells_files_and_size_and_writes_nothing(deploy, bundle, tmp_path):
    done = deploy("--out", tmp_path / "new", "--dry-run")
    assert done.returncode == 0 and not (tmp_path / "new").exists()
    assert "koala/models/registry.py" in done.stdout and re.search(r"^\d+ files, \d+\.\d MB", done.stdout, re.M)


def test_an_earlier_bundle_is_replaced_and_another_folder_is_not(deploy, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    done = deploy("--out", tmp_path / "mine")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "exists already" in done.stderr
    assert [f.name for f in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert deploy("--out", tmp_path / "space").returncode == 0
    (tmp_path / "space" / "stale.py").write_text("")
    assert deploy("--out", tmp_path / "space", "--zerogpu").returncode == 0
    assert not (tmp_path / "space" / "stale.py").exists()
    assert front_matter((tmp_path / "space" / "README.md").read_text())["suggested_hardware"] == "zero-a10g"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["mine", "space"]


def test_a_bundle_that_cannot_be_finished_leaves_the_earlier_one(deploy, tmp_path):
    """A file may have 64 kB here, and the weights have more."""
    out = tmp_path / "space"
    out.mkdir()
    for name in (".koala-space.json", "app.py"):
        (out / name).write_text("{}")
    done = deploy("--out", out, largest=1 << 16)
    assert done.returncode == 1 and "File too large" in done.stderr and len(done.stderr.splitlines()) == 1
    assert sorted(f.relative_to(tmp_path).as_posix() for f in tmp_path.rglob("*")) == [
        "space",
        "space/.koala-space.json",
        "space/app.py",
    ]


def test_the_pins_are_what_zerogpu_runs_and_otherwise_our_own(bundle):
    space, own = (pins((space_check.ROOT / f).read_text()) for f in ("spaces/requirements.txt", "requirements.txt"))
    built = (bundle / "requirements.txt").read_text()
    assert space.items() <= pins(built).items() and "-c " not in built and "-r " not in built  # one file alone
    assert space.pop("torch") in ZEROGPU_TORCH and own.pop("torch")
    assert set(own) - set(space) == NOT_IN_THE_SPACE
    assert {n for n, v in space.items() if own.get(n) != v} == {n.replace("-", "_") for n in OLDER_IN_THE_SPACE}


def test_the_bundle_pins_the_whole_web_stack_each_package_once(bundle):
    text = (bundle / "requirements.txt").read_text().replace("_", "-")
    built, names = pins(text), re.findall(r"^([\w-]+)==", text, re.M)
    assert len(names) == len(set(names)) > 50
    stack = pins((space_check.ROOT / "constraints-server.txt").read_text())
    assert stack.keys() <= built.keys()
    assert {n for n, v in stack.items() if built[n] != v} == OLDER_IN_THE_SPACE


def test_the_bundles_versions_are_those_that_gradios_extras_allow(bundle):
    """The platform installs gradio[oauth,mcp] in the same breath: a version outside ends the build."""
    built = {n.replace("_", "-"): v for n, v in pins((bundle / "requirements.txt").read_text()).items()}
    needs = [Requirement(text) for text in distribution("gradio").requires]
    for extra in ("oauth", "mcp"):
        asked = [n for n in needs if n.marker and n.marker.evaluate({"extra": extra, "python_version": "3.12"})]
        assert asked
        assert [str(n) for n in asked if n.name in built and built[n.name] not in n.specifier] == []


@pytest.mark.slow
@pytest.mark.network
def test_the_platforms_own_command_resolves_the_bundles_versions(bundle, tmp_path):
    """Python 3.12 with what the platform adds: Gradio's extras, uvicorn, websockets and the package `spaces`."""
    report = tmp_path / "report.json"
    gradio = pins((bundle / "requirements.txt").read_text())["gradio"]
    platform = [f"gradio[oauth,mcp]=={gradio}", "uvicorn>=0.14.0", "websockets>=10.4", "spaces"]
    target = ["--python-version", "3.12", "--only-binary=:all:", "--target", tmp_path / "none"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", *target]
    command = [*pip, "--report", report, "-r", bundle / "requirements.txt", *platform]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "yanked version" not in done.stderr, done.stderr
    chosen = {p["metadata"]["name"].lower().replace("_", "-"): p for p in json.loads(report.read_text())["install"]}
    built = {n.replace("_", "-"): v for n, v in pins((bundle / "requirements.txt").read_text()).items()}
    assert {n: chosen[n]["metadata"]["version"] for n in built} == built


def test_the_front_matter_is_of_a_gradio_space_with_our_gradio(bundle):
    text = (bundle / "README.md").read_text()
    result = front_matter(text)
    assert result["sdk"] == "gradio" and result["app_file"] == "app.py" and result["python_version"] == "3.12"
    assert result["sdk_version"] == pins((bundle / "requirements.txt").read_text())["gradio"]
    assert len(result["short_description"]) <= 60 and "suggested_hardware" not in result and "zerogpu:" not in text


def test_our_folder_never_hides_the_package_of_its_name(tmp_path):
    """The repository comes first on the path, the package later, as in site-packages."""
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces" / "__init__.py").write_text("GPU = 'the package'")
    path = os.pathsep.join([str(space_check.ROOT), str(tmp_path)])
    command = [sys.executable, "-c", "import spaces; print(spaces.GPU)"]
    done = subprocess.run(command, cwd=space_check.ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True)
    assert done.stdout.decode().strip() == "the package", done.stderr


def test_the_app_and_the_trainer_of_the_bundle_need_nothing_that_the_space_lacks(bundle, tmp_path):
    program = f"""
import sys
sys.modules |= dict.fromkeys({sorted(NOT_IN_THE_SPACE - {"onnxruntime-gpu"})})  # as if they were not installed
import koala.distill.trainer, koala.ui.build
from koala.distill.config import DistillConfig
from koala.distill.data.sources import source_for
assert source_for(DistillConfig(num_steps=1), 256).parts
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=bundle, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def space(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("running")
    with space_check.running(sys.executable, bundle, folder / "app.log", SYSTEM="spaces") as (url, _):
        yield url, folder
    assert "Traceback" not in (folder / "app.log").read_text()


@pytest.mark.slow
def test_the_space_draws_a_comparison_from_the_bundle_alone(space):
    url, folder = space
    result = space_check.compare(url, folder, steps=2)
    assert [m["model"] for m in result["models"]] == space_check.PAIR and result["speedup"]


def test_whoever_visits_is_a_stranger(space):
    url, folder = space
    client = Client(url, verbose=False)
    given = dict(prompt="a red circle", steps=1, api_name="/generate")
    for model in (str(folder), "someone/their-model"):
        with pytest.raises(AppError, match="(?i)unknown model"):
            client.predict(model=model, **given)
    with pytest.raises(AppError, match="your own machine"):
        client.predict(model="tiny-sdxl", lora="/etc/style.safetensors", **given)
    texts = json.dumps(client.config["components"])
    assert "/koala/embedded" not in texts  # no path of the server
    assert "kx-off" in texts and "kx-start" not in texts and "KOALA_EXPORT=1" in texts  # the export, and what opens it


@pytest.mark.slow
@pytest.mark.browser
def test_a_student_is_distilled_from_the_bundle_alone(bundle, tmp_path, chromium):
    runs, log = tmp_path / "runs", tmp_path / "app.log"
    with (
        space_check.running(sys.executable, bundle, log, SYSTEM="spaces", KOALA_RUNS=str(runs)) as (url, _),
        space_check.visit(url, chromium) as (page, wrong),
    ):
        space_check.distil(page)
    ((run, status),) = ((f.parent, json.loads(f.read_text())) for f in runs.glob(".public/*/status.json"))
    assert status["state"] == "stopped" and 0 < status["step"] < status["num_steps"]
    assert (run / "student" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert not wrong and "Traceback" not in log.read_text() + (run / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.browser
def test_one_variable_lets_strangers_export_from_the_bundle(bundle, tmp_path, chromium):
    exports, log = tmp_path / "exports", tmp_path / "app.log"
    switches = {"KOALA_EXPORT": "1", "KOALA_EXPORTS": str(exports)}
    with (
        space_check.running(sys.executable, bundle, log, SYSTEM="spaces", **switches) as (url, _),
        space_check.visit(url, chromium) as (page, wrong),
    ):
        page.get_by_role("tab", name="Export").click()
        page.get_by_label("U-Net alone").check()
        page.get_by_role("button", name="Start").click()
        page.locator(".kx-job[data-state=done]").wait_for(timeout=600_000)
    assert [f.parent.name for f in exports.glob(".public/*/export.json")] == ["tiny-koala-700m-universal-fp16-unet"]
    assert not wrong and "Traceback" not in log.read_text()


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.browser
def test_the_space_works_in_a_fresh_environment_of_its_own(tmp_path, chromium):
    out = tmp_path / "space.json"
    command = [sys.executable, space_check.__file__, "--chromium", chromium, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(out.read_text())
    assert result["with_spaces"]["versions"]["spaces"] and result["without_spaces"]["versions"]["spaces"] is None
