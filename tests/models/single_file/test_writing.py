"""One file in SDXL's original layout: what ComfyUI detects in it, what diffusers reads from it, what is refused."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from koala.convert.to_single_file import detected, identity_middle, original_tensors, write_single_file
from koala.errors import UserError
from koala.export.command import main
from koala.files.tensorfiles import StoredTensor, stored_tensors
from koala.models.checkpoints import UNetCheckpoint, open_unet
from koala.models.layout import STEMS
from koala.models.networks import matched
from koala.unet.parts import SDXL_PARTS
from koala.unet.specs import BK_SDXL, KOALA_1B, KOALA_700M, SDXL, SSD_1B, TINY_KOALA_700M, VEGA

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The single file of tiny-koala-700m, and its report."""
    out = tmp_path_factory.mktemp("single") / "koala.safetensors"
    return out, write_single_file("tiny-koala-700m", out)


@pytest.fixture
def copy(tmp_path, embedded) -> Path:
    """A folder of tiny-koala-700m that a test may change."""
    return shutil.copytree(embedded / "tiny-koala-700m", tmp_path / "my-model")


def full_size(spec, folder: Path) -> UNetCheckpoint:
    """A model of SDXL's widths as names and shapes; its files would be read only when it is written."""
    with torch.device("meta"):
        parts = {
            "text_encoder": CLIPTextModel(CLIPTextConfig(**SDXL_PARTS.text.config())),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**SDXL_PARTS.text_2.config())),
            "vae": AutoencoderKL(**SDXL_PARTS.vae.config()),
        }
        unet = UNet2DConditionModel(**spec.config()).state_dict()
    pipeline, result = {"vae/config.json": folder / "vae" / "config.json"}, {}
    for name, module in parts.items():
        file = folder / name / f"{STEMS[name]}.safetensors"
        file.parent.mkdir(parents=True)
        result[name] = matched(name, file.parent, module, stored_tensors(sparse(file, module.state_dict())))
    parts["vae"].save_config(folder / "vae")
    stored = {
        k: StoredTensor(file=folder, name=k, start=0, size=0, dtype="F16", shape=tuple(v.shape))
        for k, v in unet.items()
    }
    return UNetCheckpoint(
        name="x", spec=spec, config={}, tensors=stored, revision="local", pipeline=pipeline, parts=result
    )


def sparse(file: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """A safetensors file of zeros in fp16 that takes no room on the disk."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F16", "shape": tensor.shape, "data_offsets": (end, end + 2 * tensor.numel())}
        end += 2 * tensor.numel()
    encoded = json.dumps(header).encode()
    with open(file, "wb") as out:
        out.write(len(encoded).to_bytes(8, "little") + encoded)
        out.truncate(8 + len(encoded) + end)
    return file


def comfyui_sees(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """What ComfyUI derives from the names and shapes of a U-Net in the original layout; its rules, restated.

    It walks the numbered blocks of the encoder along with those of the decoder in reverse. A block with `0.op` ends a
    resolution; one with `0.in_layers` is a residual block, whose transformer, if any, is its part 1.
    """

    def depth(block: str) -> int:
        start = f"{UNET}{block}.1.transformer_blocks."
        return len({name[len(start) :].split(".")[0] for name in shapes if name.startswith(start)})

    def residual(block: str) -> bool:
        return f"{UNET}{block}.0.in_layers.0.weight" in shapes

    width = shapes[f"{UNET}input_blocks.0.0.weight"][0]
    count = len({name.split(".")[3] for name in shapes if name.startswith(f"{UNET}input_blocks.")})
    blocks, factors, down, up = [0], [0], [], []
    for number in range(count):
        input_block, output_block = f"input_blocks.{number}", f"output_blocks.{count - 1 - number}"
        if f"{UNET}{input_block}.0.op.weight" in shapes:
            blocks.append(0)
            factors.append(0)
            up.append(depth(output_block))
            continue
        if residual(input_block):
            blocks[-1] += 1
            factors[-1] = shapes[f"{UNET}{input_block}.0.out_layers.3.weight"][0] // width
            down.append(depth(input_block))
        if residual(output_block):
            up.append(depth(output_block))
    first = next(name for name in shapes if name.startswith(f"{UNET}input_blocks.") and "attn2.to_k.weight" in name)
    linear = f"{first.split('.transformer_blocks')[0]}.proj_in.weight"
    middle = depth("middle_block") or (-1 if residual("middle_block") else -2)
    return {
        "model_channels": width,
        "in_channels": shapes[f"{UNET}input_blocks.0.0.weight"][1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "adm_in_channels": shapes[f"{UNET}label_emb.0.0.weight"][1],
        "context_dim": shapes[first][1],
        "num_res_blocks": blocks,
        "channel_mult": factors,
        "transformer_depth": down,
        "transformer_depth_output": up,
        "transformer_depth_middle": middle,
        "use_linear_in_transformer": len(shapes[linear]) == 2,
    }


WIDTHS = {
    "model_channels": 320,
    "in_channels": 4,
    "out_channels": 4,
    "adm_in_channels": 2816,
    "context_dim": 2048,
    "channel_mult": [1, 2, 4],
    "use_linear_in_transformer": True,
}
TABLE = {  # spec -> (residual blocks, depths of encoder, decoder and middle, ComfyUI's model), as its tables have them
    KOALA_700M: ([1, 1, 1], [0, 2, 5], [0, 0, 2, 2, 5, 5], -1, "KOALA-700M"),
    KOALA_1B: ([1, 1, 1], [0, 2, 6], [0, 0, 2, 2, 6, 6], 6, "KOALA-1B"),
    SDXL: ([2, 2, 2], [0, 0, 2, 2, 10, 10], [0, 0, 0, 2, 2, 2, 10, 10, 10], 10, "SDXL"),
    SSD_1B: ([2, 2, 2], [0, 0, 2, 2, 4, 4], [0, 0, 0, 1, 1, 2, 10, 4, 4], -1, "SSD-1B"),
    VEGA: ([2, 2, 2], [0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1, 2, 2, 2], -1, "Segmind-Vega"),
}


@pytest.mark.parametrize("spec", TABLE, ids=lambda spec: spec.name)
def test_comfyui_detects_the_unet(spec, tmp_path):
    written = original_tensors(full_size(spec, tmp_path)) | identity_middle(spec)
    shapes = {name: tensor.shape for name, tensor in written.items()}
    blocks, down, up, middle, title = TABLE[spec]
    assert comfyui_sees(shapes) == WIDTHS | {
        "num_res_blocks": blocks,
        "transformer_depth": down,
        "transformer_depth_output": up,
        "transformer_depth_middle": middle,
    }
    assert detected(spec) == title


def test_a_unet_outside_comfyuis_tables_is_said_to_be():
    assert detected(BK_SDXL) is None
    assert detected(TINY_KOALA_700M) is None  # the depths of KOALA-700M at other widths


def test_text_encoders_and_vae_have_sdxls_own_names_and_shapes(tmp_path):
    result = {name: tensor.shape for name, tensor in original_tensors(full_size(SDXL, tmp_path)).items()}
    expected = {  # of the published SDXL file
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.11.self_attn.q_proj.weight": (768, 768),
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": (768,),
        "conditioner.embedders.1.model.token_embedding.weight": (49408, 1280),
        "conditioner.embedders.1.model.positional_embedding": (77, 1280),
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight": (3840, 1280),
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_bias": (3840,),
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.out_proj.weight": (1280, 1280),
        "conditioner.embedders.1.model.transformer.resblocks.0.mlp.c_fc.weight": (5120, 1280),
        "conditioner.embedders.1.model.transformer.resblocks.0.ln_2.bias": (1280,),
        "conditioner.embedders.1.model.ln_final.weight": (1280,),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
        "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
        "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "first_stage_model.encoder.down.2.downsample.conv.weight": (512, 512, 3, 3),
        "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "first_stage_model.decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        "first_stage_model.decoder.mid.block_2.conv1.weight": (512, 512, 3, 3),
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "first_stage_model.decoder.norm_out.weight": (128,),
    }
    assert {name: result.get(name) for name in expected} == expected
    # the published file has 2,515 tensors; its position_ids and logit_scale are no weights of these networks
    assert len(result) == 2513


def test_diffusers_reads_the_same_weights_and_draws_the_same_picture(written, embedded):
    folder = embedded / "tiny-koala-700m"
    single = StableDiffusionXLPipeline.from_single_file(
        str(written[0]), config=str(folder), local_files_only=True, torch_dtype=torch.float32
    )
    plain = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pictures = []
    for pipeline in (single, plain):
        pipeline.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(0)
        settings = dict(num_inference_steps=3, width=128, height=128, generator=noise, output_type="pt")
        pictures.append(pipeline("a red circle", **settings).images)
    for part in STEMS:
        theirs, ours = (getattr(pipeline, part).state_dict() for pipeline in (single, plain))
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[key], ours[key]) for key in ours), part
    difference = (pictures[0] - pictures[1]).abs()
    print(f"picture: max difference {difference.max():.2e}, mean {difference.mean():.2e}")
    assert difference.max() == 0


def test_compress_reads_the_unet_back(written):
    result, original = open_unet(str(written[0])), open_unet("tiny-koala-700m")
    assert result.spec == original.spec
    assert result.tensors.keys() == original.tensors.keys()
    for name, tensor in original.tensors.items():
        assert b"".join(result.tensors[name].blocks()) == b"".join(tensor.blocks()), name


def test_the_header_says_what_it_is_and_where_every_weight_comes_from(written):
    out, report = written
    with safe_open(out, framework="pt") as file:
        words = file.metadata()
    source = json.loads(words["koala"])
    assert words["modelspec.hash_sha256"] == f"0x{report.content_sha256}"
    assert words["modelspec.title"] == "Tiny KOALA-700M"
    assert words["modelspec.prediction_type"] == "epsilon"
    assert source["model"] == "tiny-koala-700m"
    assert source["unet"] == "0,2,5/-/5+5,2+2,0+0"
    assert {name.split("/")[0] for name in source["source_sha256"]} == set(STEMS)
    assert report.bytes == out.stat().st_size
    assert report.converted == 0


def test_a_folders_file_names_no_path_and_is_the_same_when_written_again(copy, tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_single_file(str(copy), first)
    write_single_file(str(copy), second)
    assert first.read_bytes() == second.read_bytes()
    assert str(tmp_path).encode() not in first.read_bytes()
    with safe_open(first, framework="pt") as file:
        assert json.loads(file.metadata()["koala"])["model"] == "my-model"


def rewrite(folder: Path, part: str, change) -> None:
    file = folder / part / f"{STEMS[part]}.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize("part", STEMS)
def test_single_precision_is_rounded_to_the_nearest_half(part, copy, written, tmp_path):
    nearby = 1 + 2**-13  # less than half a step of fp16
    rewrite(copy, part, lambda tensors: {name: tensor.float() * nearby for name, tensor in tensors.items()})
    report = write_single_file(str(copy), tmp_path / "a.safetensors")
    assert report.converted > 0
    assert report.content_sha256 == written[1].content_sha256


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits_become_the_halves_of_the_same_value(kind, copy, tmp_path):
    """Every such number is one of fp16's."""
    rewrite(copy, "unet", lambda t: {name: tensor.to(kind) for name, tensor in t.items()})
    write_single_file(str(copy), tmp_path / "a.safetensors")
    wanted = load_file(copy / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    result = load_file(tmp_path / "a.safetensors")["model.diffusion_model.input_blocks.0.0.weight"]
    assert result.dtype == torch.float16 and torch.equal(result.float(), wanted.float())


def test_a_vae_saved_by_an_older_diffusers_has_the_same_place(copy, written, tmp_path):
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def older(tensors):
        result = {}
        for name, tensor in tensors.items():
            for new, before in old.items():
                name = name.replace(new, before)
            result[name] = tensor
        return result

    rewrite(copy, "vae", older)
    assert write_single_file(str(copy), tmp_path / "a.safetensors").content_sha256 == written[1].content_sha256


def set_config(folder: Path, file: str, **values) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


BROKEN = {
    "other activation": (
        lambda folder: set_config(folder, "text_encoder/config.json", hidden_act="gelu"),
        "hidden_act 'gelu'",
    ),
    "VAE with means": (
        lambda folder: set_config(folder, "vae/config.json", latents_mean=[0.0] * 4),
        "latents_mean [0.0, 0.0, 0.0, 0.0]",
    ),
    "another noise schedule": (
        lambda folder: set_config(folder, "scheduler/scheduler_config.json", beta_end=0.02),
        "beta_end 0.02",
    ),
    "no signal in the first step": (
        lambda folder: set_config(folder, "scheduler/scheduler_config.json", rescale_betas_zero_snr=True),
        "has rescale_betas_zero_snr in scheduler/scheduler_config.json and predicts no velocity",
    ),
    "doubles": (
        lambda folder: rewrite(folder, "vae", lambda t: {k: v.double() for k, v in t.items()}),
        "is F64",
    ),
    "too large for half": (
        lambda folder: rewrite(folder, "unet", lambda t: t | {"conv_in.bias": torch.full((16,), 1e6)}),
        "a weight that fp16 cannot hold, conv_in.bias; a single file of it would draw nothing; keep the model as a",
    ),
    "no number in half precision": (
        lambda folder: rewrite(folder, "unet", lambda t: t | {"conv_in.bias": torch.full((16,), math.nan).half()}),
        "unet/diffusion_pytorch_model.safetensors is damaged: its weight conv_in.bias holds NaN or infinity",
    ),
    "no number in single precision": (
        lambda folder: rewrite(folder, "vae", lambda t: t | {"decoder.conv_in.bias": torch.full((96,), -math.inf)}),
        "vae/diffusion_pytorch_model.safetensors is damaged: its weight decoder.conv_in.bias holds NaN or infinity",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_the_file_cannot_say_is_refused_and_nothing_is_left(case, copy, tmp_path):
    damage, says = BROKEN[case]
    damage(copy)
    with pytest.raises(UserError) as error:
        write_single_file(str(copy), tmp_path / "new" / "a.safetensors")
    assert says in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_unet_alone_and_another_ending_are_refused(copy, tmp_path):
    with pytest.raises(UserError, match="must end in .safetensors"):
        write_single_file(str(copy), tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="a U-Net alone"):
        write_single_file(str(copy / "unet"), tmp_path / "a.safetensors")


def test_the_command_prints_its_report(written, tmp_path, capsys):
    arguments = ["single-file", "--model", "tiny-koala-700m", "--out", str(tmp_path / "a.safetensors")]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["content_sha256"] == written[1].content_sha256
    assert main(arguments) == 0
    assert "893 tensors, 4,008,875 parameters" in capsys.readouterr().out


def test_an_unknown_model_is_one_line_and_exit_2(tmp_path, capsys):
    assert main(["single-file", "--model", "koala-70m", "--out", str(tmp_path / "a.safetensors")]) == 2
    captured = capsys.readouterr()
    assert "did you mean koala-700m" in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_before_anything_is_written(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match="needs 0.01 GB, and the disk at .* has 0.00 GB free"):
        write_single_file(str(copy), tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()
