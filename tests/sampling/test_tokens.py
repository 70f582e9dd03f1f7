"""What of a prompt is not read is said, on every way out, and no picture is blamed for it."""

import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPTokenizer

from koala.cli.main import main
from koala.models.cards import CARDS
from koala.request import MAX_PROMPT, GenerationRequest, Timing
from koala.sampling import report
from koala.sampling.result import GenerationResult, read_png
from koala.sampling.tokens import read_text, tokenizer_folders, unread
from koala.ui import widgets

STUDENT = "tiny-koala-700m"
FOLDERS = tokenizer_folders(CARDS[STUDENT])
FILLER = "a picture " * 36  # 72 tokens
TEXTS = (
    "a red circle left of a blue square",
    "",
    " \n\t ",
    "a " * 75,
    "a " * 75 + "\n  ",
    "a " * 76,
    f"{FILLER}of a red circle left of a blue square",
    "x" * MAX_PROMPT,
    "🐨" * 60,
    "漢字" * 50,
    "ليلة هادئة " * 20,
    "e\u0301" * 80,
    "wow!" * 60,
    "don't " * 60,
    "A  RED\n\tCircle " * 40,
    "<|endoftext|> red " * 40,
    "\u200b\ufeff" * 50 + "red",
)


def check(text: str) -> None:
    """The text that is read, and no more of it, fills the places: by the pipeline's own tokenizers."""
    parts = read_text(text, FOLDERS)
    assert parts.read + parts.unread == text
    counts, same = [], []
    for folder in FOLDERS:
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        whole = tokenizer(text).input_ids[1:-1]
        counts.append(len(whole))
        cut = tokenizer(text, truncation=True, max_length=77).input_ids[1:-1]
        assert cut == whole[:75]
        same.append(cut == whole)
    assert (parts.tokens, parts.limit) == (max(counts), 75)
    assert bool(parts.unread) == (not all(same))


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_read_as_far_as_the_tokenizers_cut_it(text):
    check(text)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=200).map(lambda text: text * 3))
def test_any_text_is_read_as_far_as_the_tokenizers_cut_it(text):
    check(text)


def test_what_is_unread_changes_no_pixel_and_what_is_read_does(library):
    """The oracle is the model: words behind the cut are nothing to it."""
    pipeline = library.get(STUDENT).pipeline
    text = f"{FILLER}of a red circle left of a blue square"
    parts = read_text(text, FOLDERS)
    with torch.inference_mode():
        embeds = [
            pipeline.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)[0]
            for prompt in (text, f"{parts.read}yellow star", f"{parts.read[:-8]} yellow star")
        ]
    assert torch.equal(embeds[0], embeds[1]) and not torch.equal(embeds[0], embeds[2])


def test_the_tokenizer_that_reads_less_decides(tmp_path):
    """Without its merges one reads letters for words."""
    short = tmp_path / "tokenizer"
    short.mkdir()
    vocabulary = json.loads((FOLDERS[0] / "tokenizer.json").read_text())["model"]["vocab"]
    (short / "vocab.json").write_text(json.dumps(vocabulary))
    (short / "merges.txt").write_text("#version: 0.2\n")
    (short / "tokenizer_config.json").write_text((FOLDERS[0] / "tokenizer_config.json").read_text())
    text = "a red circle left of a blue square " * 5
    alone, both = (read_text(text, folders) for folders in (FOLDERS[:1], (FOLDERS[0], short)))
    assert not alone.unread and both.unread and both.tokens == len(text.replace(" ", ""))
    assert len(both.read.replace(" ", "")) == 75


def test_without_guidance_no_negative_prompt_is_read():
    request = GenerationRequest(model=STUDENT, prompt="a red circle", negative_prompt="blue", guidance=1.0)
    assert unread(request, FOLDERS) == {"prompt": "", "negative_prompt": "blue"}
    guided = GenerationRequest(model=STUDENT, prompt="a " * 80, negative_prompt="b " * 76, guidance=2.0)
    assert unread(guided, FOLDERS) == {"prompt": "a " * 5, "negative_prompt": "b "}


def test_counting_is_cheap_for_the_longest_and_worst_prompt():
    read_text("warm", FOLDERS)
    begun = time.thread_time()
    for text in ("x" * MAX_PROMPT, "🐨" * MAX_PROMPT, "' " * (MAX_PROMPT // 2)):
        read_text(text, FOLDERS)
    assert time.thread_time() - begun < 0.3


def result_of(prompt: str, colour=(200, 40, 40)) -> GenerationResult:
    """A picture without any object, and what was not read of its prompt."""
    request = GenerationRequest(model=STUDENT, prompt=prompt, steps=1, guidance=1.0, width=64, height=64)
    return GenerationResult(
        request=request,
        images=(Image.fromarray(np.full((64, 64, 3), 235, np.uint8)),),
        timing=Timing(text_ms=1, unet_ms=(1.0,), unet_calls=1, vae_ms=1, total_ms=3, peak_memory_bytes=None),
        parameters=1,
        revision="local",
        dtype="float32",
        device="cpu",
        unread=unread(request, FOLDERS),
    )


@pytest.mark.parametrize(
    ("end", "asked", "left_out"),
    [
        (
            "a red circle left of a blue square",  # read: a red circle
            ["1 object", "circle", "red", "red circle"],
            ["2 objects", "square", "blue", "blue square", "red circle left of blue square"],
        ),
        ("a red supercalifragilistic circle", None, ["1 object", "circle", "red", "red circle"]),
    ],
)
def test_claims_about_words_that_were_not_read_are_not_asked_of_the_picture(end, asked, left_out):
    """Symptom: the verdict blamed the picture for what the model had never read."""
    result = result_of("a picture " * 36 + end)
    output = report.entry(result)
    assert output["claims"] is None if asked is None else [c["claim"] for c in output["claims"]] == asked
    assert output["not_asked"] == left_out
    page = widgets.verdicts(["A"], [[output["claims"]]], output["no_verdict"], output["not_asked"])
    if asked:
        assert f"Not asked of the models, which do not read the end of this prompt: {', '.join(left_out)}." in page
    else:
        assert "the model did not read the words of the prompt that name shapes" in page


def test_a_word_that_was_cut_in_two_is_no_claim():
    """Its first letters were read: `squ` is no square, and a circle whose s is not read is not two."""
    whole = "a picture " * 36 + "of a purple squares"
    result = result_of(whole)
    assert not result.asked.endswith("squ") and whole.startswith(result.asked)


def test_models_that_read_differently_stand_in_one_table():
    claims = [{"kind": "attribute", "claim": text, "holds": True, "seen": text} for text in ("red", "circle")]
    page = widgets.verdicts(["A", "B"], [[claims, claims[:1]]], None, ["circle"])
    assert page.count("not read</td>") == 1 and page.count("holds</td>") == 3
    page = widgets.verdicts(["A", "B"], [[claims, None]], None, ["circle"])
    assert page.count("not read</td>") == 2 and "no verdict" in page


def test_the_command_line_its_json_and_the_png_say_what_was_not_read(tmp_path, capsys):
    """Symptom: a warning of diffusers, which is muted."""
    end = "of a red circle left of a blue square"
    words = ["generate", "--model", STUDENT, "--prompt", FILLER + end, "--negative-prompt", "blue", "--guidance", "1"]
    words += ["--steps", "1", "--width", "64", "--height", "64", "--json", "--out", str(tmp_path / "a.png")]
    assert main(words) == 0
    message = capsys.readouterr()
    output = json.loads(message.out)
    rest = output["unread"]["prompt"]
    assert rest and end.endswith(rest)
    assert output["unread"]["negative_prompt"] == "blue"
    assert f"{STUDENT} does not read the end of the prompt, which is too long: {rest.strip()}\n" in message.err
    assert f"{STUDENT} does not read the negative prompt: it needs --guidance above 1, not 1\n" in message.err
    assert read_png(tmp_path / "a.png")["unread"] == output["unread"]
    assert "2 objects" in output["not_asked"]
