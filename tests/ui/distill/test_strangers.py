"""Distillations of a public app: short, few, and everybody's own."""

import dataclasses
import os
import time

import gradio as gr
import pytest

from koala.distill.presets import PRESETS
from koala.errors import UserError
from koala.models.cards import EMBEDDED
from koala.ui.distill import fields as distill_fields
from koala.ui.distill.runs import PUBLIC_KEPT, PUBLIC_MINUTES, PUBLIC_STEPS, Runs
from koala.ui.distill.tab import Distill
from tests.ui.distill.conftest import QUICK, look, written
from tests.ui.handlers import Visitor


def test_strangers_choose_among_short_presets_and_few_settings(public, tmp_path, monkeypatch):
    monkeypatch.setenv("KOALA_RUNS", str(tmp_path))
    with gr.Blocks():
        tab = Distill(public)
    assert tuple(sorted(tab.fields)) == tuple(sorted(distill_fields.PUBLIC))
    assert [p.name for p in tab.runs.presets] == ["2-minutes", "10-minutes"]
    for refused in ("koala", "no-such", None):
        with pytest.raises(gr.Error, match="Choose one of"):
            tab.begin(Visitor, refused, "", "", {}, *distill_fields.shown(QUICK, list(tab.fields)))
    written(tab.runs.root, "a-1")
    shown = look(tab)
    assert shown["log"] == "" and str(tmp_path) not in "".join(v for v in shown.values() if isinstance(v, str))
    assert not shown["ask_delete"]["visible"]


def test_a_strangers_run_is_short_alone_and_his_to_stop(public, tmp_path):
    runs = Runs(public, tmp_path)
    name = runs.start(dataclasses.replace(QUICK, threads=1), "one")
    try:
        assert runs.find(name).config().time_limit == PUBLIC_MINUTES
        assert PRESETS["10-minutes"].config.num_steps <= PUBLIC_STEPS
        with pytest.raises(UserError, match="still running"):
            runs.start(QUICK, "two")
        with pytest.raises(UserError, match="another visitor"):
            runs.stop(name, "two")
        for forbidden in (runs.delete, runs.resume):
            with pytest.raises(UserError, match="your own machine"):
                forbidden(name)
    finally:
        runs.stop(name, "one")
        while runs.all()[0].alive:
            time.sleep(0.1)


def test_a_stranger_names_no_folder_of_this_machine(public, tmp_path):
    with pytest.raises(UserError, match="unknown model"):
        Runs(public, tmp_path).start(dataclasses.replace(QUICK, teacher=str(EMBEDDED / "tiny-sdxl")), "one")


def test_a_public_app_keeps_the_newest_runs(public, tmp_path):
    for k in range(PUBLIC_KEPT + 2):
        os.utime(written(tmp_path, f"old-{k}").path / "config.json", (k, k))
    runs = Runs(public, tmp_path)
    name = runs.start(dataclasses.replace(QUICK, threads=1), "one")
    assert [s.name for s in runs.all()] == [name, *(f"old-{k}" for k in range(PUBLIC_KEPT + 1, 2, -1))]
    runs.stop(name, "one")
    while runs.all()[0].alive:
        time.sleep(0.1)
