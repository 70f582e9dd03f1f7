"""The endpoints under any JSON: an answer or a refusal in words, no traceback, no hang, alive afterwards."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.safety.conftest import QUICK, STUDENT, TEACHER, Refused

STEADY = settings(
    max_examples=100,
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


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000], ids=repr)
@pytest.mark.parametrize("name", ["generate", "v2/generate", "nothing"])
def test_a_body_that_is_no_call_is_refused(public, name, body):
    status, answer = public.post(f"gradio_api/call/{name}", body)
    assert status in (200, 400, 404, 422, 500) and b"Traceback" not in answer


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
