"""What strangers may have of the device in every tab, whatever they send: the fields' own bounds are not the guard."""

import time
from pathlib import Path

import gradio as gr
import pytest

from koala.benchmark.matrix import Matrix
from koala.errors import UserError
from koala.models.cards import CARDS
from koala.ui import limits
from koala.ui.architecture import data as architecture
from koala.ui.benchmark.tab import Bench
from koala.ui.session import Session
from tests.safety.conftest import STUDENT, TEACHER, Refused
from tests.ui.handlers import Visitor

TINY = dict(models=(STUDENT,), sizes=(256,), steps=50, time_limit=30.0)


def check(**change) -> None:
    matrix = Matrix(**TINY | change)
    limits.check_public_benchmark(matrix, [CARDS[name] for name in matrix.models])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"time_limit": 31.0}, "at most 30 s, not 31 s; on your own machine there is no such limit"),
        ({"time_limit": None}, "at most 30 s, not as long as it likes"),
        ({"time_limit": float("nan")}, "at most 30 s"),
        ({"time_limit": float("inf")}, "at most 30 s"),
        ({"steps": 51}, "at most 50 steps, not 51"),
        ({"sizes": (256, 1024)}, "at most 4 pictures of 256x256 px"),
        ({"batch": (1, 16)}, "at most 4 pictures of 256x256 px"),
        ({"models": (STUDENT, TEACHER, "tiny-koala-1b", "sdxl-base", "koala-1b")}, "at most 4 models"),
        ({"models": ("sdxl-base", TEACHER), "sizes": (1024,)}, "at most 4 pictures of 256x256 px with Tiny SDXL"),
    ],
    ids=str,
)
def test_a_strangers_benchmark_is_bounded(change, says):
    check()
    check(batch=(1, 4), sizes=(128, 256))
    with pytest.raises(UserError) as output:
        check(**change)
    assert says in str(output.value)


@pytest.mark.parametrize(("steps", "limit"), [(200, 30), (50, 540), (51, 30), (50, 31)])
def test_a_strangers_benchmark_that_is_sent_past_the_page_is_refused(public, steps, limit):
    """Symptom: one visitor held the device for nine minutes, four times over."""
    asked = [[STUDENT], [256], ["quality"], [1], steps, 50, limit]
    try:
        answer = public.event("kb-start", "click", asked, f"timekeeper-{steps}-{limit}")
        last = next(m for m in answer if m["msg"] == "process_completed")
        assert not last["success"] and last["output"]["error"]
    except Refused as refused:
        assert str(refused)


@pytest.mark.parametrize(("steps", "limit"), [(200, 30), (50, 540)])
def test_the_handler_itself_refuses_it(steps, limit):
    """Without the fields, whose bounds Gradio checks before it calls the handler."""
    with gr.Blocks() as demo:
        tab = Bench(Session(local=False))
    (start,) = (one.fn for one in demo.fns.values() if (tab.start._id, "click") in one.targets)
    with pytest.raises(gr.Error, match="public server"):
        answer = start(Visitor, [STUDENT], [256], ["quality"], [1], steps, 50, limit)
        next(answer)


def test_the_page_and_the_table_tell_the_limit(public):
    page = public.get("config")[1].decode()
    assert f"At most 4 models, {limits.PUBLIC_STEPS} steps, 50 runs and {limits.PUBLIC_SECONDS} s in all." in page
    table = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    assert f"{limits.PUBLIC_STEPS} steps, {limits.PUBLIC_SECONDS} s, pictures as above, 4 models |" in table


@pytest.mark.parametrize(
    "spec",
    ["0,2," + "9" * 4000 + "/-/5+5,2+2,0+0", "0,2,10/" * 10**5, "+".join(["1"] * 10**5), "0," * 10**5, "9" * 10**6],
    ids=["a depth of 4,000 digits", "a million characters", "very many blocks", "very many stages", "one number"],
)
def test_a_strangers_network_is_refused_in_little_time(spec):
    begun = time.thread_time()
    with pytest.raises(UserError) as output:
        architecture.read(spec, TEACHER)
    assert time.thread_time() - begun < 0.5 and len(str(output.value)) < 1000
