"""What the Architecture tab says: exact counts, honest sources, only what a teacher can give, and a cut that is one."""

import gc
import json
import os
import re
import shlex
import time

import gradio as gr
import pytest
from safetensors import safe_open

from koala.benchmark.matrix import Matrix
from koala.cli.main import main, parser
from koala.errors import UserError
from koala.hardware.latency import GPUS
from koala.models.cards import CARDS, EMBEDDED
from koala.models.registry import find
from koala.request import GenerationRequest
from koala.sampling import report
from koala.ui import widgets
from koala.ui.architecture import data as architecture
from koala.ui.architecture import students
from koala.ui.architecture import svg as architecture_svg
from koala.ui.architecture.data import BEGIN, TITLES, change, read, view
from koala.ui.architecture.tab import EMPTY, Architecture, template
from koala.ui.benchmark.tab import command
from koala.ui.line import Work
from koala.ui.session import Session
from koala.unet.costs import blocks
from koala.unet.specs import KOALA_700M, SDXL, SPECS, TINY_KOALA_700M, TINY_SDXL, student
from tests.ui.handlers import Sent, Visitor

CARD = "rtx-4090"


@pytest.fixture(scope="module")
def koala():
    return view(KOALA_700M, "sdxl", 1024, CARD)


@pytest.mark.parametrize(
    ("name", "parameters", "flops", "kept"),
    [
        ("sdxl", "2,567,463,684", "6.76 TFLOP", "70 of 70 transformer blocks, 17 of 17 residual"),
        ("koala-1b", "1,161,184,324", "3.43 TFLOP", "30 of 70 transformer blocks, 11 of 17 residual"),
        ("koala-700m", "782,822,724", "2.70 TFLOP", "21 of 70 transformer blocks, 9 of 17 residual"),
        ("ssd-1b", "1,331,334,404", "4.21 TFLOP", "34 of 70 transformer blocks, 16 of 17 residual"),
    ],
)
def test_sums_are_the_published_ones(name, parameters, flops, kept):
    values = view(SPECS[name], "sdxl", 1024, CARD)
    assert (values["parameters"], values["flops"], values["kept"]) == (parameters, flops, kept)


def test_a_removed_block_says_what_it_saves_and_a_kept_one_where_it_comes_from(koala):
    removed, moved = (koala["parts"][f"up_blocks.0.attentions.{k}"] for k in (1, 2))
    assert removed["state"] == "removed" and removed["depth"] == 0
    assert dict(removed["facts"])["Weights"] == "not in this student: saves 350.8 M parameters"
    assert moved["state"] == "partly kept" and moved["depth"] == 5
    facts = dict(moved["facts"])
    assert facts["Parameters"] == "177.1 M of 350.8 M" and facts["Tokens"] == "1,024 (32 × 32), 1,280 channels each"
    assert facts["Weights"] == (
        "the teacher's up_blocks.0.attentions.2, its first 5 of 10 blocks; here it is up_blocks.0.attentions.1"
    )
    assert all(name in moved["label"] and value in moved["label"] for name, value in moved["facts"])
    assert koala["parts"]["mid_block.resnets.0"]["state"] == "removed"


def test_stage_sums_add_up_to_the_whole():
    """The bars are shares of the teacher's largest stage; they must add up as the parameters do."""
    for name in TITLES:
        values = view(SPECS[name], "sdxl", 1024, CARD)
        own, whole = (sum(s["bars"][k] for s in values["stages"].values()) for k in (0, 2))
        count = int(values["parameters"].replace(",", ""))
        assert own / whole == pytest.approx(count / 2_567_463_684, abs=2e-4), name


@pytest.mark.parametrize("layout", [architecture_svg.WIDE, architecture_svg.TALL], ids=lambda x: x.name)
def test_the_drawing_has_every_block_of_the_teacher_once_and_nothing_overlaps(layout):
    drawn = re.findall(r'data-path="([^"]+)"', architecture_svg.draw(layout))
    assert sorted(drawn) == sorted(b.path for b in blocks(SDXL, width=1024, height=1024))
    for stage, inside in architecture_svg.parts().items():
        end = -1.0
        for part, x, width in architecture_svg.placed(inside, layout):
            assert x > end, part
            end = x + width
        assert end + architecture_svg.SIDE <= layout.widths[stage] + 0.5, stage
    boxes = [architecture_svg._edges(stage, layout) for stage in layout.corners]
    for k, (left, top, right, bottom) in enumerate(boxes):
        assert 0 <= left < right <= layout.width and 0 <= top < bottom <= layout.height
        for a, b, c, d in boxes[k + 1 :]:
            assert right < a or c < left or bottom < b or d < top


def test_controls_reach_koala_from_sdxl():
    spec = change(SDXL, {"pairs": 1})
    assert spec.name == "bk-sdxl"
    for stage in ("DW-3", "UP-1"):
        spec = change(spec, {stage: 6})
    assert spec.name == "koala-1b" and spec.mid_depth == 6  # MID went along with DW-3
    for stage in ("DW-3", "UP-1"):
        spec = change(spec, {stage: 5})
    spec = change(spec, {"mid": "absent"})
    assert spec.name == "koala-700m"
    assert change(change(spec, {"pairs": 2}), {"pairs": 1}) == spec


def test_moves_that_wait_for_no_answer_are_all_made():
    """Symptom: a slider moved before the answer to another one had come took that one back."""
    moved = {"spec": "bk-sdxl", "DW-3": 5, "UP-1": 5, "mid": "absent", "turn": 3}
    assert change(read("bk-sdxl", "sdxl"), moved) == KOALA_700M


def test_a_stage_may_lose_its_attention_and_get_it_back():
    none = change(SDXL, {"DW-3": 0})
    assert none.down_depths[2] == (0, 0) and none.mid_depth == 10
    assert view(none, "sdxl", 1024, CARD)["stages"]["DW-3"]["depths"] == [0, 0]
    assert change(none, {"DW-3": 10}) == SDXL
    assert change(change(SDXL, {"mid": "alone"}), {"mid": "attention"}) == SDXL


@pytest.fixture
def no_collection():
    """As timeit measures: what other tests left in this process is collected before and after."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_every_slider_position_has_figures_in_time(no_collection):
    """Whatever is chosen in whatever order: a spec that the teacher can give, within the server's time."""
    slowest = 0.0
    for mid in architecture.MID_CHOICES:
        for pairs in (1, 2):
            for depth in range(11):
                begun = time.thread_time()
                spec = change(change(change(SDXL, {"mid": mid}), {"pairs": pairs}), {"DW-3": depth})
                spec = change(spec, {"UP-1": 10 - depth})
                values = view(spec, "sdxl", 1024, CARD)
                slowest = max(slowest, time.thread_time() - begun)
                assert read(values["spec"], "sdxl") == spec
    print(f"slowest answer {1000 * slowest:.1f} ms of processor time")
    assert slowest < 0.1


@pytest.mark.parametrize(
    ("spec", "teacher", "words"),
    [
        ("0,2,11/-/5+5,2+2,0+0", "sdxl", "DW-3: .* has 11 transformer blocks, sdxl only 10"),
        ("<script>", "sdxl", "is not a spec"),
        ("koala-700m", "../../etc", "unknown widths"),
    ],
)
def test_what_a_teacher_cannot_give_is_refused(spec, teacher, words):
    with pytest.raises(UserError, match=words):
        read(spec, teacher)


@pytest.mark.parametrize("what", [{"DW-2": 3}, {"UP-1": "5"}, {"mid": ["alone"]}, {"pairs": 3}])
def test_a_control_cannot_be_moved_where_it_does_not_go(what):
    with pytest.raises(UserError):
        change(SDXL, what)


def test_predictions_follow_the_card_and_say_what_a_small_one_gives_up(koala):
    assert koala["time"] == "1.40 s" and koala["memory_note"].endswith("everything stays on the device")
    times = {card: view(KOALA_700M, "sdxl", 1024, card)["time"] for card in ("rtx-3060-ti", CARD)}
    assert float(times["rtx-3060-ti"].split()[0]) > 2 * float(times[CARD].split()[0])
    small = view(SDXL, "sdxl", 1024, "rtx-3060-ti")
    assert "text encoders leave the card" in small["memory_note"]
    assert all(view(TINY_KOALA_700M, "tiny-sdxl", 256, card)["memory"].endswith(" GB") for card in GPUS)


def test_the_page_carries_no_template_code():
    """Gradio compiles a template as Handlebars and as a JavaScript literal; only Gradio's own marks may be code."""
    page = template()
    assert not re.search(r"\$\{|\{\{|`|@(presets|widths|gpus|wide|tall|rows|most)", page)


# --- compress now


def test_a_cut_is_the_teachers_weights_and_is_made_once():
    cuts = students.Students(Session(device="cpu"))
    one = cuts.make(TINY_KOALA_700M)
    assert cuts.make(student("koala-700m", TINY_SDXL)) is one and [s.card for s in cuts.all] == [one.card]
    print(f"cut in {one.seconds:.2f} s")
    assert one.card.parameters == 1_967_636 and one.card.teacher == "tiny-sdxl" and one.card.guidance == 2.0
    weights = "unet/diffusion_pytorch_model.safetensors"
    with (
        safe_open(f"{one.card.source}/{weights}", "pt") as student_file,
        safe_open(EMBEDDED / "tiny-sdxl" / weights, "pt") as teacher_file,
    ):
        name = "up_blocks.0.{}.transformer_blocks.4.attn1.to_q.weight"
        assert student_file.get_tensor(name.format("attentions.1")).equal(
            teacher_file.get_tensor(name.format("attentions.2"))
        )


@pytest.mark.slow
def test_the_oldest_student_that_nobody_uses_makes_room(monkeypatch):
    """Symptom: after eight cuts by anyone, nobody could make another one until the app was started again."""
    monkeypatch.setattr(students, "MOST", 2)
    session = Session(device="cpu")
    cuts = students.Students(session)
    first, second, third, fourth = (change(TINY_KOALA_700M, {"DW-3": d}) for d in (1, 2, 3, 4))
    old, used = cuts.make(first).card, cuts.make(second).card
    assert cuts.make(first).card is old  # there already
    assert re.fullmatch(r"[A-Za-z0-9._+-]+", old.name)
    cuts.make(third)
    assert not os.path.exists(old.source) and old.name not in [name for _, name in session.catalogue.choices()]
    with pytest.raises(UserError, match="unknown model"):
        session.catalogue.card(old.name)
    with session.device.using(used.name):
        cuts.make(fourth)  # takes the third's place
        assert [s.card.spec for s in cuts.all] == [second, fourth] and os.path.exists(used.source)
        with session.device.using(cuts.all[1].card.name), pytest.raises(UserError, match="keeps 2 students.*in use"):
            cuts.make(first)
    assert cuts.make(first).card.name == old.name


@pytest.fixture(scope="module")
def tab():
    session = Session(device="cpu", local=False).start()
    with gr.Blocks():
        yield Architecture(session)
    while not session.loader.settled:  # a process must not end in the middle of loading
        time.sleep(0.05)


def test_a_student_made_in_the_tab_is_in_the_lists_of_a_public_server_too(tab):
    before = tab.session.catalogue.choices()
    value = tab.compress(Sent(**BEGIN, turn=7))
    assert value["problem"] == "" and value["turn"] == 7
    (cut,) = value["made"]
    assert cut["title"] == "Tiny KOALA-700M (untrained cut)" and cut["folder"] == ""  # no path for visitors
    ((label, name),) = set(tab.session.catalogue.choices()) - set(before)
    assert label == cut["title"] and tab.session.catalogue.card(name).width == 256
    folder = tab.session.catalogue.card(name).source
    assert os.path.isdir(folder) and cut["link"] == f"?models=tiny-sdxl%2C{name}"
    assert os.path.dirname(folder) not in json.dumps(value) and os.sep not in name
    with pytest.raises(UserError, match="on this server the names are"):
        tab.session.catalogue.card(folder)


def test_where_a_gpu_is_only_lent_the_page_says_so_and_the_measurement_is_off(tab):
    """Symptom: on ZeroGPU only a click, and a wait in the line, told that nothing can be measured there."""
    with gr.Blocks():
        lent = Architecture(Session(local=False, wrap=lambda draw: draw))
    assert not lent.measure.interactive and "This measurement needs a GPU for longer" in lent.curves.value
    assert tab.measure.interactive and tab.curves.value == EMPTY


def test_a_student_draws_by_its_name_and_no_path_of_the_server_is_told(tab):
    """Symptom: the folder stood in the link, the lists, the answers of the API and the benchmark's command."""
    tab.compress(Sent(**BEGIN, turn=7))
    name = tab.students.all[-1].card.name
    requests = [GenerationRequest(model=m, prompt="a red circle", steps=1) for m in ("tiny-sdxl", name)]
    results = {}
    for update in tab.session.device.run(requests):
        results |= update.results
    result = results[1]
    assert result.request.model == name and result.parameters == 1_967_636
    png = result.png(0, tuple(requests))
    comparison = report.comparison([results[0], result], [["a.png"], ["b.png"]])
    shown = [comparison, widgets.timing(comparison, tab.session.catalogue.card)]
    matrix = Matrix(models=("tiny-sdxl", name))
    shown.append(command(matrix, [tab.session.catalogue.card(m) for m in matrix.models]))
    folder = os.path.dirname(tab.session.catalogue.card(name).source)
    assert (
        folder not in json.dumps(shown)
        and folder.encode() not in png
        and folder not in str(tab.session.catalogue.choices())
    )


def test_the_benchmark_of_a_student_can_be_made_again_in_a_terminal(tab, tmp_path, monkeypatch):
    tab.compress(Sent(**BEGIN, turn=7))
    card = tab.students.all[-1].card
    matrix = Matrix(models=("tiny-sdxl", card.name), sizes=(128,), steps=1, time_limit=60)
    cut, bench = command(matrix, [CARDS["tiny-sdxl"], card]).split(" && ")
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(cut)[3:]) == 0
    args = parser().parse_args(shlex.split(bench)[3:])
    assert args.models == ["tiny-sdxl", card.name] and find(os.path.abspath(args.models[1])).spec == card.spec


def test_the_similarity_of_layers_grows_prompt_by_prompt(tab, monkeypatch):
    monkeypatch.setattr("koala.evaluate.similarity.SHAPES", ("a red circle", "a blue star"))
    monkeypatch.setattr("koala.ui.architecture.tab.STEPS", 1)
    (text, off), *shown, (_, button) = tab.similarity(Visitor)
    assert "Starting" in text and not off.interactive and button.interactive
    first, second = [html for html, _ in shown if isinstance(html, str) and "<svg" in html]
    assert "Prompt 1 of 2" in first and "mean over 2 prompts and 1 steps" in second
    assert second.count("<polyline") == 11 and second.count("<svg") == 5


def test_a_measurement_waits_for_the_device_in_sight(tab):
    with tab.session.device.line.join("", Work(kind="drawing", amount=1)):
        shown = tab.similarity(Visitor)
        next(shown)
        assert "Waiting: 1 before you" in next(shown)[0]
        shown.close()
        assert len(tab.session.device.line) == 1


def test_the_cut_has_the_moves_that_the_drawing_still_waits_for(tab):
    value = tab.compress(Sent(**BEGIN, **{"UP-2": 1}, turn=8))
    assert value["spec"] == "0,2,5/-/5+5,1+1,0+0"
    assert value["made"][-1]["title"] == "Tiny 0,2,5/-/5+5,1+1,0+0 (untrained cut)"


def test_nonsense_from_a_browser_is_answered_and_harmless(tab):
    for sent in (
        {"spec": "../../x", "teacher": "sdxl"},
        {"spec": "koala-700m", "teacher": "<b>", "side": "1e9", "gpu": None},
        {"spec": 5, "teacher": ["sdxl"], "DW-3": 99},
        {"DW-3": 99},
        {"DW-3": "4"},
        {},
    ):
        for answer in (tab.change(Sent(**sent)), tab.compress(Sent(**sent))):
            json.dumps(answer)
            assert answer["parameters"]
