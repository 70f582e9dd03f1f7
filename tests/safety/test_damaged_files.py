"""Every JSON file that a person may hand over, damaged at every place: it works, or one line names the file.

The damage is blind: it knows nothing of what a field means. So each refusal, and each piece of work, is the code's own.
"""

import copy
import json
import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from koala.distill.config import DistillConfig
from koala.distill.settings import read
from koala.errors import UserError
from koala.models.export_manifest import MANIFEST, Exported, list_exports
from koala.models.layout import TOKENIZERS
from koala.models.library import Library
from koala.models.locate import locate
from koala.models.reading import load_noising, load_tokenizer
from koala.models.registry import find
from koala.request import GenerationRequest
from koala.sampling.generate import generate
from koala.ui.export import panel as export_panel
from koala.ui.export.panel import lines_to_copy
from koala.ui.export.store import Exports
from koala.ui.session import Session

STUDENT = "tiny-koala-700m"
MOST = 2**30  # bytes that a damaged file may make this process grow by
SAMPLE = 60  # of each kind of file, in the default tests
DEEP = {"nested": {"nested": [{"nested": 1}]}}
VALUES = (None, [], {}, "x", -1, 0, 1e9, 10**9, float("nan"), float("inf"), True, [1, 2], ["x"] * 3, [None], DEEP)
CONTENTS = (b"", b"{", b"[1]", b"null", b'"x"', b"1", b"[" * 100_000, b"\xff\xfe{}", b"{}")
GONE = object()


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value in a JSON value; of a long list or table the first ones."""
    children = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for _, (key, child) in zip(range(60), children, strict=False):
        yield (*path, key)
        yield from places(child, (*path, key))


def damaged(value: object, path: tuple, by: object) -> object:
    """The value with another one at a path."""
    result = copy.deepcopy(value)
    inside = result
    for key in path[:-1]:
        inside = inside[key]
    if by is GONE:
        del inside[path[-1]]
    else:
        inside[path[-1]] = by
    return result


def damages(content: bytes) -> list[tuple[str, bytes]]:
    """(what was done, the damaged file) for every way to damage a JSON file."""
    value = json.loads(content)
    result = [(f"all of it is {other[:20]!r}", other) for other in CONTENTS]
    for path in places(value):
        for by in (GONE, *VALUES):
            word = "gone" if by is GONE else repr(by)
            result.append((f"{path} is {word}", json.dumps(damaged(value, path, by)).encode()))
    return result


def try_all(folder: Path, names: list[str], use: Callable[[], object], sample: int | None) -> list[str]:
    """Damage one file after the other, each in every way or in `sample` ways; what ended as it must not."""
    problems, accepted, tried = [], 0, 0
    chance = random.Random(0)
    every = [(name, what, content) for name in names for what, content in damages((folder / name).read_bytes())]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, what, content in every if sample is None else chance.sample(every, sample):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        tried += 1
        try:
            use()
            accepted += 1
        except UserError as error:
            message = str(error)
            if "\n" in message or str((folder / name).parent) not in message:
                problems.append(f"{name}: {what}: does not name the file in one line: {message}")
        except Exception as error:
            problems.append(f"{name}: {what}: {type(error).__name__}: {str(error)[:200]}")
        finally:
            (folder / name).write_bytes(whole)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    print(f"{tried} damaged files, {accepted} of them worked, memory grew by {grown / 1e6:.0f} MB")
    if grown > MOST:
        problems.append(f"memory grew by {grown:,} bytes")
    assert 0 < accepted < tried
    use()  # what every refusal advises: the whole file is there again
    return problems


def draw_with(folder: Path) -> Callable[[], object]:
    asked = GenerationRequest(model=str(folder), prompt="a red circle", width=64, height=64, steps=1)
    return lambda: generate(asked, Library("cpu").get(str(folder)))


def look_at(folder: Path) -> Callable[[], object]:
    """All of a model but its weights."""

    def use():
        location = locate(find(str(folder)))
        for name in TOKENIZERS:
            load_tokenizer(location.folder / name, 625)
        load_noising(location.folder / "scheduler")

    return use


def model_files(folder: Path) -> list[str]:
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*.json") if f.name != "vocab.json")


@pytest.mark.parametrize("sample", [SAMPLE, pytest.param(None, marks=pytest.mark.slow)])
def test_every_damage_of_a_models_configs_is_refused_by_name_or_harmless(embedded, tmp_path, sample):
    folder = tmp_path / "model"
    shutil.copytree(embedded / STUDENT, folder)
    problems = try_all(folder, model_files(folder), (look_at if sample else draw_with)(folder), sample)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("sample", [SAMPLE, pytest.param(None, marks=pytest.mark.slow)])
def test_every_damage_of_a_runs_config_is_refused_by_name_or_harmless(tmp_path, sample):
    (tmp_path / "config.json").write_text(json.dumps(DistillConfig().to_dict()))
    problems = try_all(tmp_path, ["config.json"], lambda: read(tmp_path / "config.json"), sample)
    assert not problems, "\n".join(problems)


def use_manifest(root: Path, folder: Path) -> Callable[[], object]:
    """All that the app does with an export without running it."""
    exports = Exports(Session(), root)

    def use():
        (result,) = exports.all()
        export_panel.table([result], result.name)
        export_panel.details(result, [], str(folder))
        exported = Exported.read(folder)
        find(str(folder))
        lines_to_copy(exported, str(folder), {})

    return use


@pytest.mark.parametrize("sample", [4 * SAMPLE, pytest.param(None, marks=pytest.mark.slow)])
def test_every_damage_of_a_manifest_is_listed_as_unreadable_or_harmless(exported_700m, tmp_path, sample):
    folder = tmp_path / "one"
    shutil.copytree(exported_700m, folder, ignore=shutil.ignore_patterns("*.onnx*"))
    for file in exported_700m.rglob("*.onnx*"):  # as large as they are, and not read
        (folder / file.relative_to(exported_700m)).touch()
    manifest = folder / MANIFEST
    parity = {"passed": ["numbers", "range", "pictures"], "skipped": ["speed"], "numbers": {"file": 1e-3}}
    picture = {"pictures": 8, "psnr_mean": 40.1, "ssim_mean": 0.99, "verdicts_differ": 0}
    parity |= {"range": {"conv_in": 3.5}, "pictures": {"file": picture}}
    lora = {"name": "x.safetensors", "sha256": "0" * 64, "strength": 0.5}
    output = json.loads(manifest.read_text()) | {"parity": parity, "lora": lora, "islands": ["conv_in"]}
    manifest.write_text(json.dumps(output))
    problems = try_all(folder, [MANIFEST], use_manifest(tmp_path, folder), sample)
    assert not problems, "\n".join(problems)


@pytest.mark.slow
def test_every_damage_of_an_exports_configs_is_refused_by_name_or_harmless(exported_700m, tmp_path):
    folder = tmp_path / "one"
    shutil.copytree(exported_700m, folder)
    names = [n for n in model_files(folder) if n not in (MANIFEST, "unet/parameters.json")]
    problems = try_all(folder, names, draw_with(folder), None)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("kind", ["a folder", "a loop", "a pipe", "nothing behind a link"])
def test_a_manifest_that_is_no_file_is_listed_as_unreadable(tmp_path, kind):
    folder = tmp_path / "one"
    folder.mkdir()
    manifest = folder / MANIFEST
    if kind == "a folder":
        manifest.mkdir()
    elif kind == "a pipe":
        os.mkfifo(manifest)
    else:
        manifest.symlink_to(MANIFEST if kind == "a loop" else "nowhere")
    assert list_exports(tmp_path) == [folder]
    (result,) = Exports(Session(), tmp_path).all()
    assert result.exported is None and "one/export.json is not a file" in result.problem
    assert "unreadable" in export_panel.table([result], "one")
    with pytest.raises(UserError, match=r"export\.json is not a file"):
        find(str(folder))


def test_a_folder_that_leads_to_itself_hides_no_export(tmp_path):
    for name in ("loop", "one"):
        (tmp_path / name).mkdir()
    (tmp_path / "loop" / "loop").symlink_to("../loop")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "one" / MANIFEST).write_text("{")
    assert list_exports(tmp_path) == [tmp_path / "one"]
    assert list_exports(tmp_path / "one" / MANIFEST) == list_exports(tmp_path / "absent") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is locked for root")
@pytest.mark.parametrize("place", ["", "unet", "text_encoder"])
def test_a_locked_folder_is_refused_by_name(embedded, tmp_path, place):
    folder = tmp_path / "model"
    shutil.copytree(embedded / STUDENT, folder)
    (folder / place).chmod(0)
    try:
        with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
            locate(find(str(folder)))
        assert list_exports(tmp_path) == []
    finally:
        (folder / place).chmod(0o755)


def test_a_name_that_no_file_can_have_is_an_unknown_model():
    with pytest.raises(UserError, match="unknown model 'aaa"):
        find("a" * 5000)
