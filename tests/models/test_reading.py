"""What libraries raise over damaged files is told with the place; memory, a stop and our mistakes stay as they are."""

import json
import shutil

import pytest
import torch

from koala.errors import UserError
from koala.models.cards import EMBEDDED
from koala.models.from_torch import load_part
from koala.models.library import Library
from koala.models.locate import locate
from koala.models.reading import check_widths, from_files, load_noising, load_tokenizer, tokenizer_defaults
from koala.models.registry import find

STUDENT = EMBEDDED / "tiny-koala-700m"


class PanicException(BaseException):
    """As libraries in Rust raise."""


def raiser(module: str, error: BaseException):
    """A function of this module that raises."""
    inside = {"__name__": module, "error": error}
    exec("def call():\n    raise error", inside)  # noqa: S102 - a frame of another module
    return inside["call"]


@pytest.mark.parametrize(
    "error",
    [TypeError("no\nnumber"), KeyError("x"), AssertionError(), ZeroDivisionError("x"), PanicException("x")],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_library_raises_is_told_in_one_line_with_the_place(tmp_path, error):
    with pytest.raises(UserError) as output, from_files("the vae", tmp_path):
        raiser("diffusers.models.x", error)()
    message = str(output.value)
    assert message.startswith(f"the vae could not be loaded from {tmp_path}: ") and "\n" not in message
    assert message.endswith(". Copy or download its files again") and output.value.__cause__ is error


@pytest.mark.parametrize(
    ("module", "error"),
    [
        ("koala.models.library", TypeError("our own mistake")),
        ("torch.nn", torch.OutOfMemoryError("CUDA out of memory")),
        ("torch.nn", MemoryError()),
        ("torch.nn", KeyboardInterrupt()),
        ("torch.nn", UserError("told already")),
    ],
    ids=["ours", "GPU memory", "memory", "stop", "told"],
)
def test_what_is_not_the_files_fault_is_left_as_it_is(tmp_path, module, error):
    with pytest.raises(type(error)) as caught, from_files("the vae", tmp_path):
        raiser(module, error)()
    assert caught.value is error


def changed(tmp_path, file: str, **values):
    """A copy of the student's folder with other values in a JSON file."""
    folder = shutil.copytree(STUDENT, tmp_path / "mine")
    output = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(output | values))
    return folder


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        (
            "text_encoder/config.json",
            {"num_hidden_layers": 5},
            "lacks 16 tensors, for example text_model.encoder.layers.4",
        ),
        (
            "text_encoder/config.json",
            {"num_hidden_layers": 3},
            "has 16 tensors, for example text_model.encoder.layers.3",
        ),
        ("text_encoder/config.json", {"vocab_size": 700}, "text_encoder"),
        ("vae/config.json", {"layers_per_block": 2}, "lacks 64 tensors, for example encoder"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 10**30}, "tokenizer gives 1,000,000,"),
        ("unet/config.json", {"transformer_layers_per_block": [1, 2, 6]}, "lacks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_of_another_network_than_the_configs_are_never_filled_up_with_noise(tmp_path, file, values, says):
    folder = changed(tmp_path, file, **values)
    with pytest.raises(UserError) as output:
        Library("cpu").get(str(folder))
    assert says in str(output.value) and str((folder / file).parent) in str(output.value)


def test_what_the_text_encoders_write_is_what_the_unet_reads(tmp_path):
    text = [load_part(n, locate(find(str(STUDENT))), torch.float32).config for n in ENCODERS]
    reads = {"cross_attention_dim": 96, "addition_time_embed_dim": 16, "projection_class_embeddings_input_dim": 160}
    check_widths(tmp_path, reads, text)
    for name in reads:
        with pytest.raises(UserError, match="reads text .* wide"):
            check_widths(tmp_path, reads | {name: 17}, text)


ENCODERS = ("text_encoder", "text_encoder_2")


def test_a_tokenizer_with_more_words_than_its_encoder_is_refused():
    assert load_tokenizer(STUDENT / "tokenizer", 625).model_max_length == 77
    with pytest.raises(UserError, match="more words than its text encoder, 624"):
        load_tokenizer(STUDENT / "tokenizer", 624)


def test_a_noise_schedule_on_which_a_scheduler_cannot_be_built_is_refused(tmp_path):
    folder = (
        changed(tmp_path, "scheduler/scheduler_config.json", use_karras_sigmas="x", use_beta_sigmas="x") / "scheduler"
    )
    with pytest.raises(UserError, match="the scheduler could not be loaded from"):
        load_noising(folder)


def test_what_a_tokenizer_without_its_config_pads_with_is_read_where_it_is_said_and_else_sdxls(tmp_path):
    """SDXL's first tokenizer pads with the end of text, its second with "!", the first of its words."""

    def pads(name: str, **files) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir()))) / name
        folder.mkdir(parents=True)
        for file, values in files.items():
            (folder / f"{file}.json").write_text(json.dumps(values))
        return tokenizer_defaults(folder)["pad_token"]

    assert (pads("tokenizer"), pads("tokenizer_2")) == ("<|endoftext|>", "!")
    assert pads("tokenizer_2", special_tokens_map={"pad_token": "a"}) == "a"
    assert pads("tokenizer_2", special_tokens_map={"pad_token": {"content": "b"}}) == "b"
    assert pads("tokenizer_2", tokenizer={"padding": {"pad_token": "c"}}) == "c"
    assert pads("tokenizer_2", tokenizer={"padding": None}, tokenizer_config={"model_max_length": 77}) == "!"
    output = tokenizer_defaults(STUDENT / "tokenizer_2")
    assert output == {}
