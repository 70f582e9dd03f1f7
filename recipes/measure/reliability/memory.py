"""What the server keeps of each session once it keeps as many as it may, and a page among a flood of sessions."""

from recipes.measure.reliability.running import App
from recipes.measure.reliability.trial import Trial
from recipes.measure.sessions import SETTLED, capture, generation, slope

EACH = 0.05  # MB of a session at most


def per_session(app: App, generations: int, captures: int) -> Trial:
    """Memory over requests, each in a session of its own."""
    found = {
        "generation": slope(app.process.pid, lambda: generation(app.url), generations),
        "capture": slope(app.process.pid, lambda: capture(app.url), captures),
    }
    failures = tuple(f"a {name} adds {s.each_mb:.3f} MB" for name, s in found.items() if s.each_mb > EACH)
    return Trial(
        what=f"{generations} generations and {captures} captures, each in a session of its own, after {SETTLED} of "
        "each: the server keeps as many sessions as it may, and its heap has settled",
        tried=generations + captures,
        survived=0 if failures else generations + captures,
        figures={f"memory added by a {name}, MB": round(s.each_mb, 4) for name, s in found.items()}
        | {f"by the first {SETTLED} {name}s, MB": round(s.warm_up_mb, 1) for name, s in found.items()},
        failures=failures,
    )
