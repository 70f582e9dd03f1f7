"""docs/reliability.md, out of the JSON of `python -m recipes.measure.reliability`."""

from collections.abc import Mapping

TESTS = {
    "clients": "tests/safety/test_visitors.py",
    "hostile": "tests/safety/test_endpoints.py",
    "bodies": "tests/safety/test_body_limit.py",
    "memory": "tests/safety/test_sessions.py",
    "pages": "tests/ui/test_page_loads.py",
    "judge": "tests/shapes/test_judge_bounds.py",
    "kills": "tests/distill/test_killed.py",
    "flips": "tests/distill/test_damaged_resume.py",
    "sites": "tests/ui/test_other_pages_browser.py",
}
HEAD = """# Reliability

Attacks on the app, its server and its training runs, and how many of them they survived. One command measured every
row and wrote [this report](measurements/reliability.json), with machine, date and the weights' hashes; another wrote
this page:

```bash
python -m recipes.measure.reliability --out docs/measurements/reliability.json
python -m recipes.measure.reliability --page docs/reliability.md --out docs/measurements/reliability.json
```

The last column names the test that runs a short version of the attack by default. [SECURITY.md](../SECURITY.md) says
what is promised to whom. Times and memory were measured on a shared machine with two cores.

| attack | tried | survived | measured | test |
| --- | --: | --: | --- | --- |
"""


def markdown(report: Mapping) -> str:
    """The page."""
    rows = []
    for name, outcome in report["attacks"].items():
        rows.append(
            f"| {outcome['what']} | {outcome['tried']:,} | {outcome['survived']:,} | {_seen(outcome['figures'])} | "
            f"`{TESTS[name]}` |\n"
        )
    dates = sorted({outcome["date"] for outcome in report["attacks"].values()})
    machines = sorted({outcome["device"] for outcome in report["attacks"].values()})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    failed = [(name, failure) for name, outcome in report["attacks"].items() for failure in outcome["failures"]]
    told = "Nothing failed." if not failed else "\n".join(["What failed:", "", *(f"- {n}: {f}" for n, f in failed)])
    return f"{HEAD}{''.join(rows)}\n{', '.join(machines)}, {when}. {told}\n"


def _seen(figures: Mapping) -> str:
    return "; ".join(f"{name}: {_value(value)}" for name, value in figures.items())


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(part)}" for name, part in value.items())
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
