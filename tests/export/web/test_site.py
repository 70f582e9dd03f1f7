"""The site as a folder: what is in it, what a visitor fetches, what is shared, and what is refused."""

import gzip
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from koala.errors import UserError
from koala.export.command import main, parse
from koala.export.web import packages, parts, site
from koala.models.cards import EMBEDDED
from koala.palette import COLOURS
from tests.export.web.conftest import NAMES

BUDGET_FIRST, BUDGET_WHOLE = 16e6, 45e6


def site_manifest(folder: Path) -> dict:
    return json.loads((folder / "site.json").read_text())


def test_every_file_is_what_the_manifest_says(pages):
    listed = site_manifest(pages)["files"]
    assert {f"files/{f.name}" for f in (pages / "files").iterdir()} == set(listed)
    for name, entry in listed.items():
        packed = (pages / name).read_bytes()
        content = gzip.decompress(packed)
        assert (len(packed), len(content)) == (entry["sent"], entry["bytes"])
        assert hashlib.sha256(content).hexdigest() == entry["sha256"] and entry["sha256"][:12] in name


def test_what_two_models_have_in_common_is_there_once(pages):
    first, second = site_manifest(pages)["models"]
    assert (first["name"], second["name"]) == NAMES
    for part in ("text_encoder", "text_encoder_2", "vae_decoder"):
        assert first["parts"][part] == second["parts"][part]
    stems = [re.match(r"files/(.+)-[0-9a-f]{12}\.", name)[1] for name in site_manifest(pages)["files"]]
    assert sorted(stems) == sorted(set(stems))


def test_a_first_load_is_within_its_budget(pages):
    """Counted from the folder, apart from the export's own sum; the true teacher's is in test_whole.py."""
    own = site_manifest(pages)
    student, wasm = own["models"][1], own["runtime"]["backends"]["wasm"]
    names = [*own["page"], "sw.js", *student["parts"].values(), *student["tokenizers"], *wasm.values()]
    sizes = {n: len(gzip.compress((pages / n).read_bytes(), 9)) for n in names}
    print(f"first load {sum(sizes.values()) / 1e6:.1f} MB")
    assert sum(sizes.values()) < BUDGET_FIRST


def test_the_runtime_has_its_licence_and_nobody_elses_address_is_in_the_page(pages):
    assert "MIT License" in (pages / "runtime" / "LICENSE").read_text()
    assert "Apache License" in (pages / "LICENSE").read_text()
    for file in pages.iterdir():
        if file.suffix in (".html", ".js", ".css", ".json", ".webmanifest"):
            addresses = set(re.findall(r"\bhttps?://[\w.-]+", file.read_text()))
            assert addresses <= {"http://www.w3.org"}, file.name  # the name space of SVG


def test_the_colours_are_those_of_the_app(pages):
    light, _, dark = (pages / "theme.css").read_text().partition("@media")
    for name, (by_day, by_night) in COLOURS.items():
        assert f"--k-{name}:{by_day};" in light and f"--k-{name}:{by_night};" in dark
    used = set(re.findall(r"var\(--k-([\w-]+)\)", (pages / "style.css").read_text()))
    assert used <= set(COLOURS) and not re.search(r"#[0-9a-f]{3,8}\b(?!-)\s*[;}]", (pages / "style.css").read_text())


def test_what_the_page_imports_is_kept_for_visits_without_a_network(pages):
    modules = {f.name: f.read_text() for f in pages.glob("*.js")}
    imported = set(re.findall(r'from "\./(\w+\.js)"', "".join(modules.values())))
    assert len(imported) > 8 and imported | {"worker.js", "index.html", "style.css", "theme.css"} <= set(
        site_manifest(pages)["page"]
    )
    assert set(modules) <= {*site_manifest(pages)["page"], "sw.js"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "tiny-sdxl", "tiny-koala-700m"], "--models goes with --target web"),
        (["--model", "tiny-sdxl", "--runtime", "a.tgz"], "--runtime goes with --target web"),
        (["--target", "web", "--model", "tiny-sdxl", "--components", "unet"], "leave --components out"),
        (["--target", "web", "--model", "tiny-sdxl", "--lora", "a.safetensors"], "a page takes no --lora; fuse it"),
        (["--target", "web", "--models", *["tiny-sdxl"] * 5], "a page shows at most 4 models, not 5"),
        (
            ["--target", "web", "--models", "sdxl-base"],
            "drawn with euler-leading, and the page only has euler-trailing",
        ),
        (["--target", "web", "--model", "tiny-sdxl", "--runtime", "absent.tgz"], "absent.tgz cannot be read"),
        (["--target", "wed", "--model", "tiny-sdxl"], "unknown target 'wed'; choose one of .*, web"),
    ],
)
def test_what_no_page_could_show_is_refused_before_the_work(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("koala.export.folder.export", lambda *_, **__: pytest.fail("an export was begun"))
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert re.search(words, capsys.readouterr().err) and not (tmp_path / "out").exists()


def test_a_page_needs_a_model(capsys):
    with pytest.raises(SystemExit):
        parse(["--target", "web", "--out", "out"])
    assert "one of the arguments --model --models is required" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prediction_type", "v_prediction"),
        ("beta_schedule", "linear"),
        ("rescale_betas_zero_snr", True),
        ("use_karras_sigmas", True),
        ("trained_betas", [0.1]),
    ],
)
def test_a_schedule_that_the_page_does_not_follow_is_refused(key, value, exported_700m, tmp_path):
    place = tmp_path / "scheduler"
    shutil.copytree(exported_700m / "scheduler", place)
    file = place / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(UserError, match=f"{key}.*and the page only supports"):
        parts._schedule(tmp_path)


def test_another_tokenizer_than_clips_is_refused(exported_700m, tmp_path):
    shutil.copytree(exported_700m / "tokenizer", tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": {"type": "NFKC"}}))
    with pytest.raises(UserError, match=r"is not CLIP's tokenizer \(normalizer\)"):
        parts._tokenizer(tmp_path / "tokenizer")


def test_a_site_that_is_there_is_not_overwritten(exported_700m, runtime, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        site.write([exported_700m], tmp_path / "site", runtime=runtime)
    assert [f.name for f in tmp_path.rglob("*") if f.is_file()] == ["mine.txt"]
    with pytest.raises(UserError, match="is named twice"):
        site.write([exported_700m, exported_700m], tmp_path / "new", runtime=runtime)


def test_the_readmes_figures_are_those_of_the_report_and_the_report_is_of_the_shipped_weights():
    root = Path(__file__).parents[3]
    result = json.loads((root / "docs" / "measurements" / "web.json").read_text())
    text = " ".join((root / "README.md").read_text().split())
    worst = max(max(one["largest_difference"]) for one in result["against_torch"])
    assert f"within {worst}/255 of torch's" in text and worst <= 2
    first, whole = result["site"]["first_load"], result["site"]["whole"]
    assert f"the first picture needs {first / 1e6:.1f} MB, all of the site {whole / 1e6:.1f} MB, gzipped" in text
    assert first < BUDGET_FIRST and whole < BUDGET_WHOLE
    assert max(result["first_picture_s"]) < 5  # after the student was there, on one thread
    shipped = json.loads((EMBEDDED / "hashes.json").read_text())
    for model in result["models"]:
        assert model["source"].items() <= shipped[model["name"]].items()
    assert result["runtime"] == f"{packages.RUNTIME.name} {packages.RUNTIME.version}"
