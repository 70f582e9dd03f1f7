"""The bridge on the real embedded models: updates as they come, Stop within one step, errors that keep it alive."""

import shutil
import threading
import time

import pytest

from koala.errors import Cancelled, UserError
from koala.models.cards import CARDS, EMBEDDED
from koala.request import GenerationRequest
from koala.sampling.generate import Step
from koala.sampling.result import folder_mark, shared
from koala.ui.session import Session
from koala.ui.stage import Stage
from koala.ui.under_way import Life
from tests.ui.conftest import PAIR


@pytest.fixture(scope="module")
def session():
    return Session(device="cpu").start()


def requests(steps=3, **change):
    return [GenerationRequest(model=m, prompt="a red circle", steps=steps, **change) for m in PAIR]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_models_load_behind_the_page():
    quiet = Session()
    assert [quiet.loader.state(m).state for m in PAIR] == ["waiting", "waiting"]
    assert not quiet.loader.settled and quiet.note == ""
    quiet.start()
    wait_for(lambda: quiet.loader.settled)
    assert [quiet.loader.state(m).state for m in PAIR] == ["ready", "ready"]
    if quiet.loader.device_type == "cpu":
        assert quiet.note.startswith("No GPU here")
    assert all(quiet.loader.library().get(m).warm for m in PAIR)  # so the first click is as quick as the next


def test_on_a_device_that_is_only_lent_nothing_is_drawn_ahead(session, monkeypatch):
    wait_for(lambda: session.loader.settled)
    drawn = []
    monkeypatch.setattr("koala.sampling.compare.warm_up_together", lambda *_, **__: drawn.append(1))
    for wrap in (lambda draw: draw, None):
        other = Session(library=session.loader.library(), wrap=wrap).start()
        wait_for(lambda other=other: other.loader.settled)
        assert len(drawn) == (wrap is None)


def test_the_share_that_is_done_is_of_the_work_not_of_the_models(session):
    """Symptom: with the student's 4 steps drawn, a waiting visitor was told that half of the run was over."""
    teacher, student = ("tiny-sdxl", {"steps": 25, "guidance": 2.0}), ("tiny-koala-700m", {"steps": 4, "guidance": 0.0})
    asked = [GenerationRequest(model=m, prompt="a star", **settings) for m, settings in (teacher, student)]
    shares = []

    def draw(requests, library, *, cards, on_step, on_result, cancel):
        for position, index in ((1, 4), (0, 10), (0, 25)):
            on_step(position, Step(index=index, total=requests[position].steps, preview=None))
            shares.append(session.device.line._tickets[0].done)

    list(session.device.run(asked, draw=draw))
    calls = 50 * 6_442_948, 4 * 1_967_636  # times parameters
    wanted = [calls[1] / sum(calls), (0.4 * calls[0] + calls[1]) / sum(calls), 1]
    assert shares == pytest.approx(wanted)


@pytest.mark.slow
def test_a_comparison_comes_step_by_step(session):
    seen, previews, results = {0: [], 1: []}, 0, {}
    for update in session.device.run(requests(steps=4)):
        for position, step in update.steps.items():
            seen[position].append(step.index)
            previews += step.preview is not None
        results |= update.results
    assert all(steps == sorted(set(steps)) and steps[-1] == 4 for steps in seen.values())
    assert sorted(results) == [0, 1] and previews >= 2
    assert all(r.images[0].size == (256, 256) for r in results.values())


def test_one_model_alone(session):
    updates = list(session.device.run(requests(steps=2)[1:]))
    assert updates[-1].results[0].request.model == PAIR[1]


def test_cancel_ends_the_run_within_one_step(session):
    life, last = Life(), 0
    with pytest.raises(Cancelled):
        for update in session.device.run(requests(steps=150), life):
            for step in update.steps.values():
                last = step.index
                if step.index >= 2:
                    life.stop()
    assert 2 <= last <= 5
    wait_for(lambda: not len(session.device.line), 10)


def test_closing_the_iterator_frees_the_model(session):
    running = session.device.run(requests(steps=150))
    wait_for(lambda: next(running).steps)
    begun = time.monotonic()
    running.close()
    took = time.monotonic() - begun
    print(f"closed after {took:.4f} s")
    assert took < 0.05  # Gradio closes it on the event loop, where every other visitor waits
    wait_for(lambda: not len(session.device.line), 10)
    wait_for(lambda: not any(t.name == "koala-run" for t in threading.enumerate()), 1)
    assert not session.loader.library().get(PAIR[0]).lock.locked()


def test_an_error_leaves_the_session_usable(session, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(EMBEDDED / PAIR[1], broken)
    (broken / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="unet/diffusion_pytorch_model.safetensors is missing.*save_pretrained"):
        list(session.device.run([GenerationRequest(model=str(broken), prompt="a star", steps=1)]))
    assert "is missing" in session.loader.state(str(broken)).detail
    assert list(session.device.run(requests(steps=1)[1:]))[-1].results


def test_a_model_that_is_not_here_says_what_it_needs(session):
    session.loader.want("sdxl-base")
    state = session.loader.state("sdxl-base")
    if state.state == "needs":
        assert "in the Compare tab" in state.detail and "koala fetch" not in state.detail
    label = next(label for label, name in session.catalogue.choices() if name == "sdxl-base")
    assert ("not on this machine" in label) == (state.state == "needs")


def test_a_licence_that_is_not_ours_is_told_where_the_model_is_chosen():
    labels = {name: label for label, name in Session().catalogue.choices()}
    assert {name for name, label in labels.items() if "licence" not in label} == {
        card.name for card in CARDS.values() if card.licence == "Apache-2.0"
    }
    assert "licence: CreativeML Open RAIL++-M, non-commercial" in labels["koala-lightning-700m"]
    assert labels["tiny-sdxl"] == CARDS["tiny-sdxl"].title


def test_visitors_from_elsewhere_cannot_name_folders(tmp_path):
    public = Session(local=False)
    with pytest.raises(UserError, match="on this server the names are"):
        public.catalogue.card(str(EMBEDDED / PAIR[0]))
    assert public.catalogue.card(PAIR[0]).name == PAIR[0]
    assert Session([str(EMBEDDED / PAIR[0]), PAIR[1]], local=False).models == PAIR


def test_a_picture_finds_its_folder_again_without_naming_where_it_lies(tmp_path, embedded):
    folders = [shutil.copytree(embedded / "tiny-koala-700m", tmp_path / who / "mine") for who in "ab"]
    asked = GenerationRequest(model=str(folders[1].resolve()), prompt="a red circle")
    session = Session([str(f) for f in folders])
    assert session.catalogue.of_picture(shared(asked), folder_mark(asked.model)) == asked
    assert session.catalogue.of_picture(shared(asked), None) == shared(asked)
    other = Session([str(folders[0])])
    with pytest.raises(UserError, match="drawn with a folder named 'mine'.*with that folder as one of its models"):
        other.catalogue.of_picture(shared(asked), folder_mark(asked.model))


@pytest.mark.parametrize("models", [("nothing-like-it", PAIR[0])])
def test_unknown_models_are_refused_at_the_start(models):
    with pytest.raises(UserError, match="unknown model"):
        Session(models)


def test_the_stage_shows_a_stopped_run():
    show = Stage(requests(), [Session().catalogue.card(m) for m in PAIR])
    value = show.say("Stopped at Tiny SDXL: step 2 of 3.", "stopped")
    assert value["phase"] == "stopped" and value["status"].startswith("Stopped") and value["prompt"] == "a red circle"


def test_a_public_visitor_neither_downloads_nor_names_files():
    public = Session(device="cpu", local=False)
    assert public.loader.downloadable(["sdxl-base"]) == []
    with pytest.raises(UserError, match="cannot be downloaded"):
        public.loader.download("sdxl-base")
    with pytest.raises(UserError, match="your own machine only"):
        public.catalogue.check(GenerationRequest(model=PAIR[0], prompt="a star", lora="/etc/passwd.safetensors"))


def test_a_download_that_fails_says_so_and_is_no_end(session, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    session.loader.want("segmind-vega")
    if session.loader.state("segmind-vega").state == "ready":
        pytest.skip("segmind-vega is on this machine")
    session.loader.download("segmind-vega")
    wait_for(lambda: session.loader.state("segmind-vega").state == "needs")
    assert "download it in the Compare tab" in session.loader.state("segmind-vega").detail
    assert session.loader.downloadable(["segmind-vega"])
    assert list(session.device.run(requests(steps=1)[1:]))[-1].results
