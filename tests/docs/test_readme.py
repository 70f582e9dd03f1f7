"""The README keeps its word: its commands parse, its figures are the measured ones, its files exist."""

import importlib.util
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from koala.cli.main import OTHERS, VERBS, parser
from koala.export.command import VERBS as EXPORT_VERBS
from koala.export.command import parse as export_parser
from koala.export.verify import GATES
from koala.models.cards import CARDS, EMBEDDED
from koala.ui.main import parse as app_parser
from tests.test_arrows import ROOMS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python -m koala (.+)$", README, re.M)
COMMANDS += re.findall(r"^python -m koala (.+)$", (ROOT / "docs" / "few-steps.md").read_text(encoding="utf-8"), re.M)
COMMANDS += re.findall(r"`python -m koala (app .+?)`", README)
REPORTS = sorted((ROOT / "docs" / "measurements").glob("*.json"))


def parse(words: list[str]) -> None:
    """The arguments of `koala`, read by the parser that reads them; SystemExit for any that it does not know."""
    others = {"export": export_parser, "app": app_parser}
    if words[0] in others:
        others[words[0]](words[1:])
    else:
        parser().parse_args(words)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    parse(shlex.split(command, comments=True))


def tree() -> dict[str, set[str]]:
    """Folder -> its entries in the annotated tree; "" is the root. A folder's name ends in a slash."""
    block = re.search(r"## Find your way.*?```\n(.*?)```", README, re.S)[1]
    entries, folder = {"": set()}, ""
    for line in block.splitlines():
        indent, name, about = re.fullmatch(r"( {0,2})(\S+) +(\S.*)", line).groups()
        assert about
        if not indent:
            folder = name
        parent = entries.setdefault(folder if indent else "", set())
        assert name not in parent, f"{name} has two lines"
        parent.add(name)
    return entries


def on_disk(folder: str) -> set[str]:
    """The folders and modules that git knows in a folder, without those that only make it a package."""
    listed = subprocess.run(["git", "ls-files", "--", folder or "."], cwd=ROOT, capture_output=True, text=True)
    parts = [Path(line).relative_to(folder).parts for line in listed.stdout.splitlines()]
    folders = {f"{part[0]}/" for part in parts if len(part) > 1 and not part[0].startswith(".")}
    modules = {part[0] for part in parts if len(part) == 1 and part[0].endswith(".py")}
    return folders | modules - {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("folder", tree())
def test_the_tree_is_the_repositorys(folder):
    """In both directions: every entry has a line, and every line is there."""
    assert tree()[folder] == on_disk(folder)
    assert {"", "koala/", "recipes/"} == set(tree())


def test_the_heart_is_there():
    """The files with which docs/architecture.md says to begin."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    start = page.partition("## Start here")[2].partition("\n## ")[0]
    files = re.findall(r"^\d\. \[`(.+?)`\]", start, re.M)
    assert len(files) == 5
    assert all((ROOT / "koala" / file).is_file() for file in files)


def test_the_table_of_rooms_is_the_tests():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.M) == [room for room in ROOMS if room != "__main__"]


def recorded(report: object) -> Iterator[str]:
    """Every text under a key `command` of a report, at any depth."""
    for key, value in report.items() if isinstance(report, dict) else enumerate(report):
        if key == "command":
            yield value
        elif isinstance(value, dict | list):
            yield from recorded(value)


MEASURED = [(file.name, command) for file in REPORTS for command in sorted(set(recorded(json.loads(file.read_text()))))]


@pytest.mark.parametrize(("report", "command"), MEASURED)
def test_a_reports_command_still_exists(report, command):
    """The module or script that wrote it is there, and so is the verb of koala."""
    python, *words = shlex.split(command)
    assert python == "python"
    if words[0] != "-m":
        assert (ROOT / words[0]).is_file(), words[0]
        return
    module, verb = words[1], words[2]
    assert importlib.util.find_spec(module), module
    if module == "koala":
        assert verb in VERBS or verb in OTHERS, verb
    if "export" in (module, verb):
        verb = words[3] if module == "koala" else verb
        assert verb in EXPORT_VERBS or verb.startswith("--"), verb


def test_every_report_has_a_command():
    """One that is made of others has it in each of its parts; one that a test measures names the test."""
    without = {file.name for file in REPORTS} - {name for name, _ in MEASURED}
    assert without == {"distill-full-size-cpu.json"}
    for file in without:
        report = json.loads((ROOT / "docs" / "measurements" / file).read_text())
        assert (ROOT / report["test"].partition(",")[0]).is_file()


def test_attentions_figures_are_those_of_the_reports():
    folder = ROOT / "docs" / "measurements"
    result, figures = (json.loads((folder / f"attention{name}.json").read_text()) for name in ("", "-figures"))
    text = " ".join(README.split())
    assert f"costs {100 * (result['recording']['one_layer_per_stage']['ratio_of_medians'] - 1):.0f} % of a run" in text
    assert f"a click {round(result['click']['full_size_layer']['median_ms'], 1)} ms on a full-size layer" in text
    size = result["full_size"]
    assert size["predicted_bytes"] == size["tensor_bytes"]
    assert f"{size['predicted_bytes'] / 1e9:.2f} GB for one layer a stage of KOALA-700M over 10 steps" in text
    attention, last = (figures["divergence_from_the_teacher"][s] for s in ("SA", "LF"))
    assert figures["command"].endswith("num_steps=900") and "900 steps each from the same cut" in text
    assert [stage for stage in attention if attention[stage] > last[stage]] == ["DW-2", "DW-3", "UP-2"]
    assert "the other at DW-2, DW-3 and UP-2" in text
    assert (
        f"nearer to it at UP-1, where the paper shows it ({attention['UP-1']} against {last['UP-1']}), and at MID"
        in text
    )
    short = json.loads((folder / "attention-figures-200-steps.json").read_text())
    attention, last = (short["divergence_from_the_teacher"][s] for s in ("SA", "LF"))
    assert all(attention[stage] < last[stage] for stage in attention) and len(attention) == 5
    assert "it was the first at all five" in text


def test_optimum_drew_at_a_size_that_is_no_multiple_of_32():
    result = json.loads((ROOT / "docs" / "measurements" / "optimum.json").read_text())
    odd = next(p for p in result["pictures"] if p["width"] % 32 and p["height"] % 32)
    assert f"also at {odd['width']}x{odd['height']} px" in " ".join(README.split())
    assert min(p["psnr_db_against_torch"] for p in result["pictures"]) > 40


def test_full_size_exports_took_what_is_said():
    result = json.loads((ROOT / "docs" / "measurements" / "export-full-size.json").read_text())["models"]
    small, large = result["koala-700m"], result["koala-1b"]
    text = " ".join(README.split())
    assert (
        f"KOALA-700M takes {small['seconds'] / 60:.0f} minutes of one core with its gates and "
        f"{small['peak_memory_bytes'] / 1e9:.1f} GB of memory, and becomes one file of "
        f"{small['files']['unet/model.onnx'] / 1e9:.2f} GB; KOALA-1B {large['seconds'] / 60:.0f} minutes and "
        f"{large['peak_memory_bytes'] / 1e9:.1f} GB, with one data file of "
        f"{large['files']['unet/model.onnx_data'] / 1e9:.2f} GB"
    ) in text
    for each in (small, large):
        errors = each["parity"]["numbers"]
        assert errors["file"] < errors["torch fp16"]  # nearer to torch's fp32
        (engine,) = each["engines"]
        assert engine["builder"] == "TensorRT-RTX" and engine["bytes"] > 2 * each["parameters"]
    assert "KOALA-700M's in half a minute" in text and 20 < small["engine_seconds"] < 40


def test_every_export_keeps_within_its_bounds():
    result = json.loads((ROOT / "docs" / "measurements" / "export-embedded.json").read_text())["exports"]
    for name, each in result.items():
        pictures = each["pictures"]["file"]
        assert pictures["pictures"] == 200
        assert each["gates"]["skipped"] == ([] if name.endswith("fp16") else ["range"])  # fp32 overflows nowhere here
        assert sorted(each["gates"]["passed"] + each["gates"]["skipped"]) == sorted(GATES)
        if "int8" in name:
            assert abs(pictures["right"] - pictures["right_torch_fp32"]) <= 10  # 5 points
        else:
            assert pictures["verdicts_differ"] <= 2
        assert [pace["threads"] for pace in each["speed"]] == [1, 2]
    assert all(
        min(p["ratio"] for p in result[f"{target}-fp32"]["speed"]) >= 1.3 for target in ("universal", "cpu-int8")
    )


def test_there_are_commands_of_every_verb():
    assert {c.split()[0] for c in COMMANDS} >= {"models", "generate", "compare", "eval"}


def test_scores_are_those_of_the_reports():
    sizes = json.loads((ROOT / "docs" / "measurements" / "embedded-sizes.json").read_text())
    whole = {}
    for name in (c.name for c in CARDS.values() if c.embedded and c.steps == 25):
        report = json.loads((EMBEDDED / "scores" / f"{name}.json").read_text())
        one, two, unseen = (report["scores"][suite] for suite in ("one_object", "two_objects", "held_out"))
        whole[name] = two["all"]["rate"]
        others = {(r["width"], r["height"]): r["scores"]["two_objects"]["all"]["rate"] for r in sizes["models"][name]}
        rates = [one["all"]["rate"], two["all"]["rate"], whole[name] / whole["tiny-sdxl"], two["relation"]["rate"]]
        rates += [others[320, 192], others[192, 320], unseen["all"]["rate"]]
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}`"))
        assert re.findall(r"([\d.]+) %", row) == [f"{100 * rate:.1f}" for rate in rates]
        counts = f"{report['num_prompts']} prompts per suite ({sizes['num_prompts']} at other sizes)"
        assert counts in " ".join(README.split())


FEW_STEPS = [(c.name, calls) for c in CARDS.values() if c.embedded and c.steps == 4 for calls in (4, 2)]


@pytest.mark.parametrize(("name", "calls"), FEW_STEPS)
def test_scores_of_few_steps_are_those_of_the_reports(name, calls):
    report = json.loads((EMBEDDED / "scores" / f"{name}{'' if calls == 4 else '-2-steps'}.json").read_text())
    teacher = json.loads((EMBEDDED / "scores" / "tiny-sdxl.json").read_text())["scores"]["two_objects"]["all"]["rate"]
    one, two, unseen = (report["scores"][suite]["all"]["rate"] for suite in ("one_object", "two_objects", "held_out"))
    drawn = (report["model"], report["steps"], report["guidance"], report["scheduler"], report["num_prompts"])
    assert drawn == (name, calls, 0.0, "euler-trailing", 500)
    row = next(line for line in README.splitlines() if line.startswith(f"| `{name}` | {calls} |"))
    assert re.findall(r"([\d.]+) %", row) == [f"{100 * rate:.1f}" for rate in (one, two, two / teacher, unseen)]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_linked_files_exist(target):
    assert (ROOT / target).exists()


def test_judge_and_speed_are_those_of_the_reports():
    judge = json.loads((EMBEDDED / "scores" / "judge.json").read_text())["judge"]
    assert f"{100 * judge['clean']['perfect']:g} % of {judge['num_scenes']:,} clean" in README
    assert f"{100 * judge['round_trip']['perfect']:g} % of them" in README
    compared = json.loads((ROOT / "docs" / "measurements" / "compare-tiny.json").read_text())
    ratio = next(m for m in compared["speedup"]["models"] if m["model"] == "tiny-koala-700m")["per_call"]
    assert f"[{ratio:.1f}x](docs/measurements/compare-tiny.json)" in README


def test_benchmarks_are_those_of_the_report():
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    result = json.loads((ROOT / "docs" / "measurements" / "bench-full-size-cpu.json").read_text())
    assert result["command"] in text
    for row in result["rows"]:
        cells = next(line for line in text.splitlines() if line.startswith(f"| {row['model']} "))
        peak, expected = row["peak_memory_bytes"] / 1e9, row["predicted"]
        assert f"| {int(row['unet_step_ms']):,} | {int(expected['unet_step_ms']):,} |" in cells
        assert f"| {peak:.2f} | {expected['peak_memory_bytes'] / 1e9:.2f} |" in cells
    for row in result["speedup"]["rows"]:
        cells = next(line for line in text.splitlines() if line.startswith(f"| {row['model']} "))
        assert f"| {row['unet_step']:.2f}x | {row['total']:.2f}x |" in cells


def test_distillations_figures_are_those_of_the_reports():
    folder = ROOT / "docs" / "measurements"
    ten, size, speed = (
        json.loads((folder / f"distill-{name}.json").read_text()) for name in ("10-minutes", "full-size-cpu", "speed")
    )
    text = " ".join(README.split())
    attributes = ten["student"]["one_object"]["attribute"]["by"]
    assert ten["command"].startswith("python -m koala distill --preset 10-minutes")
    assert ten["seconds"] <= 600
    assert (
        f"in {100 * ten['student']['one_object']['all']['rate']:.1f} % of {ten['score']['num_prompts']} prompts" in text
    )
    assert f"{100 * ten['share_of_teacher']['one_object']:.0f} % of what its teacher can" in text
    assert f"the colour is right in {100 * attributes['colour']['rate']:.1f} %" in text
    assert f"the background in {100 * attributes['background']['rate']:.1f} %" in text
    few = json.loads((folder / "distill-few-steps.json").read_text())
    assert few["command"].startswith("python -m koala distill --preset few-steps") and few["threads"] == 2
    assert (
        f"In {few['seconds'] / 60:.0f} minutes on two cores `--preset few-steps`" in text and few["seconds"] < 30 * 60
    )
    one, two, before_one, before_two = (
        f"{100 * few[who][suite]['all']['rate']:.1f} %"
        for who in ("student", "teacher_in_as_many_calls")
        for suite in ("one_object", "two_objects")
    )
    assert f"wholly right in {one} of {few['score']['num_prompts']} prompts, two objects in {two}," in text
    assert f"in 4 calls without guidance has {before_one} and {before_two}" in text
    peak = size["peak_memory_bytes"]
    assert f"predicted at {peak['predicted'] / 1e9:.1f} GB and took {peak['measured'] / 1e9:.1f} GB" in text
    assert f"takes {speed['ratio']:.1f}x the pictures per second" in text
    assert f"{100 * speed['bk_sdm_share_of_encoding']:.0f} % of its time" in text
