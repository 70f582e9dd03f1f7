"""Recording changes no pixel, and what it keeps is the attention itself."""

import dataclasses
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.models.attention_processor import AttnProcessor

from koala.attention.maps import attend, probabilities
from koala.attention.pairing import paired, plans
from koala.attention.plan import plan
from koala.attention.record import capture, record, same_input
from koala.attention.recorded import AttentionRecord
from koala.errors import UserError
from koala.models.library import Library
from koala.request import GenerationRequest
from koala.sampling.generate import generate, resolve

PROMPT = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def student(library):
    return library.get("tiny-koala-700m")


def asked(model, **settings) -> GenerationRequest:
    return resolve(GenerationRequest(model=model.card.name, prompt=PROMPT, **({"steps": 2} | settings)), model.card)


def planned(model, request, **settings):
    settings = {"images": request.images, "dtype": "float32"} | settings
    return plan(model.spec, request.width, request.height, request.steps, **settings)


def beside(*models):
    """Plans of paired layers for three steps at 128x128 px."""
    specs = [m.spec for m in models]
    return plans(specs, paired(specs), 128, 128, (3,) * len(specs), dtype="float32")


def hooks(model) -> int:
    return sum(len(m._forward_hooks) for m in model.pipeline.unet.modules())


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance": 5.0},
        {"guidance": 1.0},
        {"guidance": 5.0, "images": 2},
        {"guidance": 1.0, "images": 2},
        {"guidance": 5.0, "width": 192, "height": 128},
        {"guidance": 5.0, "preset": "fast", "steps": 4},
    ],
    ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items()),
)
def test_pictures_with_and_without_a_recorder_are_the_same_to_the_bit(student, settings):
    request = asked(student, **settings)
    plain = generate(request, student)
    result, recorded = capture(student, request, planned(student, request, layers="all"))
    assert [p.tobytes() for p in result.images] == [p.tobytes() for p in plain.images]
    assert recorded.steps == request.steps == len(recorded.timesteps) and recorded.images == request.images
    assert recorded.bytes == planned(student, request, layers="all").bytes
    assert list(recorded.timesteps) == sorted(recorded.timesteps, reverse=True)
    for layer in recorded.layers:
        q, k = recorded.at(layer, 0)
        assert q.shape == (layer.heads, layer.queries, layer.dim) and k.shape == (layer.heads, layer.keys, layer.dim)
    assert recorded.layer("UP-2").grid == (request.height // 16, request.width // 16)
    assert hooks(student) == 0


@contextmanager
def eager_scores(model, paths):
    """Path -> what get_attention_scores gave at every pass, (rows * heads, N, M), with the processor that asks it."""
    unet, scores = model.pipeline.unet, {path: [] for path in paths}
    processors = dict(unet.attn_processors)

    def watching(path, original):
        def watch(*args, **kwargs):
            scores[path].append(original(*args, **kwargs))
            return scores[path][-1]

        return watch

    modules = {path: unet.get_submodule(path) for path in paths}
    for path, module in modules.items():
        module.get_attention_scores = watching(path, module.get_attention_scores)
    unet.set_attn_processor(AttnProcessor())
    try:
        yield scores
    finally:
        unet.set_attn_processor(processors)
        for module in modules.values():
            del module.get_attention_scores


@pytest.mark.parametrize(("guidance", "half"), [(5.0, "conditional"), (5.0, "unconditional"), (1.0, "conditional")])
def test_maps_are_those_that_the_eager_processor_multiplies_with(library, guidance, half):
    """Every layer of the teacher, self and cross, compared with get_attention_scores within the same, eager run."""
    teacher = library.get("tiny-sdxl")
    request = asked(teacher, guidance=guidance, width=128, height=64)
    layers = planned(teacher, request, layers="all")
    with eager_scores(teacher, [x.path for x in layers.layers]) as scores:
        _, recorded = capture(teacher, request, layers, half)
    gaps = []
    for layer in recorded.layers:
        for step, eager in enumerate(scores[layer.path][-request.steps :]):
            rows = len(eager) // layer.heads
            eager = eager.unflatten(0, (rows, layer.heads))[0 if half == "unconditional" else -1]
            assert rows == (2 if guidance > 1 else 1)
            gaps.append((attend(*recorded.at(layer, step)) - eager).abs())
    largest, average = max(g.max().item() for g in gaps), sum(g.mean().item() for g in gaps) / len(gaps)
    print(f"difference over {len(gaps)} layers and steps: max {largest:.1e}, mean {average:.1e}")
    assert len(gaps) == 140 * request.steps and largest < 1e-5


def test_half_precision_is_kept_as_such_and_close(student):
    request = asked(student)
    _, exact = capture(student, request, planned(student, request))
    _, half = capture(student, request, planned(student, request, dtype="float16"))
    assert half.bytes * 2 == exact.bytes
    gaps = [
        (probabilities(*half.at(x, 1)) - probabilities(*exact.at(x, 1))).abs().max().item()
        for x in half.layers
        if x.kind == "self"
    ]
    print(f"difference of rows: max {max(gaps):.1e}, mean {sum(gaps) / len(gaps):.1e}")
    assert 0 < max(gaps) < 5e-3


def test_a_plain_pipeline_is_recorded_as_it_is_called(embedded):
    pipeline = StableDiffusionXLPipeline.from_pretrained(embedded / "tiny-koala-700m")
    pipeline.set_progress_bar_config(disable=True)

    def draw(steps=2, size=128):
        generator = torch.Generator().manual_seed(3)
        return pipeline(PROMPT, num_inference_steps=steps, width=size, height=size, generator=generator).images[0]

    plain, two = draw(), plan(Library("cpu").get("tiny-koala-700m").spec, 128, 128, 2)
    with record(pipeline, two) as recorder:
        assert draw().tobytes() == plain.tobytes()
    recorded = recorder.record
    assert recorded.steps == 2 and recorded.seed is None and recorded.tokens == () and recorded.spec.mid_depth is None
    with (
        pytest.raises(UserError, match="the plan is for 128x128 px and the run draws 256x256"),
        record(pipeline, two),
    ):
        draw(size=256)
    with record(pipeline, two) as recorder:
        draw(steps=3)
    assert recorder.record.steps == 2, "the last passes of a longer run"
    pipeline.unet.fuse_qkv_projections()
    with (
        pytest.raises(UserError, match="planned layers recorded nothing.*fuse_qkv_projections"),
        record(pipeline, two),
    ):
        draw()
    with pytest.raises(UserError, match="did not run"), record(pipeline, two):
        pass


def test_a_compiled_layer_is_said_to_record_nothing(embedded):
    """A hook that comes after the first call of a compiled module is never called, without a word of torch's."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(embedded / "tiny-koala-700m")
    pipeline.set_progress_bar_config(disable=True)
    path = "up_blocks.1.attentions.1.transformer_blocks.1.attn1"
    pipeline.unet.get_submodule(path).compile(backend="eager")

    def draw():
        pipeline(PROMPT, num_inference_steps=1, width=64, height=64, output_type="latent")

    draw()
    silent = f"1 of 8 planned layers recorded nothing, such as {path}; .* uncompiled"
    with pytest.raises(UserError, match=silent), record(pipeline):
        draw()
    assert not sum(len(m._forward_hooks) for m in pipeline.unet.modules())


@pytest.mark.parametrize(("guidance", "images"), [(5.0, 1), (1.0, 2), (5.0, 2)])
def test_a_plain_pipeline_needs_no_plan(embedded, guidance, images):
    pipeline = StableDiffusionXLPipeline.from_pretrained(embedded / "tiny-koala-700m")
    pipeline.set_progress_bar_config(disable=True)
    with record(pipeline) as recorder:
        pipeline(PROMPT, num_inference_steps=3, width=128, height=64, guidance_scale=guidance,
                 num_images_per_prompt=images, output_type="latent")  # fmt: skip
    recorded = recorder.record
    assert (recorded.steps, recorded.images, recorded.width, recorded.height) == (3, images, 128, 64)
    assert recorded.stages == ("DW-2", "DW-3", "UP-1", "UP-2") and recorded.bytes == recorder.plan.bytes


def test_a_loaded_model_needs_its_plan(student):
    with pytest.raises(UserError, match="needs its plan"), record(student):
        pass


def test_another_threads_run_of_the_same_model_is_not_recorded(student):
    """In the app someone else may draw before or after, while this recorder waits for the model."""
    request = asked(student, width=64, height=64)
    with pytest.raises(UserError, match="nothing was recorded"), record(student, planned(student, request)):
        thread = threading.Thread(target=generate, args=(request, student))
        thread.start()
        thread.join()


def test_an_exception_leaves_no_hook_and_no_lock(student):
    request = asked(student)

    def stop(step):
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        capture(student, request, planned(student, request), on_step=stop)
    assert hooks(student) == 0 and not student.lock.locked()


def test_a_lora_is_in_what_is_recorded(student, tmp_path):
    """PEFT puts modules of its own in place of to_q: a hook on the old one would miss what the LoRA adds."""
    from safetensors.torch import save_file

    path = "down_blocks.1.attentions.0.transformer_blocks.1.attn1"
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name in ("to_q", "to_k"):
        tensors[f"unet.{path}.{name}.lora_A.weight"] = torch.randn(2, 32, generator=generator)
        tensors[f"unet.{path}.{name}.lora_B.weight"] = torch.randn(32, 2, generator=generator)
    file = tmp_path / "lora.safetensors"
    save_file(tensors, file)
    request = asked(student)
    with_lora = dataclasses.replace(request, lora=str(file))
    _, plain = capture(student, request, planned(student, request))
    _, changed = capture(student, with_lora, planned(student, request))
    q, changed_q = (r.at(r.layer("DW-2"), 0)[0] for r in (plain, changed))
    weight = student.pipeline.unet.get_submodule(path).to_q.weight.T  # q = x W, with x the normalised tokens
    x = torch.linalg.lstsq(weight.T.double(), q.transpose(0, 1).flatten(1).double().mT).solution.mT
    added = (
        x
        @ tensors[f"unet.{path}.to_q.lora_A.weight"].double().mT
        @ tensors[f"unet.{path}.to_q.lora_B.weight"].double().mT
    )
    gap = (changed_q.transpose(0, 1).flatten(1).double() - q.transpose(0, 1).flatten(1).double() - added).abs()
    print(f"difference: max {gap.max():.1e}, mean {gap.mean():.1e}")
    assert added.abs().max() > 0.1 and gap.max() < 1e-2


def test_a_capture_comes_back_from_its_folder(student, tmp_path):
    request = asked(student, width=192, height=128)
    result, recorded = capture(student, request, planned(student, request))
    recorded.save(tmp_path / "capture", result)
    again = AttentionRecord.load(tmp_path / "capture", model="tiny-koala-700m")
    plain = {f.name: getattr(recorded, f.name) for f in dataclasses.fields(recorded) if f.name != "frames"}
    assert {f: getattr(again, f) for f in plain} == plain
    for frame, stored in zip(recorded.frames, again.frames, strict=True):
        assert all(torch.equal(a, b) for path in frame for a, b in zip(frame[path], stored[path], strict=True))
    assert (tmp_path / "capture" / "picture.png").read_bytes() == result.png()


def damage(folder: Path, what: str) -> None:
    tensors, about = folder / "attention.safetensors", folder / "attention.json"
    if what == "a byte":
        data = bytearray(tensors.read_bytes())
        data[-1] ^= 1
        tensors.write_bytes(data)
    elif what == "cut short":
        tensors.write_bytes(tensors.read_bytes()[:-5])
    elif what == "no tensors":
        tensors.unlink()
    elif what == "no JSON":
        about.write_text("{")
    elif what == "a list":
        about.write_text("[]")
    else:
        about.write_text(about.read_text().replace(*what.split(" -> ")))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("a byte", "is damaged: it is not what was saved"),
        ("cut short", "is damaged: it is not what was saved"),
        ("no tensors", "is not a capture"),
        ("no JSON", "is damaged"),
        ("a list", "is damaged"),
        ('"steps": 2 -> "steps": 3', "is damaged"),
        ('"koala attention 1" -> "koala attention 0"', "has format 0, and this koala reads 1; capture the run again"),
        ('"koala attention 1" -> "koala attention 2"', "by a newer koala in format 2; this one reads 1: update it"),
        ('"koala attention 1" -> "koala masks 1"', "is not part of a capture; it says 'koala masks 1'"),
        ('"tokens" -> "tokns"', "is damaged"),
        ('"heads": 2 -> "heads": 4', "is damaged .*has other heads than tiny-koala-700m"),
        ('"width": 64 -> "width": 128', "is damaged .*is not a layer of this run"),
        ('"stage": "UP-1" -> "stage": "MID"', "is damaged .*is not a layer of this run"),
    ],
)
def test_a_damaged_capture_is_refused_by_name(student, tmp_path, what, message):
    request = asked(student, width=64, height=64)
    capture(student, request, planned(student, request))[1].save(tmp_path / "capture")
    damage(tmp_path / "capture", what)
    with pytest.raises(UserError, match=message):
        AttentionRecord.load(tmp_path / "capture")


def test_what_a_capture_does_not_hold_is_said(student, tmp_path):
    request = asked(student, width=64, height=64)
    _, recorded = capture(student, request, planned(student, request))
    layer = recorded.layer("UP-2")
    for call, message in (
        (lambda: recorded.layer("MID"), "tiny-koala-700m has no MID.*it holds DW-2, DW-3, UP-1, UP-2"),
        (lambda: recorded.layer("UP-3"), "holds no self-attention of UP-3"),
        (lambda: recorded.at(layer, 2), "step 2 is not in this run of 2"),
        (lambda: recorded.at(layer, 0, image=1), "picture 1 is not in this run of 1"),
        (lambda: recorded.patch(layer, 64, 3), "pixel 64,3 is outside the picture of 64x64 px"),
        (lambda: recorded.save(tmp_path) and recorded.save(tmp_path), "exists already"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert [recorded.patch(layer, x, y) for x, y in ((0, 0), (63.9, 0), (16, 16), (63, 63))] == [0, 3, 5, 15]
    with pytest.raises(UserError, match="a capture of tiny-koala-700m, not of tiny-sdxl"):
        AttentionRecord.load(tmp_path, model="tiny-sdxl")


def test_bad_use_is_refused_before_the_run(student):
    request = asked(student)
    with pytest.raises(UserError, match="the plan is for 3 steps and the run has 2"):
        capture(student, request, planned(student, dataclasses.replace(request, steps=3)))
    with pytest.raises(UserError, match="half is one of"):
        capture(student, request, planned(student, request), half="both")
    with pytest.raises(UserError, match="the plan is for 1 picture at once and a pass of the run has 4 rows"):
        capture(student, dataclasses.replace(request, images=2), planned(student, request))
    unguided = dataclasses.replace(request, guidance=1.0)
    with pytest.raises(UserError, match="no unconditional half"):
        capture(student, unguided, planned(student, unguided), half="unconditional")


def test_on_the_same_input_a_model_agrees_with_itself(library, student):
    """The teacher's pass on the student's input is the student's own pass when both are one model."""
    request = asked(student, width=128, height=128, steps=3)
    first_plan, second_plan = beside(student, student)
    result, first, second = same_input(student, student, request, first_plan, second_plan)
    gaps = [
        (a.float() - b.float()).abs().max().item()
        for one, other in zip(first.frames, second.frames, strict=True)
        for path in one
        for a, b in zip(one[path], other[path], strict=True)
    ]
    print(f"difference of q and k: max {max(gaps):.1e}, mean {sum(gaps) / len(gaps):.1e}")
    assert max(gaps) < 1e-4 and first.timesteps == second.timesteps
    assert result.images[0].tobytes() == generate(request, student).images[0].tobytes()


def test_the_teacher_sees_the_students_input_not_its_own(library, student):
    teacher = library.get("tiny-sdxl")
    request = asked(student, width=128, height=128, steps=3)
    student_plan, teacher_plan = beside(student, teacher)
    _, _, shown = same_input(teacher, student, request, student_plan, teacher_plan)
    _, free = capture(teacher, dataclasses.replace(request, model="tiny-sdxl"), teacher_plan)
    layer = shown.layer("UP-2")
    gaps = [(shown.at(layer, s)[0] - free.at(layer, s)[0]).abs().mean().item() for s in range(3)]
    print(f"mean difference of q, per step: {gaps}")
    assert gaps[0] < 1e-5 and min(gaps[1:]) > 0.01, "both start from one noise, then each has its own input"
    assert shown.model == "tiny-sdxl" and "MID" in shown.stages and hooks(teacher) == 0


@pytest.mark.slow
def test_recording_slows_a_run_by_less_than_a_tenth(student):
    request = asked(student, steps=10)
    layers = planned(student, request, dtype="float16")
    generate(request, student)

    def seconds(draw) -> float:
        began = time.process_time()
        draw()
        return time.process_time() - began

    plain, recorded = [], []
    for _ in range(7):  # in turns, so that whatever else the machine does falls on both
        plain.append(seconds(lambda: generate(request, student, num_previews=0)))
        recorded.append(seconds(lambda: capture(student, request, layers, num_previews=0)))
    ratio = min(recorded) / min(plain)
    print(f"recording over plain: {ratio:.3f} ({min(plain):.2f} s plain)")
    assert ratio < 1.10
