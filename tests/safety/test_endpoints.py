"""The endpoints under any JSON: an answer or a refusal in words, no traceback, no hang, alive afterwards."""

import json

import httpx
import pytest
from gradio_client import Client
from gradio_client.utils import extract_validation_message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipes.measure import hostile
from tests.safety.conftest import QUICK, STUDENT, TEACHER, Refused

STEADY = settings(
    max_examples=40,
    derandomize=True,  # the same cases in every run
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
HOSTILE_TEXT = st.sampled_from(
    [
        "",
        " ",
        "\x00",
        "\ud800",
        "\u202e<script>alert(1)</script>",
        "${7*7}{{7*7}}",
        "../../../etc/passwd",
        "/etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1:22/",
        "x" * 2001,
        "🐨" * 500,
        "NaN",
        "a" * 300,
        "'; DROP TABLE models; --",
    ]
)
HOSTILE_NUMBER = st.sampled_from(
    [-1, 0, 201, 63, 65, 2**31, 2**32, 2**63, 10**30, 10**400, -0.0, 0.5, 1e308, float("nan"), float("inf")]
)
ANY = st.recursive(
    st.none() | st.booleans() | HOSTILE_NUMBER | HOSTILE_TEXT | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)
FIELDS = ("prompt", "negative_prompt", "seed", "steps", "guidance", "scheduler", "width", "height")
DRAWN = (*FIELDS, "images", "preset", "lora", "lora_strength")
LOOKED = (*FIELDS, "stages", "pixel", "step", "head", "same_input")


def changed(*names: str):
    """One to three of the fields with values that nobody expects."""
    return st.dictionaries(st.sampled_from(names), ANY, min_size=1, max_size=3)


def attack(public, name: str, values: dict) -> None:
    """AssertionError for what is neither an answer nor a refusal in words."""
    try:
        assert public.call(name, values)
    except Refused as refused:
        assert len(str(refused)) > 10
        assert "Traceback" not in str(refused) and "terminal" not in str(refused)  # where a bug is told of


@pytest.fixture(scope="module", autouse=True)
def alive_afterwards(public):
    before = public.tracebacks()
    yield
    assert public.draws()
    assert public.tracebacks() == before, public.log.read_text()


@STEADY
@given(change=changed("model", *DRAWN))
def test_generate_answers_anything(public, change):
    attack(public, "generate", {"model": STUDENT, **QUICK, **change})


@STEADY
@given(change=changed("models", *DRAWN))
def test_compare_answers_anything(public, change):
    attack(public, "compare", {"models": [STUDENT, STUDENT], **QUICK, **change})


@STEADY
@given(change=changed("models", *LOOKED))
def test_attention_answers_anything(public, change):
    attack(public, "attention", {"models": [STUDENT], "stages": ["UP-1"], **QUICK, **change})


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 10_000], ids=lambda b: repr(b[:9]))
@pytest.mark.parametrize("name", ["generate", "v2/generate", "nothing"])
def test_a_body_that_is_no_call_is_refused(public, name, body):
    status, answer = public.post(f"gradio_api/call/{name}", body)
    assert status in (404, 422) and b"Traceback" not in answer and len(answer) > 20


# --- every door, keys and bodies included; python -m recipes.measure.reliability sends a thousand to each

DOORS = {"queue/join": 60, "run/predict": 40, "call/v2/generate": 15, "call/v2/compare": 8, "call/v2/attention": 4}


@pytest.mark.parametrize("door", hostile.DOORS)
def test_a_hostile_body_is_answered_at_every_door(public, door):
    report = hostile.attack(public.url, door, DOORS.get(door, 15))
    assert not report.faults, report.faults[:5]
    assert report.tried == report.results + report.refusals


@pytest.mark.parametrize("path", hostile.PATHS)
def test_a_hostile_address_is_answered(public, path):
    status, answer = public.get(path)
    assert status < 500 and b"Traceback" not in answer


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": "a star", "model": STUDENT, "colour": 1}, "no parameter 'colour'; it takes model, prompt, "),
        ({"prompt": "a star"}, "needs a value for 'model'; it takes model, prompt, "),
        ({"model": STUDENT}, "needs a value for 'prompt'"),
    ],
    ids=["unknown", "no model", "no prompt"],
)
def test_a_key_that_is_unknown_or_missing_is_named(public, body, says):
    status, answer = public.post("gradio_api/call/v2/generate", json.dumps(body).encode())
    assert status == 422 and says in json.loads(answer)["detail"][0]["message"]


def test_gradio_client_passes_the_words_on(public):
    """Its own check of the names stands before ours; past it, a refusal is a ValidationError with the sentence."""
    client = Client(public.url, verbose=False)
    data = {"data": [1], "fn_index": 0, "session_hash": "client"}
    answer = httpx.post(public.url + "gradio_api/queue/join", json=data)
    assert "takes a list `data`" in extract_validation_message(answer)
    with pytest.raises(TypeError, match="colour"):
        client.predict(model=STUDENT, prompt="a star", colour=1, api_name="/generate")


# --- what a request of a stranger may cost


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 51}, "at most 50 steps, not 51"),
        ({"images": 16, "width": 256, "height": 256}, "at most 4 pictures of 256x256 px"),
        ({"width": 2048, "height": 2048}, "not 1 of 2048x2048 px"),
    ],
    ids=str,
)
def test_a_request_that_keeps_others_waiting_is_refused(public, change, says):
    with pytest.raises(Refused, match=says):
        public.call("generate", {"model": STUDENT, **QUICK, **change})
    with pytest.raises(Refused, match=says):
        public.call("compare", {"models": [TEACHER, STUDENT], **QUICK, **change})
    one = {k: v for k, v in change.items() if k != "images"}
    if one == change:
        with pytest.raises(Refused, match=says):
            public.call("attention", {"models": [STUDENT], **QUICK, **one})


def test_a_comparison_of_many_models_is_refused(public):
    with pytest.raises(Refused, match="at most 4 models at once, not 5"):
        public.call("compare", {"models": [STUDENT] * 5, **QUICK})
