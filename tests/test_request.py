"""Every bad field gets a message that names the remedy."""

import pytest

from koala.errors import UserError
from koala.request import GenerationRequest

GOOD = dict(model="tiny-sdxl", prompt="a red circle")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "the prompt is empty; describe a picture"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": "x" * 10_000}, "the prompt has 10,000 characters; shorten it to 2,000"),
        ({"negative_prompt": "x" * 2001}, "the negative prompt has 2,001 characters"),
        ({"prompt": 7}, "the prompt must be text, not 7"),
        ({"model": " "}, "no model was named"),
        ({"steps": 0}, "steps must lie between 1 and 200, not 0"),
        ({"steps": 10_000}, "steps must lie between 1 and 200, not 10000"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"steps": True}, "steps must be a whole number"),
        ({"width": 13}, "width must be a multiple of 32 from 64 to 2048 px, not 13; 64 is the nearest"),
        ({"height": 100_000}, "2048 is the nearest"),
        ({"width": 10**400}, "2048 is the nearest"),  # no float holds it
        ({"width": "wide"}, "width must be a multiple of 32"),
        ({"seed": -1}, "seed must lie between 0 and 4294967295, not -1"),
        ({"seed": 2**32 - 1, "images": 2}, "the largest is 4294967295; choose a seed of at most 4294967294"),
        ({"seed": 2**32 - 15, "images": 16}, "choose a seed of at most 4294967280, or fewer images"),
        ({"lora": "st\udc80le.safetensors"}, "is not text, so no picture could carry it; rename the file"),
        ({"seed": "lucky"}, "seed must be a whole number from 0 to 4294967295, not 'lucky'"),
        ({"guidance": -1}, "guidance must be a number from 0 to 30"),
        ({"guidance": "much"}, "guidance must be a number"),
        ({"guidance": float("nan")}, "guidance must be a number"),
        ({"images": 0}, "images must lie between 1 and 16"),
        ({"scheduler": "eulerr"}, "unknown scheduler 'eulerr'; choose one of euler-trailing"),
    ],
)
def test_bad_field_names_its_remedy(change, message):
    with pytest.raises(UserError) as caught:
        GenerationRequest(**GOOD | change)
    assert message in str(caught.value)


def test_a_request_survives_json_and_unknown_fields_are_refused_by_name():
    request = GenerationRequest(**GOOD, seed=3, width=320, height=192)
    assert GenerationRequest.from_dict(request.to_dict()) == request
    with pytest.raises(UserError, match="unknown request field 'sampler'"):
        GenerationRequest.from_dict(GOOD | {"sampler": "x"})
    with pytest.raises(UserError, match="the request lacks prompt"):
        GenerationRequest.from_dict({"model": "tiny-sdxl"})
