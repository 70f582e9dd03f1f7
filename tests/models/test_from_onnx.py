"""An exported model on ONNX Runtime: the same pictures as torch, the same run, and refusals instead of surprises."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import onnx as onnx_files
import onnxruntime
import pytest
import torch

from koala.attention.together import prepare
from koala.benchmark.matrix import Matrix
from koala.benchmark.measure import measure
from koala.cli.main import main
from koala.errors import UserError
from koala.evaluate.drawing import clean_latents, placement_for
from koala.export.gates.case import open_case
from koala.export.gates.pictures import psnr
from koala.export.gates.structure import structure
from koala.files.hashing import sha256
from koala.finite import NotFinite
from koala.hardware.cuda import cards
from koala.models.export_manifest import MANIFEST
from koala.models.from_onnx import CPU, OrtModel, open_session
from koala.models.library import Library
from koala.models.registry import find
from koala.request import GenerationRequest
from koala.sampling.compare import compare
from koala.sampling.decoding import decode
from koala.sampling.generate import Cancelled, generate, resolve
from koala.sampling.report import comparison
from koala.sampling.result import read_png
from koala.shapes.judge import judge

TORCH = "tiny-koala-700m"
PROMPTS = (
    "a red circle",
    "a blue square",
    "a large yellow star",
    "a small green cross",
    "a red circle left of a blue square",
    "a purple ring above an orange triangle",
    "a cyan square and a pink circle",
    "a green triangle on a night background",
)


@pytest.fixture(scope="module")
def onnx(library, exported_700m) -> OrtModel:
    return library.get(str(exported_700m))


@pytest.fixture
def copy(tmp_path, exported_700m) -> Path:
    """An export that a test may change."""
    return shutil.copytree(exported_700m, tmp_path / "export")


def test_an_export_that_computes_nan_draws_no_black_picture(copy):
    """Its U-Net has a NaN in a bias, and the manifest knows the file."""
    file = copy / "unet" / "model.onnx"
    graph = onnx_files.load(file)
    bias = next(t for t in graph.graph.initializer if t.name.endswith("conv_out.bias"))
    values = onnx_files.numpy_helper.to_array(bias).copy()
    values[0] = np.nan
    bias.CopyFrom(onnx_files.numpy_helper.from_array(values, bias.name))
    onnx_files.save(graph, file)
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["components"]["unet"]["files"]["unet/model.onnx"] = sha256(file)
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(NotFinite, match="computed NaN") as error:
        generate(request(copy, steps=1, guidance=1.0), Library("cpu").get(str(copy)))
    assert f"python -m koala export --model {TORCH} --dtype fp32 --out DIR" in str(error.value)
    assert f"python -m koala export verify {copy} names the part at fault" in str(error.value)
    finding = structure(open_case(copy))  # the first of its gates
    assert finding.passed is False and "finite" in finding.text and "conv_out.bias" in finding.text


def request(model, **change) -> GenerationRequest:
    return GenerationRequest(
        **dict(model=str(model), prompt=PROMPTS[4], steps=3, seed=1, width=128, height=128) | change
    )


def pixels(result, index=0):
    return np.asarray(result.images[index])


def edit(folder: Path, **change) -> None:
    """Other values in the manifest of an export."""
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(values | change))


@pytest.mark.slow
def test_the_judge_sees_the_same_in_pictures_of_both_runtimes(library, onnx):
    """The file is fp16: how far that alone takes a picture is the weights' own, and torch's fp16 tells.

    By plain Euler: an ancestral step's fresh noise makes a rounding, of whichever runtime, a matter of luck.
    """
    own, half = library.get(TORCH), Library("cpu", dtype="float16").get(TORCH)
    drawn = []
    for m in (own, onnx, half):
        asked = [
            resolve(request(m.card.name, prompt=p, steps=10, seed=k, scheduler="euler-trailing"), m.card)
            for k, p in enumerate(PROMPTS)
        ]
        drawn.append(clean_latents(m, asked, placement_for([m], asked)))
    clean = drawn[0][1]
    error, floor = ((x.float() - clean).flatten(1).norm(dim=1) / clean.flatten(1).norm(dim=1) for _, x in drawn[1:])
    print(f"clean latents apart, relative: {error.tolist()}; torch's own fp16: {floor.tolist()}")
    assert (error < floor).all()
    assert error.median() < 2.5e-3
    with torch.inference_mode():
        pictures = [decode(pipeline.vae, latents) for pipeline, latents in drawn[:2]]
    apart = [psnr(x, y) for x, y in zip(*pictures, strict=True)]
    print(f"PSNR: mean {np.mean(apart):.1f} dB, least {min(apart):.1f} dB")
    assert min(apart) > 40
    verdicts = [[judge(p, prompt).results for p, prompt in zip(side, PROMPTS, strict=True)] for side in pictures]
    assert verdicts[0] == verdicts[1]
    assert any(all(r.holds for r in one) for one in verdicts[0])  # pictures of something


def test_a_batch_draws_the_pictures_of_its_seeds(onnx):
    batch = generate(request(onnx.card.name, images=2, seed=7), onnx)
    alone = generate(request(onnx.card.name, seed=8), onnx)
    difference = np.abs(pixels(batch, 1).astype(int) - pixels(alone).astype(int))
    assert difference.max() <= 1, (difference.max(), difference.mean())
    assert not np.array_equal(pixels(batch, 0), pixels(batch, 1))


def test_a_call_writes_into_nothing_that_it_read(onnx):
    """optimum lets the output be the latents' own memory, which a scheduler may still need."""
    unet, sample = onnx.pipeline.unet, torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    before = sample.clone()
    text, pooled = torch.zeros(2, 77, 96), torch.zeros(2, 64)
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]] * 2)}
    first = unet(sample, 999.0, text, added_cond_kwargs=added).sample
    copied = first.clone()
    second = unet(sample, torch.tensor(1.0), text, added_cond_kwargs=added, return_dict=False)[0]
    assert torch.equal(sample, before) and torch.equal(first, copied)
    assert first.data_ptr() != second.data_ptr() and not torch.equal(first, second)


def test_latents_are_whitened_by_channel_where_the_folder_says_so(copy, monkeypatch):
    """The reverse of (latents - mean) * factor / std, in which such a U-Net learned."""
    mean, std, factor = [-1.6, 1.9, -1.4, 2.5], [8.5, 5.9, 6.5, 5.2], 0.5
    config = copy / "vae_decoder" / "config.json"
    message = {"latents_mean": mean, "latents_std": std, "scaling_factor": factor}
    config.write_text(json.dumps(json.loads(config.read_text()) | message))
    own = np.random.default_rng(0).standard_normal((1, 4, 8, 8))
    learned = np.stack([(own[0, k] - mean[k]) * factor / std[k] for k in range(4)])[None]
    given = []
    vae = Library("cpu").get(str(copy)).pipeline.vae
    whole = vae.compute
    monkeypatch.setattr(vae, "compute", lambda inputs, **sizes: given.append(inputs) or whole(inputs, **sizes))
    assert decode(vae, torch.tensor(learned, dtype=torch.float32))[0].size == (64, 64)
    assert np.allclose(given[0]["latent_sample"].numpy(), own, atol=1e-5)


def test_previews_and_a_cancel_within_one_step(onnx):
    steps, cancel = [], threading.Event()

    def watch(step):
        steps.append(step)
        if step.index == 4:
            cancel.set()

    with pytest.raises(Cancelled):
        generate(request(onnx.card.name, steps=50), onnx, on_step=watch, cancel=cancel, num_previews=20)
    assert [s.index for s in steps] == [1, 2, 3, 4]
    assert any(s.preview for s in steps)
    assert generate(request(onnx.card.name), onnx).images


def test_two_runs_at_once_take_turns(onnx):
    results = {}
    threads = [
        threading.Thread(target=lambda s=s: results.update({s: generate(request(onnx.card.name, seed=s), onnx)}))
        for s in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, result in results.items():
        assert np.array_equal(pixels(result), pixels(generate(request(onnx.card.name, seed=seed), onnx)))


def test_torch_against_onnx_is_one_comparison_that_says_which_is_which(library, onnx):
    results = compare([request(TORCH), request(onnx.card.name)], library)
    assert [r.runtime for r in results] == ["torch", "onnx"]
    assert psnr(*(r.images[0] for r in results)) > 40
    assert results[0].plan and not results[1].plan
    assert all(len(r.timing.unet_ms) == 3 and r.timing.unet_calls == 6 for r in results)
    output = comparison(results, [[], []])
    assert output["versions"]["onnxruntime"] == onnxruntime.__version__
    assert [m["runtime"] for m in output["models"]] == ["torch", "onnx"]
    assert [m["dtype"] for m in output["models"]] == ["float32", "float16"]
    metadata = read_png(results[1].png())
    assert metadata["runtime"] == "onnx" and metadata["versions"]["onnxruntime"] == onnxruntime.__version__
    assert b"Runtime: onnx" in results[1].png() and b"Runtime" not in results[0].png()


def test_its_card_is_the_model_s_own_and_says_that_it_is_an_export(exported_700m):
    card, own = find(str(exported_700m)), find(TORCH)
    assert card.title == f"{own.title} (ONNX)" and card.runtime == "onnx"
    assert card.name == str(exported_700m.resolve())
    for name in ("parameters", "spec", "steps", "guidance", "scheduler", "width", "height", "licence", "teacher"):
        assert getattr(card, name) == getattr(own, name)


def test_a_unet_alone_takes_text_encoders_and_vae_from_its_model(library, onnx, copy):
    components = json.loads((copy / MANIFEST).read_text())["components"]
    edit(copy, components={"unet": components["unet"]})
    for name in (
        "text_encoder",
        "text_encoder_2",
        "vae_decoder",
        "vae_encoder",
        "tokenizer",
        "tokenizer_2",
        "scheduler",
    ):
        shutil.rmtree(copy / name)
    alone = library.get(str(copy))
    assert alone.pipeline.vae is library.get(TORCH).pipeline.vae  # shared, not loaded twice
    pictures = [generate(request(m.card.name), m).images[0] for m in (alone, onnx)]
    assert psnr(*pictures) > 40
    library.forget(alone.card.name)
    edit(copy, model="someone/else")
    with pytest.raises(UserError, match="U-Net alone.*someone/else is not on this machine.*fetch"):
        library.get(str(copy))


@pytest.mark.parametrize("file", ["unet/model.onnx", "vae_decoder/model.onnx"])
def test_a_file_that_was_edited_after_the_export_is_refused_by_name(copy, file):
    with open(copy / file, "ab") as changed:
        changed.write(b"\0")
    with pytest.raises(UserError, match=f"{file} was changed after the export"):
        Library("cpu").get(str(copy))
    (copy / file).unlink()
    with pytest.raises(UserError, match=f"{file} is missing"):
        Library("cpu").get(str(copy))


@pytest.mark.parametrize(
    "provider",
    [
        pytest.param("CUDAExecutionProvider", marks=pytest.mark.slow),
        "TensorrtExecutionProvider",
        pytest.param("NoSuchExecutionProvider", marks=pytest.mark.slow),
    ],
)
def test_a_provider_that_was_not_used_is_an_error_and_not_a_slow_run(exported_700m, provider):
    """ONNX Runtime lists providers that cannot start here, and goes on with the CPU."""
    if cards().available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(UserError, match=provider):
        open_session(exported_700m / "unet" / "model.onnx", provider)
    assert open_session(exported_700m / "unet" / "model.onnx").get_providers() == [CPU]


def test_a_file_that_is_no_graph_is_one_line(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match="cannot open .*model.onnx"):
        open_session(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"lora": "style.safetensors", "lora_strength": 0.5}, "--lora style.safetensors --lora-strength 0.5"),
        ({"preset": "fast"}, "use --preset quality"),
        ({"preset": "low-memory"}, "use --preset quality"),
    ],
)
def test_what_the_graph_cannot_do_is_refused_with_what_to_do_instead(library, onnx, change, remedy):
    with pytest.raises(UserError, match=remedy):
        generate(request(onnx.card.name, **change), onnx)
    with pytest.raises(UserError, match=remedy):
        compare([request(TORCH, **change), request(onnx.card.name, **change)], library)


def test_what_looks_into_the_network_names_the_model_instead(library, exported_700m, tmp_path, capsys):
    name = str(exported_700m)
    with pytest.raises(UserError, match=f"is an export.*{TORCH}"):
        prepare([request(name)], library)
    with pytest.raises(UserError, match=f"is an export.*{TORCH}"):
        list(measure(Matrix(models=(name,)), library))
    distill = ["distill", "--out", str(tmp_path / "run"), f"teacher={name}", "student_spec=koala-700m", "num_steps=1"]
    for arguments in (
        ["attention", "--model", name, "--prompt", "x", "--out", str(tmp_path / "a")],
        ["bench", "--models", name, "--out", str(tmp_path / "b.json")],
        ["similarity", "--model", name, "--out", str(tmp_path / "s.json")],
        ["compress", "--teacher", name, "--spec", "koala-700m", "--out", str(tmp_path / "c")],
        distill,
        ["distill", "--estimate", *distill[3:]],
    ):
        assert main(arguments) == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert "is an export" in message and TORCH in message


def test_the_command_line_takes_names_for_their_exports(exported_700m, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("KOALA_EXPORTS", str(exported_700m.parent))
    given = ["--prompt", "a red circle", "--steps", "2", "--width", "64", "--height", "64"]
    out = str(tmp_path / "a.png")
    assert main(["generate", "--model", TORCH, "--runtime", "onnx", *given, "--json", "--out", out]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["runtime"], report["plan"]) == ("onnx", None)
    assert report["model"] == str(exported_700m.resolve())
    pair = ["--models", TORCH, str(exported_700m)]
    assert main(["compare", *pair, *given, "--out", str(tmp_path / "pair")]) == 0
    assert "against" in capsys.readouterr().out
    for arguments, remedy in (
        (["--model", "tiny-sdxl", "--runtime", "onnx"], "python -m koala export --model tiny-sdxl --out"),
        (["--model", str(exported_700m), "--dtype", "float16"], "--dtype applies to torch only"),
        (["--model", str(exported_700m), "--vram", "4"], "--vram applies to torch only"),
    ):
        assert main(["generate", *arguments, *given, "--out", out]) == 2
        assert remedy in capsys.readouterr().err


def test_int8_for_cpus_is_not_run_on_a_gpu(copy):
    edit(copy, target="cpu-int8")
    library = Library("cpu")
    library.device = torch.device("cuda")
    with pytest.raises(UserError, match="exported for CPUs; use --device cpu"):
        library.get(str(copy))


@pytest.mark.slow
def test_reloading_torch_models_in_one_precision_leaves_an_export_where_it_is(exported_700m):
    library = Library("cpu")
    onnx, own = library.get(str(exported_700m)), library.get(TORCH)
    own.pipeline.unet.to(torch.bfloat16)
    models = library.get_all([str(exported_700m), "tiny-sdxl", TORCH])
    assert models[0] is onnx and models[2] is not own
