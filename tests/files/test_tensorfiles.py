"""safetensors files as bytes: what we write is what safetensors itself writes, and what is broken is refused."""

import math
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from koala.errors import UserError
from koala.files.tensorfiles import check_values, stored_tensors, write_tensors


@pytest.fixture
def mixed(tmp_path):
    """Several dtypes, odd lengths, an empty tensor and a scalar: everything that could be misaligned."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "b.half": torch.randn(3, generator=generator).half(),
        "a.full": torch.randn(2, 5, generator=generator),
        "c.brain": torch.randn(7, generator=generator).bfloat16(),
        "d.eight": torch.randn(3, generator=generator).to(torch.float8_e4m3fn),
        "e.empty": torch.zeros(0, 4),
        "f.scalar": torch.tensor(4.0),
    }
    save_file(tensors, tmp_path / "mixed.safetensors", metadata={"format": "pt"})
    return tmp_path / "mixed.safetensors", tensors


def test_a_copy_is_the_very_file_that_safetensors_writes(mixed, tmp_path):
    file, tensors = mixed
    write_tensors(tmp_path / "copy.safetensors", stored_tensors(file))
    result = load_file(tmp_path / "copy.safetensors")
    assert {k: (v.dtype, v.shape) for k, v in result.items()} == {k: (v.dtype, v.shape) for k, v in tensors.items()}
    homogeneous = {"z": torch.arange(6.0).view(2, 3), "y": torch.arange(5.0)}
    save_file(homogeneous, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    write_tensors(tmp_path / "ours.safetensors", stored_tensors(tmp_path / "theirs.safetensors"))
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_tensors_of_several_files_under_other_names(mixed, tmp_path):
    file, tensors = mixed
    save_file({"g": torch.ones(2)}, tmp_path / "other.safetensors")
    stored = stored_tensors(file)
    write_tensors(
        tmp_path / "new.safetensors",
        {"x": stored["c.brain"], "y": stored_tensors(tmp_path / "other.safetensors")["g"], "z": stored["b.half"]},
    )
    result = load_file(tmp_path / "new.safetensors")
    assert result.keys() == {"x", "y", "z"}
    assert torch.equal(result["x"], tensors["c.brain"])
    assert torch.equal(result["y"], torch.ones(2))
    assert torch.equal(result["z"], tensors["b.half"])


@pytest.mark.parametrize("length", [0, 5, 8, 100, -1], ids=["empty", "no length", "no header", "no end", "one byte"])
def test_a_truncated_file_is_refused(mixed, tmp_path, length):
    file, _ = mixed
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:length])
    with pytest.raises(
        UserError, match=r"cut.safetensors is not a whole safetensors file \(.+download or copy it again"
    ):
        stored_tensors(cut)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was unpickled",)


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.CKPT", "a.pth"])
def test_a_pickle_is_refused_before_it_is_opened(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="is a pickle, which can run any code.*take the model's .safetensors file"):
        stored_tensors(tmp_path / name)


def test_a_pickle_under_a_safe_name_is_refused_without_unpickling(tmp_path):
    torch.save({"a": Bomb()}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        stored_tensors(tmp_path / "a.safetensors")


KINDS = ("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_a_type_passes_and_what_is_none_does_not(kind, tmp_path):
    """By torch's own isfinite: every pattern of the short types, and the edges of the long ones."""
    dtype = getattr(torch, kind)
    if dtype.itemsize < 3:
        patterns = torch.arange(256**dtype.itemsize, dtype=torch.int32)
        whole = patterns.to({1: torch.uint8, 2: torch.uint16}[dtype.itemsize]).view(dtype)
    else:
        ends = torch.finfo(dtype)
        edges = [0.0, ends.max, ends.min, ends.tiny, ends.tiny / 4, math.nan, -math.nan, math.inf, -math.inf]
        whole = torch.tensor(edges, dtype=dtype)
    finite = torch.isfinite(whole.double())
    save_file({"good": whole[finite].clone()}, tmp_path / "good.safetensors")
    check_values(stored_tensors(tmp_path / "good.safetensors").values())
    none = whole[~finite]
    for one in none[:: max(len(none) // 8, 1)]:
        save_file({"good": whole[finite].clone(), "bad": torch.stack([whole[1], one])}, tmp_path / "a.safetensors")
        with pytest.raises(UserError, match="a.safetensors is damaged: its weight bad holds NaN or infinity"):
            check_values(stored_tensors(tmp_path / "a.safetensors").values())


def test_whole_numbers_are_never_taken_for_nan(tmp_path):
    save_file({"ids": torch.full((4,), -1)}, tmp_path / "a.safetensors")
    check_values(stored_tensors(tmp_path / "a.safetensors").values())
