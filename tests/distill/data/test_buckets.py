"""Aspect buckets against SDXL's table, and the numbers that tell the U-Net about a crop."""

import pytest

from koala.distill.data.buckets import buckets, fit, nearest

# SDXL, appendix I: height, width; upright half
SDXL = (
    "512x2048 512x1984 512x1920 512x1856 576x1792 576x1728 576x1664 640x1600 640x1536 704x1472 704x1408 704x1344 "
    "768x1344 768x1280 832x1216 832x1152 896x1152 896x1088 960x1088 960x1024"
)


def test_the_sizes_at_1024_are_those_of_sdxl():
    upright = {tuple(int(n) for n in size.split("x")) for size in SDXL.split()}
    assert set(buckets(1024)) == upright | {(h, w) for w, h in upright} | {(1024, 1024)}


@pytest.mark.parametrize("resolution", [128, 256, 512, 768, 1024])
def test_every_size_suits_the_unet_and_has_about_the_area_of_the_square(resolution):
    result = buckets(resolution)
    assert (resolution, resolution) in result and len(result) >= 5
    step = 64 if resolution >= 768 else 32
    assert all(w % step == h % step == 0 and 0.9 <= w * h / resolution**2 <= 1 for w, h in result)


def test_the_embedded_teachers_sizes_are_among_those_of_256():
    assert {(256, 256), (320, 192), (192, 320)} <= set(buckets(256))


def test_a_picture_goes_to_the_size_of_its_shape():
    assert nearest(1274, 1457, 1024) == (960, 1088)
    assert nearest(4000, 4000, 1024) == (1024, 1024)
    assert nearest(320, 192, 256) == (320, 192)
    assert nearest(100, 10_000, 1024) == (512, 2048)


def test_a_crop_takes_the_middle_and_says_where_it_was():
    result = fit(1000, 500, (256, 256))
    assert result.box == pytest.approx((250, 0, 750, 500))
    assert result.time_ids == (500, 1000, 0, 128, 256, 256)
    upright = fit(300, 600, (256, 256))
    assert upright.time_ids == (600, 300, 128, 0, 256, 256)


def test_a_picture_of_its_buckets_size_is_left_alone():
    result = fit(320, 192, (320, 192))
    assert result.box == (0, 0, 320, 192) and result.time_ids == (192, 320, 0, 0, 192, 320)
