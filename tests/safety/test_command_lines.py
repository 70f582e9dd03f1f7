"""Hostile command lines: whatever is typed, it parses, or it is refused in words; it never raises anything else."""

import argparse
import contextlib
import io

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from export.command import VERBS as EXPORT_VERBS
from export.command import parse as parse_export
from koala.cli import VERBS, parser
from koala.request import GenerationRequest, RequestError
from koala.verbs.options import request_values

KOALA = parser()
HOSTILE = st.sampled_from(
    ("", "-", "--", "-1", "0", "nan", "inf", "1e400", "9" * 5000, "٣", "0x10", "1_0", "\0", "a\0.png", "\udc80")
    + (
        "\ud800.png",
        "%s%(prog)s",
        "{0}",
        "$(id)",
        "@/etc/passwd",
        "../../a",
        "a.png",
        "a.safetensors",
        "tiny-sdxl",
        "a" * 5000,
    )
    + ("512x512", "1x", "x1", "steps=", "=", "=1", "steps=nan", "--seed=--", "🐨\u202e.png")
)


def options(of: argparse.ArgumentParser) -> list[str]:
    """Every flag of a parser, as it knows them itself."""
    return [flag for action in of._actions for flag in action.option_strings]


def verb_parsers() -> dict[str, argparse.ArgumentParser]:
    (verbs,) = (action for action in KOALA._actions if isinstance(action, argparse._SubParsersAction))
    return verbs.choices


VALUED = [flag for flag in options(verb_parsers()["generate"]) if flag not in ("-h", "--help", "--json", "--out")]


def words(flags: list[str]) -> st.SearchStrategy[list[str]]:
    value = HOSTILE | st.text(st.characters(), max_size=12) | st.integers().map(str) | st.floats().map(str)
    pair = st.tuples(st.sampled_from(flags), value)
    return st.lists(pair.map(list) | value.map(lambda v: [v]), max_size=8).map(lambda parts: sum(parts, []))


def parsed(parse, line: list[str]) -> argparse.Namespace | None:
    """What it means, or None where it is refused with a message, or answered with help."""
    said, told = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(told):
            return parse(line)
    except SystemExit as end:
        assert end.code in (0, 2)
        assert (told if end.code == 0 else said).getvalue().strip()
        return None


def asked(args: argparse.Namespace) -> GenerationRequest | None:
    """The request that was typed, or None where its own check refuses it in words."""
    try:
        return GenerationRequest(**{"model": "tiny-sdxl", "prompt": "a circle", **request_values(args)})
    except RequestError as error:
        assert str(error).strip()
        return None


@pytest.mark.parametrize("verb", VERBS)
def test_a_hostile_command_line_of_koala_is_parsed_or_refused_in_words(verb):
    @settings(max_examples=100, deadline=None)
    @given(words(options(verb_parsers()[verb])))
    @example(["--prompt", "\0", "--seed", "9" * 5000, "--steps", "nan", "--out", "a.png"])
    def check(line):
        args = parsed(KOALA.parse_args, [verb, *line])
        if args:
            asked(args)

    check()


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(VALUED), HOSTILE))
def test_a_generation_whose_every_value_is_hostile_is_a_request_or_refused_in_words(values):
    """Written as --flag=value, so that a value with a dash reaches the field and its check."""
    line = [f"{flag}={value}" for flag, value in values.items()]
    args = parsed(KOALA.parse_args, ["generate", "--model=tiny-sdxl", "--prompt=a", "--out=a.png", *line])
    if args:
        asked(args)


@pytest.mark.parametrize("verb", ["", *EXPORT_VERBS])
def test_a_hostile_command_line_of_export_is_parsed_or_refused_in_words(verb):
    flags = ["--model", "--out", "--target", "--dtype", "--components", "--lora", "--lora-strength", "--json", "-h"]

    @settings(max_examples=100, deadline=None)
    @given(words(flags))
    def check(line):
        parsed(parse_export, [*([verb] if verb else []), *line])

    check()


def test_an_unknown_verb_is_refused_with_the_verbs_there_are():
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as end:
        KOALA.parse_args(["\0"])
    assert end.value.code == 2
    assert all(verb in said.getvalue() for verb in VERBS)
