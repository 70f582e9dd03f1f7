"""What the tabs show of models, times and verdicts, as HTML; the markup is in widgets.html."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from koala.models.cards import ModelCard
from koala.models.registry import find
from koala.shapes.captions import EXAMPLES
from koala.ui.html import macros
from koala.ui.messages import page_words
from koala.words import duration, gigabytes, settings_text

if TYPE_CHECKING:
    from koala.hardware.torch_build import Advice
    from koala.ui.loader import ModelState


_STATES = {"waiting": "waiting", "loading": "loading", "ready": "ready", "needs": "not ready"}
_HTML = macros("widgets.html", words=_STATES, gigabytes=gigabytes, page_words=page_words)


def chips() -> str:
    """The example prompts as buttons."""
    return _HTML.chips(EXAMPLES)


def bounds(text: str) -> str:
    """The largest values that can be asked for, below the fields that take them."""
    return _HTML.bounds(text)


def problem(text: str) -> str:
    """One line that says why something cannot be done."""
    return _HTML.problem(text)


def header() -> str:
    """The app's name and purpose, above the tabs."""
    return _HTML.header()


def states(models: Sequence["ModelState"], note: str, advice: "Advice | None" = None) -> str:
    """The state of every chosen model, a note, and why torch does not use this machine's GPU."""
    return _HTML.states(dict.fromkeys(models), note, advice)


def _time(entry: dict, title: str, scale: float) -> dict:
    """One model's settings and times: its bars as a percentage of `scale` ms, its numbers as (part, name, value)."""
    timing, memory = entry["timing"], entry["timing"]["peak_memory_bytes"]
    unet, calls = sum(timing["unet_ms"]), timing["unet_calls"]
    parts = {"text": timing["text_ms"], "unet": unet, "vae": timing["vae_ms"]}
    numbers = [
        ("text", "text", duration(timing["text_ms"])),
        ("unet", "U-Net", f"{calls} calls × {unet / calls:.1f} ms = {duration(unet)}"),
        ("vae", "VAE", duration(timing["vae_ms"])),
        *([("", "moving parts, not in the total", duration(timing["swap_ms"]))] if timing["swap_ms"] >= 1 else []),
        ("", "peak memory", f"{memory / 1e6:,.0f} MB" if memory else "not measured"),
        ("", "parameters", f"{entry['parameters']:,}"),
        *([("", "LoRA on", entry["lora"])] if entry["lora"] else []),
    ]
    return {
        "title": title,
        "settings": _settings(entry),
        "total": duration(timing["total_ms"]),
        "bars": {part: f"{100 * ms / scale:.2f}" for part, ms in parts.items()},
        "numbers": numbers,
    }


def _settings(entry: dict) -> str:
    """The settings that decide how often one model's run called its U-Net."""
    asked = entry["request"]
    return settings_text(asked["steps"], asked["guidance"], entry["timing"]["unet_calls"])


def _speedup(one: dict, entry: dict, first: dict, title: str) -> dict:
    """One model against the first: the measured factors, and the times, calls and settings behind them."""
    calls, before = entry["timing"]["unet_calls"], first["timing"]["unet_calls"]
    return {
        **{factor: f"{one[factor]:.2f}" for factor in ("total", "per_call", "calls", "unet")},
        "title": title,
        "took": duration(entry["timing"]["total_ms"]),
        "instead": duration(first["timing"]["total_ms"]),
        "fewer": None if calls == before else f"{calls} instead of {before}",
    }


def timing(comparison: dict, card: Callable[[str], ModelCard] = find) -> str:
    """Where the time went, with every model on one scale, and what the speed-up consists of.

    `card` gives a model's card by its name.
    """
    entries, speedup = comparison["models"], comparison["speedup"]
    scale = max(sum(e["timing"]["unet_ms"]) + e["timing"]["text_ms"] + e["timing"]["vae_ms"] for e in entries)
    return _HTML.timing(
        models=[_time(entry, card(entry["model"]).title, scale) for entry in entries],
        baseline=card(speedup["baseline"]).title,
        speedups=[
            _speedup(one, entry, entries[0], card(one["model"]).title)
            for one, entry in zip(speedup["models"], entries[1:], strict=True)
        ],
        device=comparison["device"],
        tiny=any(card(entry["model"]).embedded for entry in entries),
        memory_plan=entries[0]["plan"],
    )


def _score(claims: list[dict] | None) -> str:
    if claims is None:
        return "no verdict"
    held = sum(c["holds"] for c in claims)
    return f"all {held} hold" if held == len(claims) else f"{held} of {len(claims)} hold"


def _verdict(models: Sequence[list[dict] | None]) -> dict:
    """One picture's scores by model, and its rows: the text of a claim -> that claim by model, None if not read."""
    by_text = [{c["claim"]: c for c in claims or ()} for claims in models]
    texts = dict.fromkeys(text for claims in by_text for text in claims)
    return {
        "scores": [_score(claims) for claims in models],
        "rows": {text: [claims.get(text) for claims in by_text] for text in texts},
    }


def verdicts(
    titles: Sequence[str],
    pictures: Sequence[Sequence[list[dict] | None]],
    no_verdict: str | None,
    not_asked: Sequence[str] = (),
) -> str:
    """The judge's verdict: for each picture a table with a row per claim and a column per model.

    `pictures[k][m]` holds the claims of picture k by model m; `no_verdict` says why, if no model has any, and
    `not_asked` names the claims about words that the models did not read.
    """
    if all(claims is None for claims in pictures[0]):
        return _HTML.no_verdict(no_verdict)
    return _HTML.verdicts(titles, [_verdict(models) for models in pictures], not_asked)
