"""Every refusal of a download is one line that says what to type."""

import shutil
import subprocess

from tests.models.downloads.conftest import OWN


def one_line(done: subprocess.CompletedProcess, *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert all(part in line for part in parts), line


def test_what_the_hub_refuses_is_one_line_with_what_to_type(hub, run, student, tmp_path):
    hub.add(OWN, student)
    hub.add("someone/gated", student, refuse=(401, "GatedRepo"))
    hub.add("someone/forbidden", student, refuse=(403, ""))
    pickled = shutil.copytree(student, tmp_path / "pickled")
    for file in pickled.glob("unet/*.safetensors"):
        file.unlink()
    hub.add("someone/pickled", pickled)
    flux = shutil.copytree(student, tmp_path / "flux")
    (flux / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    hub.add("someone/flux", flux)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "README.md").write_text("words")
    hub.add("someone/words", tmp_path / "words")

    fetch = ("-m", "koala", "fetch")
    one_line(run(*fetch, "someone/gated"), "accept its licence at", f"{hub.endpoint}/someone/gated", "hf auth login")
    one_line(run(*fetch, "someone/forbidden"), "(403)", "hf auth login")
    one_line(
        run(*fetch, "etri-vilab/koala-700"),
        "there is no folder etri-vilab/koala-700 and no such model at",
        "koala-700m (etri-vilab/koala-700m)",
    )
    one_line(run(*fetch, f"{OWN}@v9"), "no revision 'v9'", "whole commit")
    one_line(run(*fetch, "someone/pickled"), "as a pickle only (unet/", "only safetensors")
    one_line(run(*fetch, "someone/flux"), "is a FluxPipeline")
    one_line(run(*fetch, "someone/words"), "is not a diffusers pipeline")
    assert not any(r.what.endswith(("tensors", ".bin")) and r.repo.endswith(("pickled", "flux")) for r in hub.requests)


def test_no_network_is_one_line_with_what_to_type(hub, run):
    hotel = run("-m", "koala", "fetch", OWN, HF_ENDPOINT=f"{hub.endpoint}/login")
    one_line(hotel, "/login is not a hub", f"python -m koala fetch {OWN}")
    dead = run("-m", "koala", "fetch", "koala-700m", HF_ENDPOINT="http://127.0.0.1:9")
    what, remedy = "koala-700m cannot be fetched to this machine", "python -m koala fetch koala-700m"
    one_line(dead, what, "cannot be reached", remedy)
    offline = run("-m", "koala", "fetch", OWN, HF_HUB_OFFLINE="1")
    one_line(offline, "HF_HUB_OFFLINE is set", f"python -m koala fetch {OWN}")


FULL_DISK = f"""
import shutil
from collections import namedtuple
from koala.cli.main import main

shutil.disk_usage = lambda path: namedtuple("usage", "total used free")(10**6, 0, 10**6)
raise SystemExit(main(["fetch", {OWN!r}]))
"""


def test_a_full_disk_is_refused_before_the_weights_come(hub, run, student):
    hub.add(OWN, student)
    one_line(run("-c", FULL_DISK), "are missing and", "of free space", "HF_HOME=")
    assert hub.fetched(OWN) == ["model_index.json"]
