"""Names, folders and hub ids; unknown names get their nearest neighbours."""

import json

import pytest

from koala.registry import CARDS, EMBEDDED, find
from koala.request import RequestError


def test_cards_are_found_by_name_by_folder_and_by_hub_id():
    assert find("koala-lightning-700m") is CARDS["koala-lightning-700m"]
    assert find("etri-vilab/koala-lightning-700m") is CARDS["koala-lightning-700m"]
    assert find(str(EMBEDDED / "tiny-sdxl")) is CARDS["tiny-sdxl"]


def test_a_folder_of_ones_own_tells_its_native_size(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"sample_size": 64}))
    card = find(str(tmp_path))
    assert (card.width, card.height, card.source) == (512, 512, str(tmp_path))


@pytest.mark.parametrize("name", ["tiny-sdlx", "koala700m"])
def test_an_unknown_name_gets_its_neighbours_and_the_list(name):
    with pytest.raises(RequestError) as caught:
        find(name)
    assert f"unknown model '{name}'; did you mean " in str(caught.value)
    assert "segmind-vega" in str(caught.value)


def test_published_settings_of_the_checkpoints():
    lightning = CARDS["koala-lightning-700m"]
    assert (lightning.steps, lightning.guidance, lightning.scheduler) == (10, 3.5, "euler-trailing")
    turbo = CARDS["sdxl-turbo"]
    assert (turbo.width, turbo.guidance) == (512, 0.0)
    assert all("non-commercial" in c.licence for n, c in CARDS.items() if n.startswith("koala") or n == "sdxl-turbo")
