"""An export as HTML: how it goes, what its gates say, what is in the folder, and the lines that run it."""

import datetime
import time
from collections.abc import Mapping, Sequence
from html import escape

from koala.models.export_manifest import Exported
from koala.ui.export.jobs import DONE, RUNNING, Job
from koala.ui.export.lines import Line
from koala.ui.export.store import Found
from koala.words import size, span

# The gates in their order, and what each looks at.
GATES = {
    "structure": "Is the file valid, of standard operators, and of the types that it declares?",
    "numbers": "Does the U-Net compute what torch computes, at other sizes, batches, prompts and times?",
    "parts": "Do text encoders and VAE?",
    "range": "Do the numbers of a real run stay within fp16's range?",
    "pictures": "Are pictures of the same seed the same?",
    "speed": "How fast is a step here, against torch?",
}
NAMES = {
    "unet": "U-Net",
    "text_encoder": "Text encoder",
    "text_encoder_2": "Text encoder 2",
    "vae_decoder": "VAE decoder",
    "vae_encoder": "VAE encoder",
}
DTYPES = {"float16": "fp16", "float32": "fp32", "dynamic-int8": "int8, dynamic", "weight-only-int8": "int8 weights"}
NONE_YET = (
    '<section class="k-panel kd-empty"><h3>A model for other runtimes</h3><p>Write a model as ONNX files that ONNX '
    "Runtime, TensorRT and others load as they are. Before an export is called done it must pass gates that hold it "
    "against torch: structure, numbers, range, and pictures of the same seed.</p></section>"
)
OFF = (
    '<section class="k-panel kd-empty"><h3>Export is off on this server</h3><p>It takes minutes of computing. On your '
    "own machine <code>python app.py</code> has it, or a terminal: <code>python -m export --model tiny-koala-700m "
    "--out exports/tiny-koala-700m</code>. Who runs this server turns it on for the embedded models with "
    "<code>--export</code>, on a Space with the variable <code>KOALA_EXPORT=1</code>.</p></section>"
)
_RUNNERS = {"file": "the file", "torch fp16": "torch's own fp16", "twin": "the same graph in fp32"}
_WORDS = {True: ("pass", "k-yes", "✓"), False: ("FAIL", "k-no", "✗"), None: ("skip", "kx-skip", "–")}


def spoken(step: str) -> str:
    """trace vae_decoder -> Trace VAE decoder."""
    verb, _, part = step.partition(" ")
    return f"{verb.capitalize()} {NAMES.get(part, part)}"


def standing(job: Job | None) -> str:
    """The export that is under way, or the last one: steps, time left, and the gates as they are passed."""
    if job is None:
        return ""
    percent = round(100 * job.share)
    at_gates = bool(job.findings) or job.checks
    waits = str(job.state == RUNNING and at_gates).lower()
    progress = (
        f'<div class="kd-progress" data-waits="{waits}" role="progressbar" aria-label="Progress" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent}"><i style="width:{percent}%"></i></div>'
    )
    message = job.message[:1].upper() + job.message[1:]
    return (
        f'<section class="k-panel kd-run kx-job" data-state="{job.state}" aria-label="{escape(job.title)}">'
        f'<div class="kd-head"><h3>{escape(job.title)}</h3>'
        f'<span class="kd-state" role="status">{job.state}</span></div>'
        f"{progress if job.alive else ''}{_tiles(job, at_gates) if job.alive else ''}{_steps(job)}"
        f'<p class="kd-message">{escape(message)}</p>{_live_gates(job)}</section>'
    )


def _tiles(job: Job, at_gates: bool) -> str:
    left = "gates run" if at_gates else "–" if job.left is None else span(job.left)
    so_far = span(max(time.time() - job.begun, 0))
    tiles = (("So far", so_far), ("Time left", left), ("Step", spoken(job.steps[-1].text) if job.steps else "Starting"))
    shown = tiles if not at_gates else tiles[:1]
    return f'<dl class="kd-tiles">{"".join(f"<div><dt>{n}</dt><dd><b>{v}</b></dd></div>" for n, v in shown)}</dl>'


def _steps(job: Job) -> str:
    """Every step with what it took; folded away once the gates have begun."""
    if not job.steps:
        return ""
    ends = [step.begun for step in job.steps[1:]] + [None]
    items = []
    for step, end in zip(job.steps, ends, strict=True):
        over = end is not None or job.findings or not job.alive
        took = f"<span>{span(end - step.begun)}</span>" if end is not None else ""
        items.append(f'<li data-over="{str(bool(over)).lower()}">{escape(spoken(step.text))} {took}</li>')
    listed = f'<ol class="kx-steps">{"".join(items)}</ol>'
    if job.findings or not job.alive:
        return f'<details class="kx-folded"><summary>{len(items)} steps</summary>{listed}</details>'
    return listed


def _live_gates(job: Job) -> str:
    """One row for each gate: passed, failed, skipped, under way, or waiting. Done, they stand with the export."""
    if job.state == DONE or not job.findings and not (job.checks and job.alive):
        return ""
    told = {f["gate"]: f for f in job.findings}
    waiting = [gate for gate in GATES if gate not in told]
    rows = [gate_row(f) for f in job.findings]
    for k, gate in enumerate(waiting if job.alive else ()):
        word, mark = ("runs", "◐") if k == 0 else ("waits", "○")
        rows.append(_gate(gate, word, "kx-waits", mark, ""))
    return gate_list(rows)


def gate_list(rows: Sequence[str]) -> str:
    """The rows, an <li> each, as one list."""
    return f'<ul class="kx-gates" aria-label="Gates">{"".join(rows)}</ul>'


def gate_row(finding: Mapping) -> str:
    """One finding of a gate as an <li>: pass, FAIL, or skip where `passed` is None."""
    word, kind, mark = _WORDS[finding["passed"]]
    return _gate(finding["gate"], word, kind, mark, finding["text"])


def _gate(gate: str, word: str, kind: str, mark: str, text: str) -> str:
    question = f"<small>{GATES.get(gate, '')}</small>"
    return (
        f'<li data-gate="{escape(gate)}" data-word="{word}"><b class="{kind}"><span aria-hidden="true">{mark}</span> '
        f"{word}</b><div><strong>{escape(gate.capitalize())}</strong> {question}"
        f"{f'<p>{escape(text)}</p>' if text else ''}</div></li>"
    )


def details(found: Found | None, findings: Sequence[Mapping], where: str) -> str:
    """What lies in the folder of one export, how far it is from torch, and its pace here."""
    if found is None:
        return ""
    if found.exported is None:
        return (
            f'<section class="k-panel kx-details"><h3>{escape(found.name)}</h3><p class="k-no">'
            f"{escape(found.problem)}</p></section>"
        )
    exported = found.exported
    lora = f", with {exported.lora['name']} at {exported.lora['strength']:g}" if exported.lora else ""
    return (
        f'<section class="k-panel kx-details" aria-label="Export {escape(found.name)}"><h3>{escape(found.name)}</h3>'
        f'<p class="k-note">{escape(exported.title)} for {escape(exported.target)}{escape(lora)}. Licence: '
        f"{escape(exported.licence)}.{f' In {escape(where)}.' if where else ''}</p>"
        f"{_pace(findings)}{_sizes(found)}{_gates(exported, findings)}</section>"
    )


def _pace(findings: Sequence[Mapping]) -> str:
    """The ratio first, then what it is made of."""
    figures = next((f.get("figures") for f in findings if f["gate"] == "speed"), None)
    if not figures:
        return ""
    ms, threads = figures["ms"], figures["threads"]
    return (
        f'<p class="k-speedup"><strong>{figures["ratio"]:.2f}×</strong> <span>the pace of eager torch in fp32, one '
        f"guided U-Net step on this machine's CPU with {threads} thread{'s' * (threads > 1)}, measured in turns: "
        f"{ms['onnx']:.1f} ms in ONNX Runtime, {ms['torch']:.1f} ms in torch.</span></p>"
    )


def _sizes(found: Found) -> str:
    rows = "".join(
        f'<tr><th scope="row">{NAMES.get(name, escape(name))}</th><td>{DTYPES.get(part.dtype, escape(part.dtype))}</td>'
        f"<td>{part.parameters:,}</td><td>{size(sum((found.folder / f).stat().st_size for f in part.files))}</td></tr>"
        for name, part in found.exported.components.items()
        if all((found.folder / file).is_file() for file in part.files)
    )
    heads = "".join(f'<th scope="col">{h}</th>' for h in ("component", "weights", "parameters", "size"))
    return (
        f'<table class="kx-sizes"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody><tfoot><tr><th scope="row">'
        f"All files</th><td></td><td></td><td>{size(found.bytes)}</td></tr></tfoot></table>"
    )


def _gates(exported: Exported, findings: Sequence[Mapping]) -> str:
    """The gates' own words where this app heard them, else the figures that the export carries."""
    if findings:
        return f"<h4>Gates</h4>{gate_list([gate_row(f) for f in findings])}"
    parity = exported.parity
    if not parity:
        return '<p class="k-note">No gate has looked at this export. Check it before you use it.</p>'
    passed = [{"gate": g, "passed": True, "text": _carried(g, parity.get(g))} for g in parity.get("passed", ())]
    skipped = [{"gate": g, "passed": None, "text": "was not run"} for g in parity.get("skipped", ())]
    order = {gate: k for k, gate in enumerate(GATES)}
    rows = [gate_row(f) for f in sorted([*passed, *skipped], key=lambda f: order.get(f["gate"], len(order)))]
    return f"<h4>Gates, when it was exported</h4>{gate_list(rows)}"


def _carried(gate: str, figures: Mapping | None) -> str:
    """A gate's figures as export.json carries them, in a sentence."""
    if gate == "speed":  # of one machine, so no file carries it
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
        mine = figures["file"]
        return (
            f"{mine['pictures']} pictures against torch in fp32: PSNR {mine['psnr_mean']} dB, "
            f"SSIM {mine['ssim_mean']}, {mine['verdicts_differ']} verdicts differ."
        )
    return ""


def table(everything: Sequence[Found], chosen: str) -> str:
    """Every export of this machine, the newest first; a click shows it."""
    rows = "".join(_row(found, chosen) for found in everything)
    heads = "".join(f'<th scope="col">{h}</th>' for h in ("export", "target", "weights", "size", "gates", "made"))
    return (
        f'<section class="k-panel" aria-labelledby="kx-all"><h3 id="kx-all">All exports</h3><div class="kd-scroll" '
        f'role="region" aria-label="All exports" tabindex="0"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _row(found: Found, chosen: str) -> str:
    name, exported, is_chosen = escape(found.name), found.exported, str(found.name == chosen).lower()
    made = datetime.datetime.fromtimestamp(found.made).strftime("%d %b %H:%M")
    target, weights, gates = "unreadable", "", ""
    if exported:
        target, weights = exported.target, DTYPES.get(exported.dtype, exported.dtype)
        passed = len(exported.parity.get("passed", ()))
        gates = f"{passed} passed" if passed else "none run"
    return (
        f'<tr data-chosen="{is_chosen}"><th scope="row"><button type="button" class="kd-choose" data-run="{name}" '
        f'aria-pressed="{is_chosen}">{name}</button><small>{escape(exported.title) if exported else ""}</small></th>'
        f"<td>{escape(target)}</td><td>{escape(weights)}</td><td>{size(found.bytes)}</td><td>{gates}</td>"
        f"<td>{made}</td></tr>"
    )


def to_copy(lines: Sequence[Line]) -> str:
    """Lines with a button each that copies them."""
    blocks = []
    for line in lines:
        title, note = escape(line.title), f"<p>{escape(line.note)}</p>" if line.note else ""
        button = f'<button type="button" class="kx-copy" aria-label="Copy: {title}">Copy</button>' if line.text else ""
        code = f'<pre tabindex="0"><code>{escape(line.text)}</code></pre>' if line.text else ""
        blocks.append(f'<figure class="kx-line"><figcaption><b>{title}</b>{button}</figcaption>{code}{note}</figure>')
    return "".join(blocks)


def log(job: Job | None) -> str:
    """The last lines that the process printed."""
    if job is None:
        return '<p class="kd-hint">Nothing: no export was begun here.</p>'
    return f'<pre class="kd-log" tabindex="0">{escape(chr(10).join(job.log))}</pre>'
