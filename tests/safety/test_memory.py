"""Memory that runs out in the midst of a run, as the allocator says it: freed, told with its remedy, and survived."""

import gc
import re
import time
import weakref

import pytest
import torch

from koala.errors import UserError
from koala.hardware.shortage import ran_out, release, wanted
from koala.request import GenerationRequest
from koala.ui.session import Session

STUDENT, TEACHER = "tiny-koala-700m", "tiny-sdxl"


@pytest.fixture(scope="module")
def session():
    result = Session([TEACHER, STUDENT], device="cpu").start()
    result.device.model(STUDENT)
    while not result.loader.settled:  # a model that draws ahead holds tensors, and calls the hooks set here
        time.sleep(0.02)
    return result


def request(model: str = STUDENT, **change) -> GenerationRequest:
    given = dict(model=model, prompt="a red circle", steps=3, guidance=1.0, width=64, height=64)
    return GenerationRequest(**given | change)


def held() -> int:
    """Bytes of every tensor that is alive."""
    gc.collect()
    return sum(t.untyped_storage().nbytes() for t in gc.get_objects() if type(t) is torch.Tensor)


def real_cpu_refusal(*_, **__):
    torch.empty(2**50, dtype=torch.uint8)  # torch's own allocator says no


REFUSALS = {
    "torch on a GPU": lambda *_, **__: (_ for _ in ()).throw(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8 GiB")
    ),
    "torch on a CPU": real_cpu_refusal,
    "Python": lambda *_, **__: bytearray(2**60),
}


@pytest.mark.parametrize(
    ("models", "refusal"), [*(([STUDENT], refusal) for refusal in REFUSALS), ([TEACHER, STUDENT], "Python")]
)
def test_memory_that_ran_out_is_freed_and_told_and_the_next_run_works(session, models, refusal):
    asked = [request(model) for model in models]
    list(session.device.run(asked))
    unet = session.device.model(models[-1]).pipeline.unet
    before, calls = held(), []

    def middle(module, given):
        """A block in the middle of the network, at the second step; the first block's tensors are alive."""
        calls.append(None)
        if len(calls) == 2:
            REFUSALS[refusal]()

    hook = unet.up_blocks[0].register_forward_pre_hook(middle)
    with pytest.raises(UserError) as output:
        list(session.device.run(asked))
    hook.remove()
    message = str(output.value)
    assert message.startswith("memory ran out on cpu")
    assert re.search(r"planned at \d+\.\d GB", message) and re.search(r"\d+\.\d GB were free", message)
    for knob in ("a smaller size than 64x64 px", "preset low-memory", "a smaller model", "--vram"):
        assert knob in message
    assert output.value.__context__ is None and output.value.__cause__ is None  # nothing of the run hangs on it
    after = held()
    print(f"held before {before:,} bytes, after {after:,} bytes")
    assert after <= before
    assert [len(r.images) for u in session.device.run(asked) for r in u.results.values()] == [1] * len(models)


def test_the_allocation_that_failed_is_told(session, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", REFUSALS["torch on a GPU"])
    with pytest.raises(UserError, match=r"the allocation that failed was 2\.7 GB; .*fewer than 2 images"):
        list(session.device.run([request(images=2)]))
    monkeypatch.undo()
    assert list(session.device.run([request(images=2)]))


def test_a_model_that_does_not_fit_is_not_told_to_be_broken(session, monkeypatch):
    session.loader.forget(STUDENT)
    monkeypatch.setattr("koala.models.from_torch.load_unet", REFUSALS["torch on a GPU"])
    with pytest.raises(UserError, match="memory ran out on cpu: the allocation that failed was 2.7 GB; "):
        list(session.device.run([request()]))
    monkeypatch.undo()
    assert list(session.device.run([request()]))


def test_an_error_that_someone_keeps_holds_no_tensor():
    def run():
        drawn = torch.zeros(8)
        kept.append(weakref.ref(drawn))
        raise MemoryError

    kept = []
    with pytest.raises(MemoryError) as error:
        run()
    assert kept[0]() is not None
    release(error.value)
    assert kept[0]() is None


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB."), 20 * 2**20),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1600 bytes."), 1600),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"), None),
        (MemoryError("Unable to allocate 7.28 TiB for an array with shape (1,)"), int(7.28 * 2**40)),
        (MemoryError(), None),
        (Exception("Failed to allocate memory for requested buffer of size 4096"), 4096),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), None),
    ],
    ids=str,
)
def test_every_allocators_words_are_understood(error, size):
    assert ran_out(error) and wanted(error) == size


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), UserError("out of memory"), OSError("disk full")])
def test_other_errors_are_none_of_memory(error):
    assert not ran_out(error)
