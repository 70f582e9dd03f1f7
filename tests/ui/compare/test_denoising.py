"""The denoising strip as the page takes it: every frame in its place, in a file; the page is sent little."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from koala.models.cards import CARDS
from koala.request import GenerationRequest, Timing
from koala.sampling.previews import EVERY, FRAME_SIDE, Frame
from koala.sampling.result import GenerationResult
from koala.ui.compare import denoising
from koala.ui.session import embedded_pair


def drawn(frames: tuple[Frame, ...], picture: Image.Image, steps: int) -> GenerationResult:
    request = GenerationRequest(model="tiny-sdxl", prompt="p", seed=7, steps=steps, guidance=2.0)
    timing = Timing(text_ms=1, unet_ms=(1,), unet_calls=1, vae_ms=1, total_ms=3, peak_memory_bytes=None)
    about = {"parameters": 1, "revision": "local", "dtype": "float32", "device": "cpu"}
    return GenerationResult(request=request, images=(picture,), timing=timing, frames=frames, **about)


@pytest.fixture(autouse=True)
def own_files(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


def test_every_frame_stands_in_its_place_and_the_picture_is_the_last():
    colours = ["red", "lime", "blue", "yellow", "magenta", "cyan", "white", "black", "gray"]
    frames = tuple(
        Frame(step=k, noise=1 - k / 10, picture=Image.new("RGB", (40, 24), colour))
        for k, colour in enumerate(colours, 1)
    )
    strip = denoising.strip(drawn(frames, Image.new("RGB", (80, 48), "orange"), 10))
    assert strip["steps"] == [*range(1, 11)] and strip["noise"] == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]
    assert (strip["width"], strip["height"], strip["columns"]) == (40, 24, 8)
    assert strip["src"]["orig_name"] == "koala-tiny-sdxl-7-denoising.webp" and strip["src"]["mime_type"] == "image/webp"
    with Image.open(strip["src"]["path"]) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    for k, colour in enumerate([*colours, "orange"]):
        middle = pixels[24 * (k // 8) + 12, 40 * (k % 8) + 20]
        assert np.abs(middle - Image.new("RGB", (1, 1), colour).getpixel((0, 0))).max() < 12, colour


def test_a_run_without_previews_has_no_strip():
    assert denoising.strip(drawn((), Image.new("RGB", (64, 64)), 4)) is None


def test_the_longest_strip_of_pure_noise_is_a_file_within_bounds_and_little_on_the_page():
    noise = np.random.default_rng(0).integers(0, 256, (EVERY, FRAME_SIDE, FRAME_SIDE, 3), np.uint8)
    frames = tuple(Frame(step=k, noise=0.5, picture=Image.fromarray(one)) for k, one in enumerate(noise, 1))
    strip = denoising.strip(drawn(frames, Image.fromarray(noise[0]), 200))
    assert strip["src"]["size"] < 2 * 10**6
    assert len(json.dumps(strip)) < 2000


# --- which models the tab begins with


def few(name: str, **change):
    """A few-step student, in the files of an ordinary one."""
    return replace(CARDS[name], name=f"few-{name}", steps=4, guidance=0.0, **change)


def test_the_app_begins_with_a_guided_teacher_and_the_smallest_student_of_few_steps(tmp_path):
    plain = [CARDS[name] for name in ("tiny-koala-1b", "tiny-sdxl", "tiny-koala-700m", "koala-lightning-700m")]
    assert embedded_pair(plain) == ("tiny-sdxl", "tiny-koala-700m")
    teacher = few("tiny-sdxl")
    added = [teacher, few("tiny-koala-1b"), few("tiny-koala-700m", parameters=2_000_000)]  # more than the plain one
    assert embedded_pair([*added, *plain]) == ("tiny-sdxl", "few-tiny-koala-700m")
    absent = replace(added[2], source=str(CARDS["tiny-sdxl"].source) + "-gone")
    assert embedded_pair([*plain, *added[:2], absent]) == ("tiny-sdxl", "few-tiny-koala-1b")


@pytest.mark.skipif("tiny-koala-lightning-700m" not in CARDS, reason="this clone has no few-step model")
def test_the_pair_is_the_headline():
    teacher, student = (CARDS[name] for name in embedded_pair())
    assert (teacher.name, teacher.steps, teacher.guidance > 1) == ("tiny-sdxl", 25, True)
    assert student.name == "tiny-koala-lightning-700m" and student.steps in (4, 8) and student.guidance <= 1
