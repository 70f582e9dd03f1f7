"""The command lines under any arguments: refused in words and an exit status, no traceback."""

import argparse
import contextlib
import dataclasses
import importlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import koala.cli.main
import koala.export.command
from koala.cli.options import request_values
from koala.errors import UserError
from koala.request import GenerationRequest
from tests.safety.test_endpoints import HOSTILE_NUMBER, HOSTILE_TEXT, STEADY

ABSENT = st.sampled_from(["no-such-model", "no/such-model", "no-such@main", "../../../etc/passwd", "", "🐨" * 500])
TEXT = HOSTILE_TEXT | HOSTILE_NUMBER.map(str) | st.text(max_size=20)
VALUE = TEXT.filter(lambda text: not re.search("[\x00\ud800-\udfff]", text))  # what no shell can say
MODELS = {"--model", "--models", "--teacher"}  # always one that is not there: only refusals are looked for


def option(draw, action: argparse.Action) -> list[str]:
    """One option as it is typed, with values that nobody expects."""
    if action.nargs == 0:
        return [action.option_strings[-1]]
    values = draw(st.lists(VALUE, min_size=1, max_size=3 if action.nargs else 1))
    if MODELS & set(action.option_strings):
        values = [draw(ABSENT)]
    elif action.choices and draw(st.booleans()):
        values = [str(draw(st.sampled_from(list(action.choices))))]
    return [*action.option_strings[-1:], *values]


@st.composite
def line(draw, parser: argparse.ArgumentParser) -> list[str]:
    """What is required, and up to four options more, in any order."""
    actions = [a for a in parser._actions if a.dest not in ("help", "fields", "debug")]  # which print more
    asked = [a for a in actions if a.required or MODELS & set(a.option_strings)]
    if options := [a for a in actions if a.option_strings]:
        asked += draw(st.lists(st.sampled_from(options), max_size=4))
    return [word for action in draw(st.permutations(asked)) for word in option(draw, action)]


def refused(main, arguments: list[str], capsys) -> None:
    """AssertionError for an end without words, with another status, or by an error that nobody foresaw."""
    try:
        status = main(arguments)
    except SystemExit as end:  # argparse
        status = end.code
    message = capsys.readouterr().err
    foreseen = "Traceback" not in message and "--debug shows where" not in message
    assert status in (1, 2) and len(message) > 10 and foreseen, (status, message)


FIELDS = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(GenerationRequest)]
VERBS = koala.cli.main.parser()._subparsers._group_actions[0].choices


# models takes nothing that could be refused; the others have parsers of their own, and tests below
@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {"models", *koala.cli.main.OTHERS}))
def test_any_arguments_of_a_verb_are_refused_in_words(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    @STEADY
    @given(arguments=line(VERBS[verb]))
    def attack(arguments):
        refused(koala.cli.main.main, [verb, *arguments], capsys)

    attack()


APP = ("--models", "--device", "--vram", "--host", "--port", "--allow-host", "--auth-file", "--nothing")


def test_any_arguments_of_the_app_are_refused_in_words(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def launch(*_):
        raise UserError("the app would have started here")

    monkeypatch.setattr("koala.ui.main.launch", launch)

    @STEADY
    @given(arguments=st.lists(st.tuples(st.sampled_from(APP), TEXT), min_size=1, max_size=3))
    def attack(arguments):
        words = [word for pair in arguments for word in pair]
        refused(koala.cli.main.main, ["app", *words], capsys)

    attack()


@STEADY
@given(values=st.dictionaries(st.sampled_from(FIELDS), TEXT, min_size=1))
def test_a_request_of_hostile_values_is_one_or_is_refused_in_words(values):
    """Written as --flag=value, so that a value with a dash reaches the field and its check."""
    line = ["generate", "--model=tiny-sdxl", "--prompt=a", "--out=a.png", *(f"{k}={v}" for k, v in values.items())]
    with contextlib.suppress(SystemExit, UserError):
        request = GenerationRequest(**request_values(koala.cli.main.parser().parse_args(line)))
        assert GenerationRequest.from_dict(request.to_dict()) == request


@pytest.mark.parametrize("verb", [None, *koala.export.command.VERBS])
def test_any_arguments_of_the_export_are_refused_in_words(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(koala.export.command.VERBS[verb]) if verb else koala.export.command
    parser = argparse.ArgumentParser()
    module.add(parser)

    @STEADY
    @given(arguments=line(parser))
    def attack(arguments):
        refused(koala.export.command.main, [*([verb] if verb else []), *arguments], capsys)

    attack()
