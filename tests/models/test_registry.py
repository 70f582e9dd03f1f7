"""Names, aliases, folders, hub ids and revisions; unknown names get their nearest neighbours."""

import json
from dataclasses import replace

import pytest

from koala.errors import UserError
from koala.models.cards import CARDS, EMBEDDED
from koala.models.layout import SURGERY
from koala.models.registry import find
from koala.unet.specs import KOALA_700M, TINY_KOALA_700M, TINY_SDXL, student


def test_cards_are_found_by_name_by_folder_and_by_hub_id():
    assert find("koala-lightning-700m") is CARDS["koala-lightning-700m"]
    assert find("KOALA-Lightning-700M") is CARDS["koala-lightning-700m"]
    assert find("etri-vilab/koala-lightning-700m") is CARDS["koala-lightning-700m"]
    assert find("stabilityai/stable-diffusion-xl-base-1.0") is CARDS["sdxl-base"]
    assert find("ByteDance/SDXL-Lightning/sdxl_lightning_8step_unet.safetensors") is CARDS["sdxl-lightning-8step"]
    assert find(str(EMBEDDED / "tiny-sdxl")) is CARDS["tiny-sdxl"]


def test_aliases_are_nobody_elses_name():
    aliases = [alias for card in CARDS.values() for alias in card.aliases]
    assert aliases
    assert not set(aliases) & set(CARDS)
    assert {find(a).name for a in aliases} == {"sdxl-base", "sdxl-lightning-4step", "segmind-vega"}


@pytest.mark.parametrize(
    ("config", "scheduler"),
    [
        ({"timestep_spacing": "leading"}, "euler-leading"),
        ({"_class_name": "EulerDiscreteScheduler"}, "euler-linspace"),  # as diffusers has it where nothing is said
        ({"_class_name": "UniPCMultistepScheduler"}, "euler-linspace"),
        ({"_class_name": "DDIMScheduler"}, "euler-leading"),
        ({"_class_name": "PNDMScheduler", "timestep_spacing": "trailing"}, "euler-trailing"),
        ({"_class_name": "EulerAncestralDiscreteScheduler"}, "euler-linspace"),
        ({"timestep_spacing": "trailing", "_class_name": "EulerDiscreteScheduler"}, "euler-trailing"),
        (
            {"timestep_spacing": "trailing", "_class_name": "EulerAncestralDiscreteScheduler"},
            "euler-ancestral-trailing",
        ),
    ],
)
def test_a_folder_of_ones_own_tells_its_native_size_its_spec_and_its_scheduler(tmp_path, config, scheduler):
    unet = json.loads((EMBEDDED / "tiny-koala-700m" / "unet" / "config.json").read_text())
    (tmp_path / "unet").mkdir()
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(unet | {"sample_size": 64}))
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    card = find(str(tmp_path))
    assert (card.width, card.height, card.source) == (512, 512, str(tmp_path))
    assert (replace(card.spec, name=TINY_KOALA_700M.name), card.parameters) == (TINY_KOALA_700M, 1_967_636)
    assert card.scheduler == scheduler


@pytest.mark.parametrize(
    ("sample_size", "size"), [(48, (384, 384)), ([32, 64], (512, 256)), ((16, 16), (128, 128)), (None, (1024, 1024))]
)
def test_a_native_size_is_one_side_or_height_and_width(tmp_path, sample_size, size):
    (tmp_path / "unet").mkdir()
    config = TINY_KOALA_700M.config() | {"sample_size": sample_size}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    card = find(str(tmp_path))
    assert (card.width, card.height) == size


@pytest.mark.parametrize("sample_size", [30, 4, 10**9, [32], [32, 32, 32], "32", 32.0, True, [32, float("nan")]])
def test_a_native_size_that_cannot_be_drawn_names_its_file(tmp_path, sample_size):
    (tmp_path / "unet").mkdir()
    file = tmp_path / "unet" / "config.json"
    file.write_text(json.dumps(TINY_KOALA_700M.config() | {"sample_size": sample_size}))
    with pytest.raises(UserError, match="its sample_size is .* multiples of 4 from 8 to 256") as output:
        find(str(tmp_path))
    assert str(file) in str(output.value)


def _student(folder, spec, teacher):
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text(json.dumps(spec.config() | {"sample_size": 32}))
    (folder / SURGERY).write_text(json.dumps({"teacher": teacher}))
    return find(str(folder))


_RUN = ("scheduler", "noising", "steps", "guidance", "negative_prompt")


@pytest.mark.parametrize("teacher", ["tiny-sdxl", "Tiny-SDXL@main"])
def test_a_student_folder_is_run_as_its_teacher(tmp_path, teacher):
    card, teacher_card = _student(tmp_path, student("0,1,2/-/2+2,1+1,0+0", TINY_SDXL), teacher), CARDS["tiny-sdxl"]
    assert [getattr(card, f) for f in _RUN] == [getattr(teacher_card, f) for f in _RUN]
    assert (teacher_card.guidance, teacher_card.noising) == (2.0, "straight")  # not what a card says by itself
    assert (card.teacher, card.licence, card.source) == ("tiny-sdxl", teacher_card.licence, str(tmp_path))


def test_a_student_of_published_depths_is_run_as_the_published_one(tmp_path):
    """A teacher of four steps makes no student of four steps by itself: KOALA's authors draw theirs in ten, guided."""
    card = _student(tmp_path, KOALA_700M, "sdxl-lightning-4step")
    assert (card.steps, card.guidance) == (10, 3.5)
    assert [getattr(card, f) for f in _RUN] == [getattr(CARDS["koala-lightning-700m"], f) for f in _RUN]
    assert card.licence == CARDS["sdxl-lightning-4step"].licence  # the weights are one's own, not theirs


@pytest.mark.parametrize("teacher", ["/gone/teacher", "somebody/sdxl", None, ["tiny-sdxl"], {}])
def test_a_student_of_an_unknown_teacher_is_a_folder_like_any_other(tmp_path, teacher):
    card = _student(tmp_path, KOALA_700M, teacher)
    assert (card.teacher, card.guidance, card.noising, card.licence) == (None, 7.5, "ddpm", "see its folder")


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_not_the_folder_that_one_is_in(name):
    with pytest.raises(UserError, match="no name.*koala models"):
        find(name)


@pytest.mark.parametrize("name", ["tiny-sdlx", "koala700m"])
def test_an_unknown_name_gets_its_neighbours_and_the_list(name):
    with pytest.raises(UserError) as caught:
        find(name)
    assert f"unknown model '{name}'; did you mean " in str(caught.value)
    assert "segmind-vega" in str(caught.value)


def test_a_revision_pins_a_name_or_a_hub_id():
    card = find("koala-700m@v1")
    assert card == replace(CARDS["koala-700m"], name="koala-700m@v1", revision="v1")
    card = find("someone/model@refs/pr/3")
    assert (card.source, card.revision) == ("someone/model", "refs/pr/3")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("koala-700m@", "is not a revision"),
        ("koala-700m@../../etc", "is not a revision"),
        ("koala-700m@a b", "is not a revision"),
        ("tiny-sdxl@main", "has no revisions"),
        ("sdxl-lightning-1step", "predicts the clean picture"),
        ("ByteDance/SDXL-Lightning/sdxl_lightning_1step_unet_x0.safetensors", "predicts the clean picture"),
        ("ByteDance/SDXL-Lightning", "use sdxl-lightning-2step"),
        ("sd_xl_base_1.0.safetensors", "there is no file sd_xl_base_1.0.safetensors"),
        ("model.ckpt", "is a pickle"),
        ("someone/na--me", "unknown model"),
        ("someone/me-", "unknown model"),
        ("someone/me.git", "unknown model"),
        (f"someone/{'m' * 90}", "unknown model"),
        ("someone/../me", "unknown model"),
        ("../../someone", "unknown model"),
    ],
)
def test_what_cannot_be_a_model_is_refused_with_the_remedy(model, message):
    with pytest.raises(UserError) as caught:
        find(model)
    assert message in str(caught.value)


def test_published_settings_of_the_checkpoints():
    def settings(name):
        card = CARDS[name]
        return card.scheduler, card.steps, card.guidance, card.width

    for size in ("700m", "1b"):
        assert settings(f"koala-lightning-{size}") == ("euler-trailing", 10, 3.5, 1024)
        assert settings(f"koala-{size}") == settings(f"koala-{size}-llava-cap") == ("euler-leading", 25, 7.5, 1024)
    for n in (2, 4, 8):
        assert settings(f"sdxl-lightning-{n}step") == ("euler-trailing", n, 0.0, 1024)
        assert CARDS[f"sdxl-lightning-{n}step"].unet_file.endswith(f"/sdxl_lightning_{n}step_unet.safetensors")
    assert settings("sdxl-turbo") == ("euler-trailing", 4, 0.0, 512)
    assert settings("sdxl-base") == ("euler-leading", 25, 7.5, 1024)
    assert all("non-commercial" in c.licence for n, c in CARDS.items() if n.startswith("koala") or n == "sdxl-turbo")
    for card in CARDS.values():
        assert card.teacher is None or card.teacher in CARDS
        assert ("worst quality" in card.negative_prompt) == card.name.startswith("koala")
        real = {"madebyollin/sdxl-vae-fp16-fix", "madebyollin/taesdxl"}
        assert {card.vae, card.tiny_vae} == ({None} if card.embedded else real)


def test_the_cards_have_the_published_totals():
    """As the checkpoints' own files add up to, typed from them: the cards compute theirs."""
    totals = {
        "tiny-sdxl": 6_442_948,
        "tiny-koala-1b": 2_916_564,
        "tiny-koala-700m": 1_967_636,
        "tiny-lightning": 6_442_948,
        "tiny-koala-lightning-1b": 2_916_564,
        "tiny-koala-lightning-700m": 1_967_636,
        "koala-lightning-700m": 782_822_724,
        "koala-lightning-1b": 1_161_184_324,
        "koala-700m": 782_822_724,
        "koala-1b": 1_161_184_324,
        "koala-700m-llava-cap": 782_822_724,
        "koala-1b-llava-cap": 1_161_184_324,
        "ssd-1b": 1_331_334_404,
        "segmind-vega": 745_225_604,
    }
    sdxl = {name: 2_567_463_684 for name in CARDS if name.startswith("sdxl")}
    assert {name: card.parameters for name, card in CARDS.items()} == totals | sdxl


def test_the_size_of_a_download_is_known_without_asking():
    assert CARDS["tiny-sdxl"].download_bytes is None
    assert find("someone/model").download_bytes is None
    assert CARDS["koala-700m"].download_bytes == pytest.approx(1.57e9 + 0.246e9 + 1.389e9 + 0.335e9, rel=0.002)
