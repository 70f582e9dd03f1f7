"""Prompt files of three kinds, and every way in which one can be wrong."""

import dataclasses

import pytest

from koala.errors import UserError
from koala.evaluate import prompt_files
from koala.evaluate.prompt_files import Prompt, read
from koala.models.library import Library
from koala.shapes.captions import parse
from koala.unet.specs import KOALA_700M


def test_a_prompt_a_line_up_to_a_tab(tmp_path):
    file = tmp_path / "color_val.txt"
    file.write_text("\ufeffa green bench and a blue bowl\n\n  a red car\tseen\n", encoding="utf-8")
    assert [p.text for p in read(file)] == ["a green bench and a blue bowl", "a red car"]


def test_genevals_records_are_kept_whole(tmp_path):
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text('{"tag": "colors", "include": [{"class": "car", "count": 1}], "prompt": "a photo of a red car"}\n')
    (prompt,) = read(file)
    assert prompt.text == "a photo of a red car"
    assert prompt.record["include"] == [{"class": "car", "count": 1}]


def test_hpsv2s_lists(tmp_path):
    file = tmp_path / "anime.json"
    file.write_text('["a cat", "a dog"]')
    assert read(file) == [Prompt(text="a cat"), Prompt(text="a dog")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"\n  \n", "holds no prompt"),
        ("empty.jsonl", b"", "holds no prompt"),
        ("bad.jsonl", b'{"prompt": "a"}\n{"text": "b"}\n', "line 2: not a JSON object with a"),
        ("bad.jsonl", b"a prompt\n", "line 1: not a JSON object"),
        ("bad.jsonl", b"[1]\n", "line 1: not a JSON object"),
        ("bad.json", b'{"a": 1}', "not a JSON list of prompts"),
        ("bad.json", b"[", "bad.json is damaged"),
        ("bad.json", b"[" * 100_000, "bad.json is damaged: it is nested too deeply"),
        ("bad.jsonl", b"[" * 100_000, "line 1: not a JSON object"),
        ("bad.jsonl", b'{"prompt": [1]}', "line 1: not a JSON object"),
        ("latin.txt", "ein grüner Stern".encode("latin-1"), "not UTF-8"),
    ],
)
def test_a_bad_file_is_named_with_its_remedy(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(file)
    assert str(file) in str(caught.value)


def test_no_file_at_all(tmp_path):
    with pytest.raises(UserError, match="there is no prompts file"):
        read(tmp_path / "nowhere.txt")


def test_prompts_of_shapes_name_one_object_and_two_in_turn_and_more_of_them_begin_alike():
    few, many = prompt_files.of_shapes(5), prompt_files.of_shapes(8)
    assert [len(parse(p.text).objects) for p in many] == [1, 2] * 4
    assert many[:5] == few


def test_a_model_that_speaks_of_more_than_shapes_wants_a_file_of_prompts():
    """As every real checkpoint does: here the embedded student under KOALA's own widths."""
    model = dataclasses.replace(Library("cpu").get("tiny-koala-700m"), spec=KOALA_700M)
    with pytest.raises(UserError, match="name a file of prompts with --prompts"):
        prompt_files.prompts_for(model, None, None, default=2)
