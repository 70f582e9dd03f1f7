"""From the hub to a picture: which files are asked for, and what a broken connection costs."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from koala.models.cards import EMBEDDED
from koala.models.library import Library
from koala.request import GenerationRequest
from koala.sampling.generate import generate
from tests.models.downloads.conftest import CHUNK, OWN, SMALL, TEXT, UNET, VAE, blobs

SETTINGS = dict(prompt="a red circle", steps=2, width=128, height=128)


def draw(run, model: str, folder: Path, *more: str) -> tuple[dict, np.ndarray]:
    """What `koala generate` says, and its picture, with the network gone: offline, and the hub's address a dead one."""
    options = [text for name, value in SETTINGS.items() for text in (f"--{name}", str(value))]
    command = ("-m", "koala", "generate", "--model", model, *options, *more, "--json", "--out", str(folder / "a.png"))
    done = run(*command, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), np.asarray(Image.open(folder / "a.png"), dtype=int)


def embedded(model: str, guidance: float) -> np.ndarray:
    request = GenerationRequest(model=model, guidance=guidance, **SETTINGS)
    return np.asarray(generate(request, Library("cpu").get(model)).images[0], dtype=int)


def test_only_the_needed_files_come_and_then_the_model_draws_offline_the_same_picture(hub, run, student, tmp_path):
    commit = hub.add(OWN, student)
    fetched = run("-m", "koala", "fetch", OWN, "--json")
    assert fetched.returncode == 0, fetched.stderr
    (entry,) = json.loads(fetched.stdout)
    assert entry["revision"] == commit
    assert Path(entry["location"]).is_relative_to(tmp_path / "home" / "hub")
    assert sorted(hub.fetched(OWN)) == sorted([*SMALL, *TEXT, "vae/config.json", UNET, VAE])
    total = sum((student / f).stat().st_size for f in hub.fetched(OWN)) - (student / "model_index.json").stat().st_size
    assert f"{total / 1e6:,.1f} of {total / 1e6:,.1f} MB" in fetched.stderr
    assert not any(f.name.endswith(".incomplete") for f in blobs(tmp_path))

    ancestral = ("--scheduler", "euler-ancestral-trailing")  # as the registry knows of the model, but not of its copy
    drawn, picture = draw(run, OWN, tmp_path, "--guidance", "5", *ancestral)
    assert drawn["revision"] == commit
    difference = np.abs(picture - embedded("tiny-koala-700m", guidance=5.0))
    print(f"max {difference.max()} mean {difference.mean()}")
    assert difference.max() == 0


def test_a_fetched_model_is_not_fetched_again_and_a_new_commit_brings_only_what_changed(hub, run, student, tmp_path):
    hub.add(OWN, student)
    assert run("-m", "koala", "fetch", OWN).returncode == 0
    hub.requests.clear()
    assert run("-m", "koala", "fetch", OWN).returncode == 0
    assert hub.fetched(OWN) == []
    changed = shutil.copytree(student, tmp_path / "changed")
    (changed / "scheduler" / "scheduler_config.json").write_text('{"timestep_spacing": "leading"}')
    commit = hub.add(OWN, changed)
    (entry,) = json.loads(run("-m", "koala", "fetch", OWN, "--json").stdout)
    assert entry["revision"] == commit
    assert [r.what for r in hub.requests if not r.repo] == []  # no weights: the cache knows them by their hash
    assert "scheduler/scheduler_config.json" in hub.fetched(OWN)


def test_a_cut_connection_goes_on_where_it_broke(hub, run, teacher):
    """The U-Net has 12.9 MB and breaks after 11; huggingface_hub writes pieces of 10 MiB, so one of them is there."""
    hub.add(OWN, teacher)
    hub.cut[Path(UNET).name] = 11_000_000
    fetched = run("-m", "koala", "fetch", OWN)
    assert fetched.returncode == 0, fetched.stderr
    digest = next(d for d, f in hub.blobs.items() if f == teacher / UNET)
    ranges = [r.range for r in hub.requests if r.what == digest and r.method == "GET"]
    assert ranges == [None, f"bytes={CHUNK}-"]


STOP_AT_THE_FIRST_PIECE = f"""
import threading
from koala.models.downloads import DownloadStopped, fetch
from koala.models.registry import find

cancel = threading.Event()
seen = []

def on_progress(done, total, file):
    seen.append((done, total, file))
    if file.endswith({UNET!r}):
        cancel.set()

try:
    fetch(find({OWN!r}), on_progress, cancel)
except DownloadStopped:
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen), seen
    print("stopped at", seen[-1][0], "of", seen[-1][1])
"""


def test_a_stopped_download_goes_on_in_the_next_process(hub, run, teacher, tmp_path):
    hub.add(OWN, teacher)
    stopped = run("-c", STOP_AT_THE_FIRST_PIECE)
    assert "stopped at" in stopped.stdout, stopped.stderr
    (begun,) = [f for f in blobs(tmp_path) if f.name.endswith(".incomplete")]
    assert begun.stat().st_size == CHUNK
    here = json.loads(run("-m", "koala", "models", OWN, "--json").stdout)[0]
    assert not here["available"]
    hub.requests.clear()
    assert run("-m", "koala", "fetch", OWN).returncode == 0
    digest = begun.name.removesuffix(".incomplete")
    assert [r.range for r in hub.requests if r.what == digest and r.method == "GET"] == [f"bytes={CHUNK}-"]
    assert hub.fetched(OWN) == [UNET, VAE, *TEXT]  # what had come before came once


OBTAIN = f"""
from koala.models.downloads import obtain
from koala.models.registry import find

print(obtain(find({OWN!r})).revision)
"""


def test_the_first_use_fetches_and_the_next_asks_nothing(hub, run, student):
    commit = hub.add(OWN, student)
    assert run("-c", OBTAIN).stdout == f"{commit}\n"
    asked = len(hub.requests)
    hub.add(OWN, student.parent)  # a newer commit, which only `fetch` would look for
    assert run("-c", OBTAIN).stdout == f"{commit}\n"
    assert len(hub.requests) == asked


SAME_WEIGHTS = """
from koala.models.library import Library

library = Library("cpu", dtype="float32")
mine, shipped = (library.get(name).pipeline for name in ("sdxl-lightning-4step", "tiny-sdxl"))
assert mine.vae is shipped.vae
theirs = shipped.unet.state_dict()
print("max", max((value - theirs[key]).abs().max().item() for key, value in mine.unet.state_dict().items()))
"""


def test_two_downloads_at_once_fetch_the_weights_once(hub, run, teacher):
    hub.add(OWN, teacher)
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _: run("-m", "koala", "fetch", OWN), range(2)))
    assert [d.returncode for d in done] == [0, 0], [d.stderr[-400:] for d in done]
    asked = [r.what for r in hub.requests if not r.repo and r.method == "GET"]
    assert len(asked) == len(set(asked)) == 4


@pytest.mark.slow
def test_replaced_parts_are_fetched_from_their_own_repositories_and_only_there(hub, run, teacher, tmp_path):
    base = "stabilityai/stable-diffusion-xl-base-1.0"
    commit = hub.add(base, teacher)
    for repo, files in {
        "ByteDance/SDXL-Lightning": {f"sdxl_lightning_{n}step_unet.safetensors": teacher / UNET for n in (2, 4, 8)},
        "madebyollin/sdxl-vae-fp16-fix": {
            "config.json": teacher / "vae" / "config.json",
            "diffusion_pytorch_model.safetensors": teacher / VAE,
            "sdxl.vae.safetensors": teacher / VAE,
        },
    }.items():
        folder = tmp_path / repo
        folder.mkdir(parents=True)
        for name, source in files.items():
            shutil.copy(source, folder / name)
        hub.add(repo, folder)
    tiny = tmp_path / "madebyollin" / "taesdxl"
    tiny.mkdir(parents=True)
    save_file({"x": np.zeros(3, np.float16)}, tiny / "diffusion_pytorch_model.safetensors")
    (tiny / "config.json").write_text("{}")
    (tiny / "taesdxl_decoder.safetensors").write_bytes(b"not wanted")
    hub.add("madebyollin/taesdxl", tiny)

    fetched = run("-m", "koala", "fetch", "sdxl-lightning-4step", "--json")
    assert fetched.returncode == 0, fetched.stderr
    assert sorted(hub.fetched(base)) == sorted([*SMALL, *TEXT])
    assert {r.what for r in hub.requests if r.repo.startswith("ByteDance")} == {
        "api",
        "sdxl_lightning_4step_unet.safetensors",
    }
    assert {r.what for r in hub.requests if r.repo.endswith("fix")} == {
        "api",
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    assert not any(r.repo.endswith("taesdxl") for r in hub.requests)
    revision = json.loads(fetched.stdout)[0]["revision"]
    assert revision.startswith(f"{commit}, unet ")
    assert ", vae " in revision

    loaded = run("-c", SAME_WEIGHTS, HF_HUB_OFFLINE="1")
    assert loaded.stdout == "max 0.0\n", loaded.stderr

    assert run("-m", "koala", "fetch", "sdxl-lightning-4step", "--tiny-vae").returncode == 0
    assert {r.what for r in hub.requests if r.repo.endswith("taesdxl")} == {
        "api",
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }


def test_a_revision_can_be_pinned_by_branch_and_by_commit(hub, run, student, tmp_path):
    old = shutil.copytree(student, tmp_path / "old")
    commits = {"main": hub.add(OWN, student), "v1": hub.add(OWN, old, branch="v1")}
    for model, commit in ((f"{OWN}@v1", commits["v1"]), (f"{OWN}@{commits['main']}", commits["main"])):
        fetched = run("-m", "koala", "fetch", model, "--json")
        assert fetched.returncode == 0, fetched.stderr
        assert json.loads(fetched.stdout)[0]["revision"] == commit
    rows = json.loads(run("-m", "koala", "models", OWN, f"{OWN}@v1", f"{OWN}@v2", "--json", HF_HUB_OFFLINE="1").stdout)
    assert [r["available"] for r in rows] == [False, True, False]  # no branch but v1 was asked for
    assert [r["parameters"] for r in rows] == [None, 1_967_636, None]


def test_weights_without_a_half_precision_variant_come_in_full_precision(hub, run, student, tmp_path):
    folder = shutil.copytree(student, tmp_path / "full")
    for file in folder.glob("*/*.fp16.*"):
        file.unlink()
    for file in (EMBEDDED / "tiny-koala-700m").glob("*/*.safetensors"):
        shutil.copy(file, folder / file.parent.name)
    hub.add(OWN, folder)
    assert run("-m", "koala", "fetch", OWN).returncode == 0
    wanted = [f.replace(".fp16", "") for f in (*TEXT, UNET, VAE)]
    assert sorted(f for f in hub.fetched(OWN) if f.endswith("tensors")) == sorted(wanted)


def test_a_damaged_file_in_the_cache_is_fetched_again(hub, run, student, tmp_path):
    hub.add(OWN, student)
    location = Path(json.loads(run("-m", "koala", "fetch", OWN, "--json").stdout)[0]["location"])
    weights = (location / UNET).resolve()
    weights.write_bytes(weights.read_bytes()[:1000])
    (row,) = json.loads(run("-m", "koala", "models", OWN, "--json").stdout)
    assert "is damaged" in row["needs"]
    assert run("-m", "koala", "fetch", OWN).returncode == 0
    assert (location / UNET).read_bytes() == (student / UNET).read_bytes()


@pytest.mark.slow
def test_a_file_with_a_nan_is_named_so_that_removing_it_helps(hub, run, student, tmp_path):
    """It has the right length: what is to be removed is the file itself, and not the cache's link to it."""
    hub.add(OWN, student)
    location = Path(json.loads(run("-m", "koala", "fetch", OWN, "--json").stdout)[0]["location"])
    tensors = load_file(location / UNET)
    tensors["conv_in.bias"][0] = np.nan
    save_file(tensors, (location / UNET).resolve(), metadata={"format": "pt"})
    command = ("-m", "koala", "generate", "--model", OWN, "--prompt", "a red circle", "--out", str(tmp_path / "a.png"))
    done = run(*command, "--steps", "1")
    assert done.returncode == 2 and "conv_in.bias holds NaN" in done.stderr
    (damaged,) = re.findall(r"remove (\S+) and fetch it again", done.stderr)
    Path(damaged).unlink()
    assert run("-m", "koala", "fetch", OWN).returncode == 0
    assert run(*command, "--steps", "1").returncode == 0


def test_other_bytes_than_announced_are_refused_and_leave_nothing(hub, run, student, tmp_path):
    hub.add(OWN, student)
    hub.corrupt.add(Path(UNET).name)
    fetched = run("-m", "koala", "fetch", OWN)
    assert fetched.returncode == 2
    assert "other bytes than" in fetched.stderr
    assert not any(f.name.endswith(".incomplete") for f in blobs(tmp_path))
    hub.corrupt.clear()
    assert run("-m", "koala", "fetch", OWN).returncode == 0


def test_a_token_reaches_the_hub_and_no_other_host(hub, run, student):
    hub.add(OWN, student)
    assert run("-m", "koala", "fetch", OWN, HF_TOKEN="hf_secret").returncode == 0
    assert {r.token for r in hub.requests if r.repo} == {"Bearer hf_secret"}
    assert {r.token for r in hub.requests if not r.repo} == {None}


def test_a_dry_run_lists_sizes_and_fetches_no_weights(hub, run, student):
    hub.add(OWN, student)
    (plan,) = json.loads(run("-m", "koala", "fetch", OWN, "--dry-run", "--json").stdout)
    sizes = {f["name"]: f["size"] for f in plan["files"]}
    assert sizes[UNET] == (student / UNET).stat().st_size
    assert plan["missing_bytes"] == sum(sizes.values()) - sizes["model_index.json"]
    assert hub.fetched(OWN) == ["model_index.json"]
