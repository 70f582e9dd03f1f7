"""torch.cuda is asked in one module, where a rehearsal puts described cards; devices are those that are visible."""

import ast
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from koala.errors import UserError
from koala.hardware.cuda import Card, Cards, DescribedCards, cards, in_place
from koala.hardware.device import best_device, device_memory, give_back
from koala.hardware.timing import StageTimer, device_name

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("koala", "spaces", "recipes")
CODE = [f for folder in FOLDERS for f in sorted((ROOT / folder).rglob("*.py"))] + [ROOT / "app.py"]
SMALL = Card(name="8 GB", total_bytes=8 * 10**9, free_bytes=7 * 10**9, capability=(8, 6))


def described(*result: Card, peak=lambda: 0, reset_peak=lambda: None) -> DescribedCards:
    return DescribedCards(result, peak=peak, reset_peak=reset_peak)


def cuda_in(source: str) -> Iterator[int]:
    """The lines on which a module reaches torch.cuda, its version or its successor torch.accelerator."""
    own = ("cuda", "accelerator")
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="torch"), attr=name) if name in own:
                yield node.lineno
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="torch"), attr="version"), attr="cuda"):
                yield node.lineno
            case ast.Import(names=names) if any(n.name.startswith(tuple(f"torch.{o}" for o in own)) for n in names):
                yield node.lineno
            case ast.ImportFrom(module="torch", names=names) if any(n.name in own for n in names):
                yield node.lineno
            case ast.ImportFrom(module=str(module)) if module.startswith(tuple(f"torch.{o}" for o in own)):
                yield node.lineno
            case ast.Call(func=ast.Name(id="getattr"), args=[ast.Name(id="torch"), ast.Attribute(attr="type"), *_]):
                yield node.lineno


def test_torch_cuda_is_asked_in_one_module():
    sources = {f.relative_to(ROOT): f.read_text(encoding="utf-8") for f in CODE}
    likely = {f: s for f, s in sources.items() if any(word in s for word in ("cuda", "accelerator", "getattr(torch"))}
    result = [f"{f}:{line}" for f, source in likely.items() for line in cuda_in(source)]
    assert {place.partition(":")[0] for place in result} == {"koala/hardware/cuda.py"}, result


@pytest.mark.parametrize(
    "source",
    [
        "torch.cuda.is_available()",
        "from torch import cuda",
        "import torch.cuda as gpu",
        "from torch.cuda import synchronize",
        "print(torch.version.cuda)",
        "torch.accelerator.synchronize()",
        "getattr(torch, device.type).synchronize()",
    ],
)
def test_every_way_to_torch_cuda_is_seen(source):
    assert list(cuda_in(source)) == [1]


def test_described_cards_answer_for_the_machine_and_then_no_longer():
    before = cards()
    asked = []
    with in_place(described(SMALL, peak=lambda: 5, reset_peak=lambda: asked.append("reset"))):
        assert best_device() == torch.device("cuda")
        assert device_memory(torch.device("cuda")) == SMALL.free_bytes
        assert device_name(torch.device("cuda")) == SMALL.name
        assert StageTimer(torch.device("cuda")).peak_memory() == 5 and asked == ["reset"]
        give_back()
        output = []
        thread = threading.Thread(target=lambda: output.append(cards().name()))  # an app draws in a thread of its own
        thread.start()
        thread.join()
        assert output == [SMALL.name]
    assert cards() is before and type(before) is Cards
    with pytest.raises(LookupError), in_place(described(SMALL)):
        raise LookupError
    assert cards() is before


def test_every_question_is_answered_by_described_cards_too():
    """What a described card does not answer would reach the machine's own card in a rehearsal."""
    questions = {name for name in vars(Cards) if not name.startswith("_")}
    assert len(questions) > 10 and questions <= set(vars(DescribedCards))


def test_a_card_that_is_not_visible_is_refused_with_the_last_one_that_is():
    """CUDA_VISIBLE_DEVICES=1 leaves one card, and its number is 0."""
    with in_place(described(SMALL)):
        assert best_device("cuda:0") == torch.device("cuda:0")
        with pytest.raises(UserError, match="cuda:1 was asked for.*CUDA_VISIBLE_DEVICES.*--device cuda:0"):
            best_device("cuda:1")
    with in_place(described(SMALL, SMALL)):
        assert best_device("cuda:1") == torch.device("cuda:1")
    with in_place(described()):
        with pytest.raises(UserError, match="no CUDA GPU is visible; use --device cpu"):
            best_device("cuda")
        assert best_device().type in ("cpu", "mps")


def test_the_second_card_is_asked_for_its_own_memory():
    large = Card(name="24 GB", total_bytes=24 * 10**9, free_bytes=23 * 10**9, capability=(8, 9))
    with in_place(described(SMALL, large)):
        assert device_memory(torch.device("cuda:1")) == 23 * 10**9
        assert device_name(torch.device("cuda:1")) == "24 GB"
        assert cards().capability(torch.device("cuda:1")) == (8, 9)


@pytest.mark.parametrize("device", [None, torch.device("cuda"), torch.device("cuda:2")])
def test_a_cap_is_a_share_of_the_cards_memory_and_names_the_card_by_number(monkeypatch, device):
    """torch takes no device without a number here, and no share that is no float."""
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 8 * 10**9))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *output: asked.append(output))
    number = 2 if device and device.index else 0
    for count in (2 * 10**9, 24 * 10**9, None):
        Cards().cap(count, device)
    assert asked == [(0.25, number), (1.0, number), (1.0, number)]
    assert all(isinstance(share, float) for share, _ in asked)
