"""The named endpoints of the running app, through gradio_client and plain HTTP."""

import json
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from safetensors.torch import save_file

import koala
from koala.models.cards import EMBEDDED
from koala.request import GenerationRequest
from koala.sampling.result import read_png

PAIR = ["tiny-sdxl", "tiny-koala-700m"]
HOSTILE = """a red circle <script>alert(1)</script> ${1+1} {{x}} "q" 'q' 🐨"""


@pytest.fixture(scope="module")
def client(app, tmp_path_factory):
    return Client(app.url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


def generate(client, **change):
    given = dict(model="tiny-koala-700m", prompt="a red circle", steps=1, guidance=1.0, api_name="/generate")
    return client.predict(**given | change)


def test_only_the_documented_endpoints_are_named(client):
    described = client.view_api(return_format="dict", print_info=False)
    assert sorted(described["named_endpoints"]) == ["/attention", "/compare", "/generate"]
    assert described["unnamed_endpoints"] == {}
    parameters = [p["parameter_name"] for p in described["named_endpoints"]["/generate"]["parameters"]]
    assert parameters == list(GenerationRequest.__dataclass_fields__)


def test_generate_returns_files_that_carry_the_request(client):
    files, result = generate(client, prompt=HOSTILE, seed=7, images=2, width=128, height=96)
    assert len(files) == 2 and result["images"] == ["koala-tiny-koala-700m-7.png", "koala-tiny-koala-700m-8.png"]
    carried = read_png(files[1])
    assert carried["request"].prompt == HOSTILE and carried["request"].seed == 8
    assert result["request"]["width"] == 128 and result["parameters"] == 1_967_636
    assert set(result["timing"]) >= {"text_ms", "unet_ms", "unet_calls", "vae_ms", "total_ms", "peak_memory_bytes"}
    assert {c["claim"] for c in result["claims"]} >= {"1 object", "circle", "red"}


def test_a_preset_and_a_lora_go_with_the_request(client, tmp_path):
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    factors = {"lora_down": torch.full((1, 32), 0.5), "lora_up": torch.full((32, 1), 0.5)}
    save_file({f"{layer}.{k}.weight": v for k, v in factors.items()}, tmp_path / "style.safetensors")
    plain = generate(client, steps=4, guidance=5.0)
    files, result = generate(
        client, steps=4, guidance=5.0, preset="fast", lora=str(tmp_path / "style.safetensors"), lora_strength=0.8
    )
    assert result["timing"]["unet_calls"] == 6 and plain[1]["timing"]["unet_calls"] == 8
    assert result["lora"] == "1 of its 1 U-Net layers (100%)" and plain[1]["lora"] is None
    carried = read_png(files[0])["request"]
    assert (carried.preset, carried.lora, carried.lora_strength) == ("fast", "style.safetensors", 0.8)
    assert Path(files[0]).read_bytes() != Path(plain[0][0]).read_bytes()


def test_compare_returns_every_model_and_the_speedup(client):
    own = {"steps": [2, 1], "guidance": [1.0, 2.0]}
    files, result = client.predict(models=PAIR, prompt="a blue star", **own, api_name="/compare")
    asked = [m["request"] for m in result["models"]]
    assert [(r["steps"], r["guidance"]) for r in asked] == [(2, 1.0), (1, 2.0)]
    with pytest.raises(AppError, match="Steps has 3 values for 2 models; give one for all"):
        client.predict(models=PAIR, prompt="a blue star", steps=[1, 2, 3], api_name="/compare")
    assert [m["model"] for m in result["models"]] == PAIR and len(files) == 2
    assert [m["model"] for m in result["speedup"]["models"]] == [PAIR[1]] and result["device"]
    assert [r.model for r in read_png(files[0])["compared"]] == PAIR


def test_attention_returns_pictures_a_figure_and_every_row(client):
    files, result = client.predict(
        models=PAIR, prompt=HOSTILE, steps=2, guidance=1.0, pixel=[70, 200], step=2, head=1, api_name="/attention"
    )
    assert [Path(f).name for f in files[:2]] == ["koala-tiny-sdxl-0.png", "koala-tiny-koala-700m-0.png"]
    assert [r.model for r in read_png(files[0])["compared"]] == PAIR and len(files) == 3
    teacher, student = result["stages"]["UP-2"]
    assert (teacher["grid"], student["patch"], len(student["row"])) == ([16, 16], [4, 12], 256)
    assert sum(student["row"]) == pytest.approx(1, abs=1e-3)
    assert student["layer"] == "up_blocks.1.attentions.1.transformer_blocks.1.attn1"
    assert (result["step"], [m["step"] for m in result["models"]], result["head"]) == (2, [2, 2], 1)
    assert result["stages"]["MID"][1] == {"absent": "Tiny KOALA-700M has no MID"}
    assert [m["model"] for m in result["models"]] == PAIR and result["models"][0]["recorded_bytes"] > 0
    assert {r["stage"]: len(r["values"]) for r in result["agreement"]}["UP-2"] == 2
    plain, _ = generate(client, model=PAIR[0], prompt=HOSTILE, steps=2)
    with Image.open(plain[0]) as one, Image.open(files[0]) as other:
        assert one.tobytes() == other.tobytes()


def test_attention_of_one_model_and_one_stage(client):
    files, result = client.predict(
        models=PAIR[1:], prompt="a star", stages=["UP-1"], steps=2, guidance=1.0, step="mean", api_name="/attention"
    )
    assert result["step"] == "mean" and sum(result["stages"]["UP-1"][0]["row"]) == pytest.approx(1, abs=1e-3)
    assert len(files) == 2 and list(result["stages"]) == ["UP-1"] and result["agreement"] is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(models=[]), "one or two names"),
        (dict(models=["tiny-koala-700m"], stages=["MID"]), "has no MID"),
        (dict(stages=["UP-7"]), "there is no stage"),
        (dict(step=9), "step 9 is not in this capture; they count from 1 to 1"),
        (dict(step=0), "step 0 is not in this capture; they count from 1"),
        (dict(head=99), "head 99 is not in this capture; they count from 1 to 2"),
        (dict(pixel=[999, 0]), "outside the picture"),
        (dict(pixel=[1, 2, 3]), "pixel must be"),
        (dict(models=["tiny-sdxl"], same_input=True), "needs a teacher and a student"),
        (dict(prompt=""), "prompt is empty"),
    ],
    ids=str,
)
def test_bad_questions_about_attention_are_refused_with_a_remedy(client, change, words):
    given = dict(models=PAIR, prompt="a star", steps=1, guidance=1.0, api_name="/attention")
    with pytest.raises(AppError) as refused:
        client.predict(**given | change)
    assert words.lower() in str(refused.value).lower()


BAD = [
    (dict(prompt=""), "prompt is empty"),
    (dict(prompt="x" * 10_000), "shorten it to 2,000"),
    (dict(steps=0), "10 to 50 is usual"),
    (dict(steps=10_000), "10 to 50 is usual"),
    (dict(steps="ten"), "steps must be a whole number"),
    (dict(width=13), "64 is the nearest"),
    (dict(width=100_000), "2048 is the nearest"),
    (dict(seed="abc"), "seed must be a whole number"),
    (dict(seed=-1), "seed must lie between 0"),
    (dict(model="tiny-sdlx"), "did you mean tiny-sdxl"),
    (dict(model="nobody/nothing"), "in the Compare tab"),
    (dict(model=None), "model must be text"),
    (dict(model="<img src=x onerror=alert(1)>"), "&lt;img"),
    (dict(scheduler="heun"), "choose one of"),
    (dict(images=999), "next seed"),
    (dict(guidance="high"), "guidance must be a number"),
    (dict(preset="swift"), "choose one of quality, fast, turbo, low-memory"),
    (dict(lora="style.ckpt"), "must be a .safetensors file"),
    (dict(lora="/nowhere/style.safetensors"), "there is no file"),
    (dict(lora_strength=99), "strength must be a number"),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=lambda v: str(v)[:30])
def test_bad_input_is_refused_with_a_remedy(client, change, words):
    with pytest.raises(AppError) as refused:
        generate(client, **change)
    assert words.lower() in str(refused.value).lower()
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("models", [["tiny-sdxl"], "tiny-sdxl", [], ["tiny-sdxl", 3]], ids=str)
def test_bad_lists_of_models_are_refused(client, models):
    with pytest.raises(AppError, match=r"tiny-sdxl|must be text"):
        client.predict(models=models, prompt="a star", steps=1, api_name="/compare")


def test_a_folder_with_a_missing_file_is_refused(client, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(EMBEDDED / PAIR[1], broken)
    (broken / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(AppError, match=r"vae/diffusion_pytorch_model.safetensors is missing.*copy what is missing"):
        generate(client, model=str(broken))


def test_the_app_works_after_all_that(client):
    files, _ = generate(client)
    assert read_png(files[0])["request"].prompt == "a red circle"


# --- what is closed


def status(url: str, body: dict | None = None) -> int:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_private_handlers_cannot_be_called_by_clients(client):
    with pytest.raises(ValueError, match="Cannot find a function"):
        client.predict(api_name="/run")


def test_the_queue_cannot_be_bypassed(app):
    with urllib.request.urlopen(f"{app.url}config", timeout=20) as answer:
        (endpoint,) = (d for d in json.load(answer)["dependencies"] if d["api_name"] == "generate")
    whole = {"data": ["tiny-sdxl", "a star", *[None] * (len(endpoint["inputs"]) - 2)], "fn_index": endpoint["id"]}
    assert status(f"{app.url}gradio_api/run/generate", whole | {"session_hash": "page"}) == 404
    assert status(f"{app.url}gradio_api/run/generate", {"data": ["tiny-sdxl", "a star"]}) == 422


def test_monitoring_and_files_are_closed(app):
    assert status(f"{app.url}monitoring/summary") == 404
    assert status(f"{app.url}gradio_api/file=/etc/passwd") == 403
    assert status(f"{app.url}gradio_api/file=app.py") == 403


def test_the_page_has_an_icon_of_its_own(app):
    with urllib.request.urlopen(f"{app.url}favicon.ico") as answer:
        assert answer.headers["content-type"].startswith("image/png")
        assert answer.read() == (Path(koala.__file__).parent / "ui" / "assets" / "favicon.png").read_bytes()
