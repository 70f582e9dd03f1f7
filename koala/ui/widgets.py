"""Data -> HTML. Pure functions; everything that a visitor or a file could have written goes through html.escape."""

from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

from koala.models.cards import ModelCard
from koala.models.registry import find
from koala.shapes.captions import EXAMPLES
from koala.words import duration

if TYPE_CHECKING:
    from koala.hardware.torch_build import Advice
    from koala.ui.session import ModelState

_STATES = {"waiting": "waiting", "loading": "loading", "ready": "ready", "needs": "not ready"}


def chips() -> str:
    """The example prompts as buttons."""
    rows = []
    for prompt in EXAMPLES:
        held = prompt == EXAMPLES[-1]
        note = " <em>never seen in training</em>" if held else ""
        rows.append(f'<button type="button" data-prompt="{escape(prompt)}">{escape(prompt)}{note}</button>')
    return f'<div class="k-chips" role="group" aria-label="Example prompts">{"".join(rows)}</div>'


def bounds(text: str) -> str:
    """What can be asked for at most, under the fields that ask."""
    return f'<p class="k-bounds">{escape(text)}</p>'


def header() -> str:
    """The app's name and what it is for, above the tabs."""
    return (
        '<header class="k-header"><h1>KOALA</h1>'
        "<p>Stable Diffusion XL and its distilled students on the same noise, honestly timed.</p></header>"
    )


def states(models: Sequence["ModelState"], note: str, advice: "Advice | None" = None) -> str:
    """What every chosen model is doing, the friendly line, and what keeps torch from this machine's card."""
    items = []
    for model in dict.fromkeys(models):
        detail = f': <span class="k-needs">{escape(model.detail)}</span>' if model.detail else ""
        items.append(f'<li data-state="{model.state}"><b>{escape(model.title)}</b> {_STATES[model.state]}{detail}</li>')
    line = f"<p>{escape(note)}</p>" if note else ""
    return f'<div class="k-states"><ul aria-label="Models">{"".join(items)}</ul>{line}{_advice(advice)}</div>'


def _advice(advice: "Advice | None") -> str:
    if advice is None:
        return ""
    said = escape(f"{advice.wrong[:1].upper()}{advice.wrong[1:]}: {advice.remedy}")
    line = f" <code>{escape(advice.command)}</code>" if advice.command else ""
    after = f" ({escape(advice.unless)})" if advice.unless else ""
    return f'<p class="k-advice">{said}{line}{after}</p>'


def _row(entry: dict, title: str, scale: float) -> str:
    timing = entry["timing"]
    unet = sum(timing["unet_ms"])
    parts = {"text": timing["text_ms"], "unet": unet, "vae": timing["vae_ms"]}
    bars = "".join(f'<i class="k-{n}" style="width:{100 * ms / scale:.2f}%"></i>' for n, ms in parts.items())
    memory = timing["peak_memory_bytes"]
    calls = timing["unet_calls"]
    numbers = [
        ("text", "text", duration(timing["text_ms"])),
        ("unet", "U-Net", f"{calls} calls × {unet / calls:.1f} ms = {duration(unet)}"),
        ("vae", "VAE", duration(timing["vae_ms"])),
        *([("", "moving parts, not in the total", duration(timing["swap_ms"]))] if timing["swap_ms"] >= 1 else []),
        ("", "peak memory", f"{memory / 1e6:,.0f} MB" if memory else "not measured"),
        ("", "parameters", f"{entry['parameters']:,}"),
        *([("", "LoRA on", entry["lora"])] if entry["lora"] else []),
    ]
    cells = "".join(
        f"<span>{f'<i class=k-{kind}></i>' if kind else ''}{name} <b>{value}</b></span>"
        for kind, name, value in numbers
    )
    return (
        f'<div class="k-time"><div class="k-line"><strong>{escape(title)}</strong>'
        f'<b class="k-total">{duration(timing["total_ms"])}</b></div>'
        f'<div class="k-bar" aria-hidden="true">{bars}</div><p class="k-numbers">{cells}</p></div>'
    )


def _plan(plan: dict | None) -> str:
    """The memory plan, folded: what was predicted, and every choice with its reason."""
    if plan is None:
        return ""
    room = f" of {plan['budget_bytes'] / 1e9:.1f} GB" if plan["budget_bytes"] else ""
    rows = "".join(
        f"<li><b>{escape(c['what'])}</b>: {escape(c['value'])} <span>({escape(c['reason'])})</span></li>"
        for c in plan["choices"]
    )
    return (
        f'<details class="k-plan"><summary>Memory plan: a peak of {plan["predicted_peak_bytes"] / 1e9:.1f} GB{room} '
        f"predicted</summary><ul>{rows}</ul></details>"
    )


def timing(comparison: dict, card: Callable[[str], ModelCard] = find) -> str:
    """Where the time went, model by model on one scale, and what the speed-up is made of.

    `card` gives a model's card by its name.
    """
    entries = comparison["models"]
    scale = max(sum(e["timing"]["unet_ms"]) + e["timing"]["text_ms"] + e["timing"]["vae_ms"] for e in entries)
    base = card(comparison["speedup"]["baseline"]).title
    sentences = "".join(
        f'<p class="k-speedup"><strong>{s["total"]:.2f}×</strong> <span>{escape(card(s["model"]).title)} '
        f"against {escape(base)}: {s['per_call']:.2f}× per U-Net call · {s['calls']:.2f}× by the number of calls "
        f"= {s['unet']:.2f}× for the U-Net; {s['total']:.2f}× in total, with text and VAE.</span></p>"
        for s in comparison["speedup"]["models"]
    )
    tiny = any(card(e["model"]).embedded for e in entries)
    ratio = " The ratio of the tiny models is their own; the real models have theirs." if tiny else ""
    return (
        f'<section class="k-panel" aria-labelledby="k-timing"><h3 id="k-timing">Time</h3>'
        f"{''.join(_row(e, card(e['model']).title, scale) for e in entries)}{sentences}"
        f'<p class="k-note">On {escape(comparison["device"])}. Warm-up and previews are not counted; guidance above 1 '
        f"calls the U-Net twice per step.{ratio}</p>{_plan(entries[0]['plan'])}</section>"
    )


def _cell(result: dict | None) -> str:
    if result is None:
        return '<td class="k-unread">not read</td>'
    if result["holds"]:
        return '<td class="k-yes"><span aria-hidden="true">✓</span> holds</td>'
    return f'<td class="k-no"><span aria-hidden="true">✗</span> saw {escape(result["seen"])}</td>'


def _score(claims: list[dict] | None) -> str:
    if claims is None:
        return "no verdict"
    held = sum(c["holds"] for c in claims)
    return f"all {held} hold" if held == len(claims) else f"{held} of {len(claims)} hold"


def verdicts(
    titles: Sequence[str],
    pictures: Sequence[Sequence[list[dict] | None]],
    no_verdict: str | None,
    not_asked: Sequence[str] = (),
) -> str:
    """The judge's verdict: for each picture a table with a row per claim and a column per model.

    `pictures[k][m]` holds the claims of picture k by model m; `no_verdict` says why, where no model has any, and
    `not_asked` names the claims about words that the models did not read.
    """
    if all(claims is None for claims in pictures[0]):
        return (
            '<section class="k-panel" aria-labelledby="k-judge"><h3 id="k-judge">Verdict</h3><p class="k-note">'
            f"No verdict: {escape(no_verdict)}.</p></section>"
        )
    tables = []
    for k, models in enumerate(pictures):
        heads = "".join(
            f'<th scope="col">{escape(t)}<small>{_score(c)}</small></th>' for t, c in zip(titles, models, strict=True)
        )
        found = [{c["claim"]: c for c in claims or ()} for claims in models]
        rows = "".join(
            f'<tr><th scope="row">{escape(text)}</th>{"".join(_cell(claims.get(text)) for claims in found)}</tr>'
            for text in dict.fromkeys(text for claims in found for text in claims)
        )
        table = (
            f'<table><thead><tr><th scope="col">The prompt says</th>{heads}</tr></thead><tbody>{rows}</tbody></table>'
        )
        if len(pictures) > 1:
            scores = " · ".join(_score(c) for c in models)
            table = f"<details{' open' if k == 0 else ''}><summary>Picture {k + 1}: {scores}</summary>{table}</details>"
        tables.append(table)
    left_out = (
        f'<p class="k-note k-unread">Not asked of the models, which do not read the end of this prompt: '
        f"{escape(', '.join(not_asked))}.</p>"
        if not_asked
        else ""
    )
    return (
        f'<section class="k-panel" aria-labelledby="k-judge"><h3 id="k-judge">Verdict</h3>{"".join(tables)}{left_out}'
        '<p class="k-note">A program reads each picture back into shapes and checks every claim of the prompt.</p>'
        "</section>"
    )
