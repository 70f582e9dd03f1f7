"""The judge's own score, and the shipped VAE against its bars."""

import json
import random

import numpy as np
import pytest
import torch

from koala.evaluate import judge_accuracy
from koala.models.library import Library
from koala.shapes.reading import read
from koala.shapes.render import render
from koala.shapes.scene import random_scene


@pytest.fixture(scope="module")
def vae():
    return Library("cpu").get("tiny-koala-700m").pipeline.vae


def test_clean_scenes_are_read_perfectly_and_the_vae_costs_little(vae):
    report = judge_accuracy.measure(num_scenes=48, vae=vae)
    json.dumps(report)
    assert report["clean"] == {"perfect": 1.0, "confusions": {}}
    assert report["round_trip"]["perfect"] >= 0.95


def test_the_shipped_vae_is_true_to_the_picture_to_objects_and_to_their_colours(vae):
    fidelity = judge_accuracy.vae_fidelity(vae, num_scenes=24)
    assert fidelity["psnr_db"] >= 34
    assert fidelity["psnr_objects_db"] >= 28
    assert fidelity["object_delta_e_2000"] <= 5


@pytest.mark.slow
def test_latents_are_white_so_that_the_scaling_factor_alone_describes_them(vae):
    rng = random.Random(3)
    pictures = [render(random_scene(rng, 1 + i % 3)) for i in range(96)]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = torch.cat([vae.encode(p).latent_dist.mode() for p in pixels.split(16)]) * vae.config.scaling_factor
    flat = latents.permute(1, 0, 2, 3).flatten(1)
    assert flat.mean(1).tolist() == pytest.approx([0] * 4, abs=0.3)  # the draw of backgrounds moves the mean
    assert torch.cov(flat).flatten().tolist() == pytest.approx(torch.eye(4).flatten().tolist(), abs=0.25)


def test_a_wrong_reading_is_reported_in_words(monkeypatch):
    scene, other = (next(judge_accuracy.scenes(1, seed=s))[0] for s in (1, 2))
    assert judge_accuracy.confusions(scene, read(render(scene))) == []
    confusions = judge_accuracy.confusions(scene, read(render(other)))
    assert confusions
    assert all(isinstance(words, str) and words for words in confusions)
