"""An export as HTML: its progress, its gates, the files in its folder, and the commands that run it."""

import datetime
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from koala.models.export_manifest import UNET, Exported
from koala.ui.export.jobs import DONE, RUNNING, Job
from koala.ui.export.store import ExportFolder
from koala.ui.html import macros
from koala.unet.costs import LATENT_FACTOR, TOKENS
from koala.words import size, span

PROMPT = "a red circle left of a blue square"
_STEP = """import numpy
import onnxruntime

session = onnxruntime.InferenceSession({file}, providers=["CPUExecutionProvider"])
noise = session.run(
    ["out_sample"],
    {{
{inputs}
    }},
)[0]
print(noise.shape, noise.dtype)"""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Something to paste into a terminal or a program, and a note about it."""

    title: str
    text: str
    note: str = ""


def lines_to_copy(
    exported: Exported, folder: str, engines: Mapping[str, Sequence[str]], why_not: str = ""
) -> list[Line]:
    """The lines for one export. `engines` are TensorRT's commands by program; `why_not` says why there are none."""
    where, prompt = shlex.quote(folder), shlex.quote(PROMPT)
    lines = [
        Line(
            title="This project",
            text=f"python -m koala generate --model {where} --prompt {prompt} --out picture.png",
            note="" if exported.whole else f"The text encoders and the VAE of {exported.model} run in torch.",
        )
    ]
    if exported.whole:
        lines.append(
            Line(
                title="numpy alone",
                text=f"python koala/export/numpy_runner.py {where} {prompt} --seed 0 --out picture.png",
                note="One readable file without torch, to port to other languages.",
            )
        )
    lines.append(Line(title="One U-Net step in ONNX Runtime", text=_step(exported, f"{folder}/{UNET}")))
    lines += [Line(title=name, text=f"cd {where} && {shlex.join(words)}") for name, words in engines.items()]
    if why_not:
        lines.append(Line(title="TensorRT", text="", note=why_not))
    lines.append(
        Line(
            title="Run the gates again",
            text=f"python -m koala export verify {where}",
            note="The exit status is 0 where all gates pass.",
        )
    )
    return lines


def _step(exported: Exported, file: str) -> str:
    """A program that runs one guided step of the U-Net at the model's own size."""
    height, width = (int(exported.defaults[side]) for side in ("height", "width"))
    sizes = {"batch": 2, "height": height // LATENT_FACTOR, "width": width // LATENT_FACTOR, "sequence": TOKENS}
    rows = []
    for name, (dtype, dims) in exported.components["unet"].inputs.items():
        shape = [sizes.get(dim, dim) for dim in dims]
        values = {
            "timestep": "numpy.array(999",
            "time_ids": f"numpy.array([[{height}, {width}, 0, 0, {height}, {width}]] * 2",
            "sample": f"numpy.random.default_rng(0).standard_normal({tuple(shape)}",
        }
        rows.append(f'        "{name}": {values.get(name, f"numpy.zeros({tuple(shape)}")}).astype("{dtype}"),')
    return _STEP.format(file=json.dumps(file), inputs="\n".join(rows))


# The gates in their order, and the question that each answers.
GATES = {
    "structure": "Is the file valid, with standard operators and the types that it declares?",
    "numbers": "Does the U-Net compute what torch computes, at other sizes, batches, prompts and times?",
    "parts": "Do the text encoders and the VAE?",
    "range": "Do the values of a real run stay within the range of fp16?",
    "pictures": "Are pictures of the same seed the same?",
    "speed": "How fast is a step here, compared with torch?",
}
NAMES = {
    "unet": "U-Net",
    "text_encoder": "Text encoder",
    "text_encoder_2": "Text encoder 2",
    "vae_decoder": "VAE decoder",
    "vae_encoder": "VAE encoder",
}
DTYPES = {"float16": "fp16", "float32": "fp32", "dynamic-int8": "int8, dynamic", "weight-only-int8": "int8 weights"}
_RUNNERS = {"file": "the file", "torch fp16": "torch's own fp16", "twin": "the same graph in fp32"}
_WORDS = {True: ("pass", "k-yes", "✓"), False: ("FAIL", "k-no", "✗"), None: ("skip", "kx-skip", "–")}

Gate = tuple[str, str, str, str, str]  # gate, word, CSS class, mark, text


HTML = macros("export/panel.html", questions=GATES, size=size)
NONE_YET, OFF = HTML.none_yet(), HTML.off()


def spoken(step: str) -> str:
    """trace vae_decoder -> Trace VAE decoder."""
    verb, _, part = step.partition(" ")
    return f"{verb.capitalize()} {NAMES.get(part, part)}"


def standing(job: Job | None) -> str:
    """The export under way, or the last one: its steps, the time left, and the gates as it passes them."""
    if job is None:
        return ""
    at_gates = bool(job.findings) or job.checks
    waits = job.state == RUNNING and at_gates
    return HTML.standing(job, round(100 * job.share), waits, _tiles(job, at_gates), _steps(job), _live_gates(job))


def _tiles(job: Job, at_gates: bool) -> list[tuple[str, str, str]]:
    """Title, value and note; once the gates have begun, the time left is not known."""
    tiles = [("So far", span(max(time.time() - job.begun, 0)), "")]
    if not at_gates:
        tiles.append(("Time left", "–" if job.left is None else span(job.left), ""))
        tiles.append(("Step", spoken(job.steps[-1].text) if job.steps else "Starting", ""))
    return tiles


def _steps(job: Job) -> list[tuple[str, bool, str]]:
    """Name, whether it is over, and the time that it took, of every step."""
    ends = [step.begun for step in job.steps[1:]] + [None] * bool(job.steps)
    last_is_over = bool(job.findings) or not job.alive
    return [
        (spoken(step.text), end is not None or last_is_over, span(end - step.begun) if end is not None else "")
        for step, end in zip(job.steps, ends, strict=True)
    ]


def _live_gates(job: Job) -> list[Gate]:
    """The gates that have run and those to come. A finished export shows them in its details instead."""
    if job.state == DONE or not job.findings and not (job.checks and job.alive):
        return []
    finished = {finding["gate"] for finding in job.findings}
    rows = [_gate(finding) for finding in job.findings]
    for k, gate in enumerate(gate for gate in GATES if gate not in finished and job.alive):
        word, mark = ("runs", "◐") if k == 0 else ("waits", "○")
        rows.append((gate, word, "kx-waits", mark, ""))
    return rows


def _gate(finding: Mapping) -> Gate:
    """A finding as a row: pass, FAIL, or skip where `passed` is None."""
    return (finding["gate"], *_WORDS[finding["passed"]], finding["text"])


def details(export: ExportFolder | None, findings: Sequence[Mapping], where: str) -> str:
    """The files of one export, its distance from torch, and its speed here."""
    if export is None:
        return ""
    exported = export.exported
    if exported is None:
        return HTML.unreadable(export.name, export.problem)
    lora = f", with {exported.lora['name']} at {exported.lora['strength']:g}" if exported.lora else ""
    text = f"{exported.title} for {exported.target}{lora}. Licence: {exported.licence}."
    text += f" In {where}." if where else ""
    figures = next((f.get("figures") for f in findings if f["gate"] == "speed"), None)
    heading = "Gates" if findings else "Gates, when it was exported"
    rows = [_gate(f) for f in findings] or _exported_gates(exported)
    return HTML.details(export.name, text, figures, _components(export), export.bytes, heading, rows)


def _components(export: ExportFolder) -> list[tuple[str, str, int, int]]:
    """Name, data type, parameters and bytes of every component whose files are there."""
    rows = []
    for name, part in export.exported.components.items():
        files = [export.folder / file for file in part.files]
        if all(file.is_file() for file in files):
            count = sum(file.stat().st_size for file in files)
            rows.append((NAMES.get(name, name), DTYPES.get(part.dtype, part.dtype), part.parameters, count))
    return rows


def _exported_gates(exported: Exported) -> list[Gate]:
    """The gates as export.json has them, for an export whose gates did not run in this app."""
    parity = exported.parity
    findings = [{"gate": g, "passed": True, "text": _figures(g, parity.get(g))} for g in parity.get("passed", ())]
    findings += [{"gate": g, "passed": None, "text": "was not run"} for g in parity.get("skipped", ())]
    order = {gate: k for k, gate in enumerate(GATES)}
    return [_gate(f) for f in sorted(findings, key=lambda f: order.get(f["gate"], len(order)))]


def _figures(gate: str, figures: Mapping | None) -> str:
    """A gate's figures in export.json as a sentence."""
    if gate == "speed":  # that of another machine says nothing here, so no file has it
        return "Run the gates again to measure it now."
    if not figures:
        return ""
    if gate in ("numbers", "parts"):
        each = ", ".join(f"{NAMES.get(name, _RUNNERS.get(name, name))} {value:.1e}" for name, value in figures.items())
        return f"Largest relative error against torch in fp32: {each}."
    if gate == "range":
        module, peak = max(figures.items(), key=lambda item: item[1])
        return f"At most {peak:g}, in {module}."
    if gate == "pictures":
        scores = figures["file"]
        return (
            f"{scores['pictures']} pictures against torch in fp32: PSNR {scores['psnr_mean']} dB, "
            f"SSIM {scores['ssim_mean']}, {scores['verdicts_differ']} verdicts differ."
        )
    return ""


def table(everything: Sequence[ExportFolder], chosen: str) -> str:
    """Every export of this machine, the newest first; a click shows it."""
    return HTML.table([_row(export) for export in everything], chosen)


def _row(export: ExportFolder) -> dict[str, str]:
    """What the list shows of an export."""
    exported = export.exported
    row = {
        "name": export.name,
        "title": "",
        "target": "unreadable",
        "weights": "",
        "size": size(export.bytes),
        "gates": "",
        "made": datetime.datetime.fromtimestamp(export.written).strftime("%d %b %H:%M"),
    }
    if exported:
        passed = len(exported.parity.get("passed", ()))
        row |= {"title": exported.title, "target": exported.target}
        row["weights"] = DTYPES.get(exported.dtype, exported.dtype)
        row["gates"] = f"{passed} passed" if passed else "none run"
    return row


def to_copy(lines: Sequence[Line]) -> str:
    """Commands and programs, each with a button that copies it."""
    return HTML.to_copy(lines)


def log(job: Job | None) -> str:
    """The last lines that the process printed."""
    return HTML.printed(None if job is None else "\n".join(job.log))
