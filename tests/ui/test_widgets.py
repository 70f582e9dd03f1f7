"""What a visitor or a file wrote is shown as text, everywhere; the numbers are those of the result."""

import re
from html.parser import HTMLParser

import pytest

from koala.errors import UserError
from koala.models import registry
from koala.models.cards import CARDS
from koala.models.locate import locate
from koala.request import GenerationRequest
from koala.sampling.resolve import same_noise
from koala.shapes.captions import parse
from koala.shapes.judge import no_verdict
from koala.ui import messages, settings, stage, widgets
from koala.ui.loader import ModelState

HOSTILE = """<script>alert(1)</script> ${1+1} {{x}} "double" 'single' & 🐨 </p><img src=x onerror=alert(1)>"""
PAIR = ("tiny-sdxl", "tiny-koala-700m")


class Reader(HTMLParser):
    """Tags and text of HTML, as a browser would see them."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attributes)

    def handle_data(self, data):
        self.text += data


def entry(model: str, unet_ms: float, calls: int = 50) -> dict:
    steps = [unet_ms / 25] * 25
    timing = {"text_ms": 7.0, "unet_ms": steps, "unet_calls": calls, "vae_ms": 160.0, "total_ms": unet_ms + 170}
    timing |= {"peak_memory_bytes": 640e6, "swap_ms": 0.0}
    asked = {"steps": 25, "guidance": 2.0}
    own = {"model": model, "parameters": CARDS[model].parameters, "request": asked}
    return own | {"timing": timing, "plan": None, "lora": None}


def comparison(device="AMD EPYC, 2 threads") -> dict:
    speed = {"per_call": 2.0, "calls": 1.0, "unet": 2.0, "total": 1.9}
    return {
        "models": [entry(PAIR[0], 2266.0), entry(PAIR[1], 1132.5)],
        "speedup": {"baseline": PAIR[0], "models": [{"model": PAIR[1]} | speed]},
        "device": device,
        "versions": {},
    }


def claim(text: str, holds: bool, seen: str = "1 object") -> dict:
    return {"kind": "count", "claim": text, "holds": holds, "seen": seen}


def test_timing_spells_everything_out():
    read = Reader(widgets.timing(comparison())).text
    for words in (
        "text 7 ms", "50 calls × 45.3 ms = 2.27 s", "VAE 160 ms", "2.44 s", "640 MB", "6,442,948", "1,967,636",
        "AMD EPYC, 2 threads", "2.00× per U-Net call", "1.00× by the number of calls = 2.00×", "1.90× in total",
        "as fast as Tiny SDXL (teacher): in this run Tiny KOALA-700M took 1.30 s instead of 2.44 s",
        "25 steps with guidance 2",
        "Warm-up and previews are not counted", "their own",
    ):  # fmt: skip
        assert words in read, words


def test_a_speed_up_of_other_settings_says_which_part_is_theirs():
    given = comparison()
    few = given["models"][1]
    few["request"], few["timing"]["unet_calls"] = {"steps": 4, "guidance": 0.0}, 4
    given["speedup"]["models"][0] |= {"calls": 12.5, "unet": 25.0, "total": 10.4}
    read = Reader(widgets.timing(given)).text
    for words in (
        "10.40× as fast as", "4 steps without guidance", "25 steps with guidance 2",
        "The model: 2.00× per U-Net call · the settings: 12.50× by the number of calls, 4 instead of 50 = 25.00×",
    ):  # fmt: skip
        assert words in read, words


def test_timing_says_where_memory_was_not_measured():
    given = comparison()
    given["models"][0]["timing"]["peak_memory_bytes"] = None
    assert "peak memory not measured" in Reader(widgets.timing(given)).text


def test_the_memory_plan_is_shown_with_its_reasons_and_moving_parts_apart():
    given = comparison()
    given["models"][0]["plan"] = {
        "predicted_peak_bytes": 5.4e9,
        "budget_bytes": 7.2e9,
        "choices": [{"what": "decoder", "value": "tiles of 512 px", "reason": HOSTILE}],
    }
    given["models"][1]["timing"]["swap_ms"] = 420.0
    read = Reader(widgets.timing(given))
    for words in ("a peak of 5.4 GB of 7.2 GB predicted", "tiles of 512 px", HOSTILE, "not in the total 420 ms"):
        assert words in read.text, words
    assert "script" not in read.tags


def test_a_verdict_says_in_words_what_holds():
    pictures = [[[claim("1 object", True), claim("red", False, "blue")], [claim("1 object", True), claim("red", True)]]]
    read = Reader(widgets.verdicts(["Teacher", "Student"], pictures, None)).text
    assert "1 of 2 hold" in read and "all 2 hold" in read and "✗ saw blue" in read and "✓ holds" in read


@pytest.mark.parametrize("prompt", ["a koala", "two circles and two stars"])
def test_a_prompt_that_is_not_judged_says_why(prompt):
    reason = no_verdict(prompt)
    assert f"No verdict: {reason}." in widgets.verdicts(["Teacher", "Student"], [[None, None]], reason)


def test_several_pictures_have_a_verdict_each():
    html = widgets.verdicts(["A", "B"], [[[claim("x", True)], [claim("x", False)]]] * 3, None)
    assert Reader(html).tags.count("details") == 3 and html.count("<details open>") == 1


@pytest.mark.parametrize(
    "html",
    [
        widgets.states([ModelState(title=HOSTILE, state="needs", detail=HOSTILE)], HOSTILE),
        widgets.timing(comparison(HOSTILE)),
        widgets.verdicts([HOSTILE, "B"], [[[claim(HOSTILE, False, HOSTILE)], [claim(HOSTILE, True)]]], None),
        f"<p>{messages.safe(HOSTILE)}</p>",
    ],
    ids=["states", "timing", "verdicts", "toast"],
)
def test_hostile_text_stays_text(html):
    read = Reader(html)
    assert "script" not in read.tags and "img" not in read.tags
    assert HOSTILE in read.text or HOSTILE in read.text[:1].lower() + read.text[1:]


def test_the_stage_template_has_no_place_for_text():
    """The template is compiled in the browser: a prompt in it would be code. Data goes through props alone."""
    template = (stage.Path(widgets.__file__).parent / "compare" / "stage.html").read_text()
    assert "{{" not in template and "${" not in template and "`" not in template
    for script in ("stage.js", "history.js", "denoising.js"):
        assert "innerHTML" not in (stage.Path(widgets.__file__).parent / "compare" / script).read_text()


# The core's messages with remedies for a terminal, each followed by the page's words.
FOR_THE_PAGE = """
tiny is not on this machine. With a network, fetch it once (6.9 GB): python -m koala fetch tiny
tiny is not on this machine. With a network, download it once (6.9 GB) in the Compare tab, on your own machine
no answer from the hub. With a network: python -m koala fetch tiny (what came already stays)
no answer from the hub. With a network, download it in the Compare tab (what came already stays)
no model was named; `python -m koala models` lists them
no model was named; choose one from the list
the preset fast is torch's; use --preset quality
the preset fast is torch's; choose the preset quality
it takes no LoRA; fuse it into an export of its own: python -m koala export --model MODEL --lora a.b --out DIR
it takes no LoRA; fuse it into an export of its own in the Export tab
it takes 9.0 GB; this fits with 4.1 GB: --width 512 --height 256 --images 1
it takes 9.0 GB; this fits with 4.1 GB: one image of 512x256 px
memory ran out. Choose a smaller model; --vram GB plans for less where other programs use the memory
memory ran out. Choose a smaller model
it overflows; draw it in float32: python -m koala generate --dtype float32; or lower --lora-strength, now 2
it overflows; choose another model; or lower the LoRA strength, now 2
export it in fp32: python -m koala export --model a --out DIR. python -m koala export verify a.b names the part at fault
export it in fp32 in the Export tab. Verify in the Export tab names the part at fault
no small VAE of this model is here: python -m koala fetch MODEL --tiny-vae brings it
no small VAE of this model is here
taken for a LoRA of SDXL; if it was trained on KOALA, python -m koala lora --lora FILE says so
taken for a LoRA of SDXL
a comparison needs at least two models, for example --models tiny-sdxl tiny-koala-700m
a comparison needs at least two models, for example tiny-sdxl and tiny-koala-700m
exports run on cpu or cuda here, not on mps; use --device cpu
exports run on cpu or cuda here, not on mps; choose another model
""".strip().splitlines()


@pytest.mark.parametrize(("message", "shown"), list(zip(FOR_THE_PAGE[::2], FOR_THE_PAGE[1::2], strict=True)))
def test_the_page_offers_no_remedy_for_a_terminal(message, shown):
    assert messages.readable(UserError(message)) == shown


@pytest.mark.parametrize(
    "message",
    [
        "the file a--b.png is no picture; choose another",
        "the koala is grey; draw it again",
        "a snake -- it bites",
    ],
)
def test_other_words_stay_as_they_are(message):
    assert messages.readable(UserError(message)) == message


def test_what_the_core_says_now_reaches_the_page_without_commands():
    """The real messages, so that a new wording of them cannot bring a command back."""
    causes = [
        lambda: GenerationRequest(model="", prompt="a star"),
        lambda: registry.find(""),
        lambda: locate(CARDS["koala-lightning-700m"]),
        lambda: same_noise([]),
    ]
    for cause in causes:
        with pytest.raises(UserError) as refused:
            cause()
        assert not re.search(r"koala (fetch|models)|python|--", messages.readable(refused.value)), refused.value


def test_toasts_are_clipped():
    assert len(messages.safe("x" * 100_000)) <= messages.LONGEST


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_out_of_memory_names_the_remedy(error):
    assert "smaller width and height" in messages.readable(error)


@pytest.mark.parametrize("prompt", widgets.EXAMPLES)
def test_the_examples_speak_the_shapes_language(prompt):
    described = parse(prompt)
    assert described is not None and described.unknown == ()


@pytest.mark.parametrize(
    ("model", "expected"),
    [("tiny-sdxl", "koala-tiny-sdxl-7.png"), ("/a b/ç<x>/", "koala--x--7.png"), ("owner/name", "koala-name-7.png")],
)
def test_file_names_are_plain(model, expected):
    assert stage.file_name(model, 7) == expected


# --- fields <-> requests <-> links


def fields(**change) -> dict:
    base = dict(prompt="a red circle", negative_prompt="", seed="5", scheduler="", width=256, height=256, images=1)
    base |= dict(preset="quality", lora=None, lora_strength=1.0)
    models = dict(model_a=PAIR[0], steps_a=25, guidance_a=7.5, model_b=PAIR[1], steps_b=10, guidance_b=3.5)
    return base | models | dict(model_c=None, model_d=None) | change


MORE = dict(model_c="tiny-koala-1b", steps_c=3, guidance_c=1.5, model_d="tiny-lightning", steps_d=4, guidance_d=0.0)


def find(name):
    return registry.find(name)


@pytest.mark.parametrize(("more", "count"), [({}, 2), ({k: v for k, v in MORE.items() if "_d" not in k}, 3), (MORE, 4)])
def test_fields_survive_requests_and_links(more, count):
    given = fields(prompt=HOSTILE, negative_prompt="ünï,&=?#", seed="4294967294", images=2, scheduler="ddim-trailing")
    given |= more
    given |= dict(preset="fast", lora="style.safetensors", lora_strength=0.5)
    requests = settings.to_requests(given, find)
    assert len(requests) == count and settings.from_requests(requests, find) == given
    from urllib.parse import parse_qsl

    restored, complaints = settings.from_query(dict(parse_qsl(settings.to_query(requests)[1:])), find)
    assert complaints == []
    assert restored == {name: value for name, value in given.items() if "lora" not in name}  # a file stays at home


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(prompt=""), "prompt is empty"),
        (dict(prompt="x" * 10_000), "10,000 characters; shorten it"),
        (dict(steps_a=0), "steps must lie between 1 and 200"),
        (dict(steps_b=10_000), "not 10000"),
        (dict(steps_a=None), None),
        (dict(width=13), "64 is the nearest"),
        (dict(height=100_000), "2048 is the nearest"),
        (dict(seed="abc"), "whole number"),
        (dict(seed="-1"), "between 0 and 4294967295"),
        (dict(seed=""), "seed is empty"),
        (dict(seed="9" * 5000), "whole number"),
        (dict(images=0), "images must lie between"),
        (dict(guidance_a=99), "guidance must be a number from 0 to 30"),
        (dict(model_a="tiny-sdlx"), "did you mean tiny-sdxl"),
        (dict(model_b=None), "no model was named"),
        (dict(scheduler="heun"), "unknown scheduler"),
        (dict(preset="swift"), "unknown preset.*quality, fast, turbo, low-memory"),
        (dict(lora="style.ckpt"), "must be a .safetensors file"),
        (dict(lora_strength=9), "strength must be a number from -4 to 4"),
    ],
    ids=str,
)
def test_bad_fields_are_refused_with_a_remedy(change, words):
    if words is None:
        settings.to_requests(fields(**change), find)
        return
    with pytest.raises(UserError, match=words):
        settings.to_requests(fields(**change), find)


def test_a_bad_link_is_used_as_far_as_it_is_good():
    query = dict(
        prompt="a star", seed="x", width="13", models="tiny-koala-1b,nothing-like-it", steps="9,0", guidance="a,3"
    )
    fields, complaints = settings.from_query(query, find)
    assert fields["prompt"] == "a star" and fields["model_a"] == "tiny-koala-1b" and fields["steps_a"] == 9
    assert fields["guidance_b"] == 3.0 and "seed" not in fields and fields["guidance_a"] == 2.0
    assert len(complaints) == 5, complaints


def test_a_model_is_left_out_of_the_middle():
    """Removing the third of four models leaves its slot empty."""
    requests = settings.to_requests(fields(**MORE | {"model_c": None}), find)
    assert [request.model for request in requests] == [*PAIR, "tiny-lightning"]


@pytest.mark.parametrize(("names", "count"), [("tiny-sdxl", 1), (",".join(["tiny-sdxl"] * 5), 5)])
def test_a_link_of_one_model_or_of_five_says_how_many_are_compared(names, count):
    set_fields, complaints = settings.from_query({"models": names}, find)
    assert complaints == [f"the link names {count} models; this page compares two to 4, as in models=first,second"]
    assert [set_fields[f"model_{slot}"] for slot in "abcd"[:count]] == ["tiny-sdxl"] * min(4, count)


def test_one_picture_goes_to_its_own_slot():
    student = GenerationRequest(model="tiny-koala-1b", prompt="a star", steps=4)
    fields = settings.from_requests([student], find)
    assert fields["model_b"] == "tiny-koala-1b" and fields["steps_b"] == 4 and "model_a" not in fields
