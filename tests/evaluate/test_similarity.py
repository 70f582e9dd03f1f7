"""Layer similarity on the embedded teacher: the curves are the blocks' own, the sentence says what they show."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from koala.cli import main as cli
from koala.evaluate.similarity import SHAPES, measure, similarities, transformers
from koala.evaluate.similarity_figure import figure, sentence
from koala.models.library import Library
from koala.request import GenerationRequest
from koala.sampling.generate import resolve, run_pipeline


@pytest.fixture(scope="module")
def teacher():
    return Library("cpu").get("tiny-sdxl")


def test_every_transformer_block_of_sdxl_is_measured(teacher):
    stages = transformers(teacher.pipeline.unet)
    assert {s: [depth for _, depth in inside] for s, inside in stages.items()} == {
        "DW-2": [2, 2],
        "DW-3": [10, 10],
        "MID": [10],
        "UP-1": [10, 10, 10],
        "UP-2": [2, 2, 2],
    }
    assert list(transformers(Library("cpu").get("tiny-koala-700m").pipeline.unet)) == ["DW-2", "DW-3", "UP-1", "UP-2"]


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_the_curve_is_the_cosine_between_a_blocks_input_and_output(teacher, guidance):
    """Held against hooks that look at one block's own input and output, on the half that sees the prompt."""
    request = GenerationRequest(model="tiny-sdxl", prompt=SHAPES[0], steps=2, guidance=guidance)
    curve = similarities(teacher, request)["up_blocks.0.attentions.1"]  # (steps, depth)
    expected = torch.zeros(2, 10)
    blocks = teacher.pipeline.unet.up_blocks[0].attentions[1].transformer_blocks
    calls = [0] * 10

    def watch(k):
        def hook(module, inputs, output):
            a, b = inputs[0][-1].float(), output[-1].float()
            expected[calls[k], k] = ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean()
            calls[k] += 1

        return hook

    handles = [block.register_forward_hook(watch(k)) for k, block in enumerate(blocks)]
    resolved = resolve(request, teacher.card)
    with torch.inference_mode():
        run_pipeline(teacher, resolved)
    for handle in handles:
        handle.remove()
    gap = (curve - expected).abs()
    print(f"difference: max {gap.max():.1e}, mean {gap.mean():.1e}")
    assert gap.max() < 1e-5 and not any(b._forward_hooks for b in blocks)


def test_prompts_are_averaged_and_the_hooks_are_gone_when_it_is_closed_early(teacher):
    running = measure(teacher, SHAPES[:3], steps=1)
    one, two = next(running), next(running)
    running.close()
    assert not any(m._forward_hooks for m in teacher.pipeline.unet.modules()) and not teacher.lock.locked()
    assert one["prompts"] == list(SHAPES[:1]) and two["num_prompts"] == 3
    alone = next(measure(teacher, SHAPES[1:2], steps=1, seed=1))
    for stage, curves in two["stages"].items():
        for k, curve in enumerate(curves):
            both = torch.tensor([one["stages"][stage][k]["mean"], alone["stages"][stage][k]["mean"]])
            assert torch.allclose(torch.tensor(curve["mean"]), both.mean(0), atol=2e-5)
            assert torch.allclose(torch.tensor(curve["spread"]), both.std(0, correction=0), atol=2e-5)
    assert all(x == 0 for curves in one["stages"].values() for c in curves for x in c["spread"])


def curves(*means):
    return [{"transformer": "t", "mean": list(m), "spread": [0.0] * len(m)} for m in means]


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ({"DW-3": curves((0.5, 0.7, 0.9, 0.95))}, "which is why KOALA keeps the first"),
        ({"DW-3": curves((0.95, 0.9, 0.7, 0.5))}, "do not speak for keeping the first"),
        ({"DW-3": curves((0.5, 0.7, 0.9, 0.9)), "MID": curves((0.9, 0.9, 0.8, 0.8))}, "in MID (0.90 in the earlier"),
        ({"DW-2": curves((0.5, 0.9))}, "No stage of T is deep enough"),
    ],
)
def test_the_sentence_follows_the_curves(stages, words):
    assert words in sentence({"title": "T", "stages": stages})


def test_the_figure_is_whole_xml_and_writes_no_foreign_markup():
    report = {"title": "<b>T & co</b>", "prompts": ["x"], "steps": 1, "stages": {"DW-3": curves((-0.3, 0.9))}}
    root = ElementTree.fromstring(figure(report))
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "predecessor's: <b>T & co</b>" in texts[0] and "DW-3" in texts
    circles = [float(c.get("cy")) for c in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert circles[0] > circles[1] > 0, "a higher cosine is drawn higher"


def test_the_verb_writes_json_and_a_figure(tmp_path, capsys):
    out = tmp_path / "curves" / "tiny.json"
    prompts = ["a red circle", "a blue star"]
    assert cli.main(["similarity", "--model", "tiny-koala-700m", "--prompts", *prompts, "--steps", "1",
                     "--out", str(out), "--device", "cpu", "--json"]) == 0  # fmt: skip
    report = json.loads(out.read_text())
    assert report == json.loads(capsys.readouterr().out)
    assert report["prompts"] == prompts and len(report["stages"]["UP-1"][1]["mean"]) == 5
    assert {"command", "device", "versions", "date"} <= report.keys()
    ElementTree.parse(report["figure"])


def test_bad_use_is_one_line(tmp_path, capsys):
    assert cli.main(["similarity", "--model", "tiny-sdxl", "--steps", "0", "--out", str(tmp_path / "a.json")]) == 2
    assert "steps" in capsys.readouterr().err and not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="2"):
        cli.main(["similarity", "--model", "tiny-sdxl", "--out", "curves.csv"])
