"""The docs keep their word: every snippet runs, tables are those of registry and reports, links lead somewhere."""

import json
import re
import shlex
import shutil
import string
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from koala.cli.main import main as koala_main
from koala.models.cards import CARDS

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/benchmarks.md",
    "docs/clients.md",
    "docs/cookbook.md",
    "docs/few-steps.md",
    "docs/reliability.md",
)
COOKBOOK = (ROOT / "docs" / "cookbook.md").read_text(encoding="utf-8")

# Lines of the README that are not run here: how each begins -> who runs it, or why nobody can.
ELSEWHERE = {
    "python3 -m venv": ".ci/run pastes it into a fresh clone",
    ". .venv/bin/activate": "changes the shell alone",
    "python -m koala fetch": "tests/models/downloads/test_fetch.py, from a hub on this machine",
    "python -m koala lora": "tests/cli/test_lora.py",
    "python -m koala distill --config recipes/full_scale": "tests/distill/test_full_scale_recipes.py",
    "python -m koala export --model tiny-koala-700m --out exports": "the fixture exported_700m",
    "python -m koala export --target web": "tests/export/web/test_whole.py, as the export of both takes minutes",
    "python spaces/deploy.py --static": "tests/export/web/test_static_space.py",
    "python -m koala export verify": "tests/export/test_gates.py",
    "python -m koala bench --models sdxl-base": "tests/benchmark/test_measure.py; full-size networks, for a GPU",
    "python -m koala gpu-report": "tests/gpu_report/test_report.py, on small networks; it wants a card",
}
# What the README's other lines get so that they end soon: how a line begins -> arguments at its end. A real
# checkpoint, which is not here, becomes the embedded model of its kind.
SHORTER = {
    "python -m koala generate": "--steps 2",
    "python -m koala compare": "--steps 2",
    "python -m koala attention": "--steps 2",
    "python -m koala eval --model tiny-koala-700m --suite agreement": "--num-prompts 1",
    "python -m koala eval": "--num-prompts 1 --steps 2",
    "python -m koala similarity": "--prompts circle --steps 2",
    "python -m koala bench": "--steps 1 --repeats 1",
    "python -m koala distill --preset": (
        "num_steps=2 num_pictures=8 batch_size=2 resolution=128 "
        "validation_pictures=2 validation_prompts=circle validate_every=0 score_prompts=0"
    ),
    "python -m koala distill --resume": "num_steps=3",
}
LONG = (  # more than two seconds each; the slow test runs them
    "python -m koala distill --preset",
    "python -m koala distill --resume",
    "python -m koala bench --models tiny-sdxl",
    "python -m koala eval --model tiny-koala-700m --suite agreement",
    "python -m koala eval --model tiny-sdxl tiny-koala-700m --suite steps",
    "python -m koala attention",
    "python -m koala compare --models tiny-koala-700m exports",
)
STAND_INS = {"sdxl-base": "tiny-sdxl", "koala-lightning-700m": "tiny-koala-700m"}


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """A fenced block of a page, under its heading."""

    heading: str
    language: str
    text: str


def snippets(text: str) -> list[Snippet]:
    result, heading = [], ""
    for line in re.finditer(r"^##? ([^\n]+)$|^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if line[1]:
            heading = line[1]
        else:
            result.append(Snippet(heading=heading, language=line[2], text=line[3]))
    return result


RECIPES = {s.heading: [x for x in snippets(COOKBOOK) if x.heading == s.heading] for s in snippets(COOKBOOK)}


LONG_RECIPES = (  # headings of recipes that take a minute
    "The paper's figures over the steps",
    "A teacher of your own",
    "Data of your own",
)


def commands(block: str) -> Iterator[list[str]]:
    """The words of every line, as a shell reads them: `NAME=value ...` sets variables, `$NAME` is one."""
    variables = {}
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        if words and all(re.fullmatch(r"[A-Z]+=\S+", word) for word in words):
            variables |= dict(word.split("=", 1) for word in words)
        elif words:
            yield [string.Template(word).substitute(variables) for word in words]


def run(words: list[str]) -> None:
    """One command; ours run in this process, which has torch in memory already."""
    assert words[0] == "python", f"no test knows how to run {' '.join(words)}"
    if words[1:3] == ["-m", "koala"]:
        assert koala_main(words[3:]) == 0, " ".join(words)
    else:
        subprocess.run([sys.executable, *words[1:]], check=True)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder that looks like the repository's root, to write into."""
    for name in ("export", "koala", "recipes", "spaces"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)  # a distillation sets its own


@pytest.mark.parametrize(
    "heading", [pytest.param(h, marks=pytest.mark.slow if h in LONG_RECIPES else ()) for h in RECIPES]
)
def test_the_cookbooks_recipe_runs_as_it_stands(heading, root, request):
    (root / "work").mkdir()
    for snippet in RECIPES[heading]:
        if snippet.language == "python":
            exec(compile(snippet.text, heading, "exec"), {"__name__": "__main__"})
            continue
        assert snippet.language == "bash"
        for words in commands(snippet.text):
            if words[:5] == ["python", "-m", "koala", "export", "--model"]:
                assert words[5] == "tiny-koala-700m"
                export = request.getfixturevalue("exported_700m")  # once for all tests
                shutil.copytree(export, words[words.index("--out") + 1])
            else:
                run(words)


@pytest.mark.slow
@pytest.mark.parametrize("heading", RECIPES)
def test_the_cookbooks_recipe_runs_in_a_shell(heading, root):
    """As pasted: one bash for the whole recipe, an interpreter a command, the export made anew."""
    python = {"bash": "{}", "python": "python - <<'PY'\n{}PY\n"}
    text = "".join(python[s.language].format(s.text) for s in RECIPES[heading])
    # The folder of this interpreter, not a link to it: a link elsewhere has lost its virtual environment.
    text = f"export PATH={Path(sys.executable).parent}:$PATH\nmkdir work\n{text}"
    subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True)


README = [c for s in snippets((ROOT / "README.md").read_text()) if s.language == "bash" for c in s.text.splitlines()]


@pytest.mark.parametrize("left_out", [LONG, pytest.param((), marks=pytest.mark.slow)], ids=["short", "every"])
def test_every_line_of_the_readme_runs(root, exported_700m, left_out):
    assert all(any(line.startswith(start) for line in README) for start in left_out)
    (root / "exports").mkdir()
    shutil.copytree(exported_700m, root / "exports" / "tiny-koala-700m")
    left = set(ELSEWHERE)
    for line in README:
        if elsewhere := next((start for start in ELSEWHERE if line.startswith(start)), None):
            left.discard(elsewhere)
            continue
        if line.startswith(left_out):
            continue
        more = next((end for start, end in SHORTER.items() if line.startswith(start)), "")
        for name in root.glob("picture*"):  # several lines write the same name
            shutil.rmtree(name) if name.is_dir() else name.unlink()
        (words,) = commands(line)
        run([STAND_INS.get(word, word) for word in [*words, *more.split()]])
    assert not left, "nothing in the README begins so any more"


@pytest.mark.slow
def test_the_first_change_of_contributing_works(tmp_path):
    """Its lines in their order, on a copy; the environment is this one."""
    (tmp_path / "tests" / "sampling").mkdir(parents=True)
    shutil.copytree(ROOT / "koala", tmp_path / "koala", ignore=shutil.ignore_patterns("embedded", "__pycache__"))
    (tmp_path / "koala" / "embedded").symlink_to(ROOT / "koala" / "embedded")
    for name in ("pyproject.toml", "tests/conftest.py", "tests/sampling/test_presets.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    blocks = snippets((ROOT / "CONTRIBUTING.md").read_text())
    assert [block.language for block in blocks] == ["bash", "diff", "bash"]
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=blocks[1].text, text=True, check=True)
    generated, tested, linted = blocks[2].text.splitlines()
    for line in (generated, tested, *linted.split(" && ")):
        program, *words = shlex.split(line)
        inside = [sys.executable, *words] if program == "python" else [sys.executable, "-m", program, *words]
        more = ["--steps", "2"] if line is generated else []
        done = subprocess.run([*inside, *more], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert (tmp_path / "draft.png").is_file()


def test_a_fresh_clone_was_ready_within_the_five_minutes():
    """The blocks that were pasted and timed are those that stand there now."""
    result = json.loads((ROOT / "docs" / "measurements" / "fresh-clone.json").read_text())
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert result["contributing"]["block"] in page and result["readme_app"]["block"] in (ROOT / "README.md").read_text()
    assert f"took {result['contributing']['seconds']:.0f} s on two cores" in page
    assert result["contributing"]["seconds"] < 300


def test_every_block_of_every_page_is_run_by_a_test():
    """Those of the cookbook and the README above, of the others below; a new page or language needs its own test."""
    result = {page: {s.language for s in snippets((ROOT / page).read_text())} for page in PAGES}
    assert result == {
        "README.md": {"bash", "powershell"},  # tests/hardware/test_torch_build.py holds the lines for Windows
        "CONTRIBUTING.md": {"bash", "diff"},
        "docs/architecture.md": {"mermaid"},
        "docs/benchmarks.md": {
            "bash"
        },  # tests/docs/test_readme.py holds the command to its report, test_gpu_report.py its own
        "docs/clients.md": {"bash"},  # tests/recipes/test_clients.py; its second and third line want other programs
        "docs/cookbook.md": {"bash", "python"},
        "docs/few-steps.md": {"bash"},  # tests/docs/test_readme.py parses its commands
        "docs/reliability.md": {"bash"},  # tests/recipes/test_reliability.py
    }
    assert {page.relative_to(ROOT).as_posix() for page in ROOT.glob("docs/*.md")} - set(PAGES) == {"docs/decisions.md"}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_the_pages_tables_are_the_registrys_and_the_reports():
    subprocess.run([sys.executable, "-m", "recipes.tools.readme_tables", "--check"], cwd=ROOT, check=True)


def test_the_readme_names_every_models_licence():
    text = (ROOT / "README.md").read_text()
    for card in CARDS.values():
        assert any(f"`{card.name}`" in row and card.licence in row for row in text.splitlines()), card.name


def test_the_first_picture_is_the_reports_and_keeps_every_claim():
    result = json.loads((ROOT / "docs" / "measurements" / "first-screen.json").read_text())
    assert [m["model"] for m in result["models"]] == ["tiny-sdxl", "tiny-koala-1b", "tiny-koala-700m"]
    assert all(claim["holds"] for m in result["models"] for claim in m["claims"])
    assert all(m["request"]["prompt"] == result["prompt"] for m in result["models"])
    assert [r["number"] for r in result["rejected"]] == list(range(result["number"]))  # the first, by the rule
    with Image.open(ROOT / "docs" / "images" / "first-screen.png") as picture:
        assert picture.width > 3 * 256
