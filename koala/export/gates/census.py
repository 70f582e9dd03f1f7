"""How large activations get on a real run: a CPU computes fp16 files in fp32 and hides what overflows on a GPU."""

from koala.export.folder import census
from koala.export.gates.case import Case, Finding
from koala.export.islands import HALF_MAX, islands

WARN = 8192.0
WORST = 10


def range_census(case: Case) -> Finding:
    """The ten largest activations of the U-Net; beyond fp16's range they must lie in a module that stays in fp32."""
    if case.exported.stored_dtype != "float16":
        return Finding(gate="range", passed=None, text="the file computes in fp32, which nothing here overflows")
    if case.large:
        return Finding(
            gate="range",
            passed=None,
            text="a run of this size takes many minutes on a CPU; do it with --thorough, or on a GPU",
        )
    largest = census(case.job)
    worst = dict(sorted(largest.items(), key=lambda item: -item[1])[:WORST])
    name, peak = next(iter(worst.items()))
    kept = case.exported.islands
    bare = [n for n in islands(largest) if not any(n == k or n.startswith(f"{k}.") for k in kept)]
    words = f"{len(largest)} modules over a whole run, at most {peak:,.0f} ({name})"
    if kept:
        words += f"; {', '.join(kept)} in fp32"
    if bare:
        words += f": beyond fp16's range, {HALF_MAX:,.0f}, in {', '.join(bare)}"
    elif WARN < peak <= HALF_MAX:
        words += f": within a factor of {HALF_MAX / peak:.0f} of fp16's range"
    figures = {
        "modules": len(largest),
        "worst": {n: float(f"{v:.3g}") for n, v in worst.items()},
        "islands": list(kept),
    }
    return Finding(gate="range", passed=not bare, text=words, figures=figures)
