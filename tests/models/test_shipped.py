"""The embedded models are the files that were shipped, and a damaged file of any model is a sentence."""

import json
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from koala.errors import UserError
from koala.files.tensorfiles import stored_tensors
from koala.models.cards import CARDS, EMBEDDED
from koala.models.from_torch import load_unet
from koala.models.layout import Weights
from koala.models.locate import Location
from koala.models.networks import read_network
from koala.models.shipped import HASHES, check_shipped, write_hashes

NAMES = [c.name for c in CARDS.values() if c.embedded]
STUDENT = "tiny-koala-700m"
ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "text_encoder_2": "text_encoder_2/model.safetensors",
}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    """A copy of one shipped model and of the hashes."""
    folder = tmp_path_factory.mktemp("clone") / "koala" / "embedded"
    shutil.copytree(EMBEDDED / STUDENT, folder / STUDENT)
    shutil.copy(EMBEDDED / HASHES, folder)
    return folder


def test_the_hashes_are_those_of_the_files_in_the_repository():
    listed = json.loads((EMBEDDED / HASHES).read_text())
    assert sorted(listed) == sorted(NAMES)
    for name, hashes in listed.items():
        files = {f.relative_to(EMBEDDED / name).as_posix(): f for f in (EMBEDDED / name).rglob("*") if f.is_file()}
        assert hashes == {path: sha256(file.read_bytes()).hexdigest() for path, file in files.items()}


def test_the_wheel_carries_the_hashes():
    patterns = re.search(r'^koala = (\[.*"embedded.*\])$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    packed = {file for pattern in json.loads(patterns[1]) for file in (ROOT / "koala").glob(pattern)}
    assert EMBEDDED / HASHES in packed


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    file.write_bytes(content)


def test_one_flipped_bit_in_any_file_is_named_with_the_remedy(shipped):
    check_shipped(shipped / STUDENT)
    files = [f for f in sorted((shipped / STUDENT).rglob("*")) if f.is_file()]
    assert len(files) == 18
    for k, file in enumerate([*files, shipped / HASHES]):
        content = file.read_bytes()
        middle = len(content) // 2
        if file.name == HASHES:  # a digit of this model's first hash
            middle = content.index(b'": "', content.index(f'"{STUDENT}"'.encode())) + 10
        flip(file, 8 * middle + k % 3)
        with pytest.raises(UserError, match=f"{file.name}.*install the package again, or copy {shipped} again"):
            check_shipped(shipped / STUDENT)
        file.write_bytes(content)
    check_shipped(shipped / STUDENT)


def test_a_missing_file_is_named_too_and_new_hashes_make_a_new_model_whole(shipped):
    file = shipped / STUDENT / "unet" / "config.json"
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(UserError, match="tiny-koala-700m is not whole: .*unet/config.json is missing"):
        check_shipped(shipped / STUDENT)
    file.write_bytes(content + b"\n")
    with pytest.raises(UserError, match="damaged"):
        check_shipped(shipped / STUDENT)
    write_hashes(shipped)
    check_shipped(shipped / STUDENT)
    file.write_bytes(content)
    write_hashes(shipped)
    assert json.loads((shipped / HASHES).read_text())[STUDENT] == json.loads((EMBEDDED / HASHES).read_text())[STUDENT]


@pytest.mark.slow
def test_a_clone_says_what_to_type_and_that_helps(tmp_path):
    shutil.copytree(ROOT / "koala", tmp_path / "koala", ignore=shutil.ignore_patterns("__pycache__"))
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path))
    for words in (("init", "-q"), ("add", "koala/embedded"), ("commit", "-qm", "all")):
        subprocess.run([*git, *words], check=True)
    flip(tmp_path / "koala" / "embedded" / STUDENT / FILES["vae"], 10**6)
    words = ["generate", "--model", STUDENT, "--prompt", "a red circle", "--steps", "1", "--out", "a.png"]
    command = [sys.executable, "-m", "koala", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and FILES["vae"] in done.stderr and not (tmp_path / "a.png").exists()
    subprocess.run(done.stderr.partition("get it again: ")[2].split(), check=True)
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0


# --- headers that still can be read: of any model, hashes or not


def edited(file: Path, change) -> None:
    """The header of a safetensors file, changed; the bytes of its tensors are as they were."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + length :])


def first(header: dict, dimensions: int = 2) -> str:
    return next(k for k, v in header.items() if k != "__metadata__" and len(v["shape"]) == dimensions)


def rename(header: dict) -> None:
    name = first(header)
    header[f"{name[:-1]}~"] = header.pop(name)  # one flipped bit


def transpose(header: dict) -> None:
    entry = next(v for k, v in header.items() if k != "__metadata__" and len({*v["shape"]}) > 1)
    entry["shape"] = entry["shape"][::-1]


def whole_numbers(header: dict) -> None:
    header[first(header)]["dtype"] = "I16"


def other_halves(header: dict) -> None:
    header[first(header)]["dtype"] = "BF16"


def loaded(folder: Path, part: str) -> torch.nn.Module:
    if part != "unet":
        return read_network(part, folder / part, stored_tensors(folder / FILES[part]), torch.float32)
    weights = Weights(variant=None, files=(FILES["unet"],))
    return load_unet(Location(folder=folder, chosen={"unet": weights}, replaced={}, revision="local"), torch.float32)


@pytest.mark.parametrize("part", FILES)
def test_a_damaged_header_is_a_sentence_and_no_tensor_without_values(shipped, part):
    """Symptom: "Tensor on device meta"; of a text encoder random numbers, and a picture."""
    file = shipped / STUDENT / FILES[part]
    content = file.read_bytes()
    for change, output in (
        (rename, "lacks one tensor, "),
        (transpose, "in another shape than its config.json describes"),
        (whole_numbers, "as I16"),
        (other_halves, "as BF16, unlike the rest"),
    ):
        edited(file, change)
        with pytest.raises(UserError, match=f"{output}.*again"):
            loaded(shipped / STUDENT, part)
        file.write_bytes(content)
    assert loaded(shipped / STUDENT, part)


@pytest.mark.parametrize("more", [1, -1])
@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("unet", "transformer_layers_per_block"),
        ("vae", "layers_per_block"),
        ("text_encoder", "num_hidden_layers"),
        ("text_encoder_2", "num_hidden_layers"),
    ],
)
def test_a_config_that_asks_for_other_tensors_than_the_file_has_is_a_sentence(shipped, part, key, more):
    file = shipped / STUDENT / part / "config.json"
    content = file.read_text()
    config = json.loads(content)
    layers = [1, 2, config[key][2] + more] if part == "unet" else config[key] + more
    file.write_text(json.dumps(config | {key: layers}))
    with pytest.raises(
        UserError,
        match="(lacks|has|, beyond what its config.json describes).*copy or download its weights and its config.json",
    ):
        loaded(shipped / STUDENT, part)
    file.write_text(content)
