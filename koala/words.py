"""Numbers and lists as text for people: sizes in powers of ten, times, counts, and words joined to a sentence.

Every message, page and table takes them from here, so that the same number reads the same everywhere.
"""

import math
from collections.abc import Sequence


def megabytes(count: float, digits: int = 1) -> str:
    """Bytes -> 1,234.5 MB."""
    return f"{count / 1e6:,.{digits}f} MB"


def gigabytes(count: float, digits: int = 1) -> str:
    """Bytes -> 5.1 GB."""
    return f"{count / 1e9:,.{digits}f} GB"


def size(count: float, *, mb: int = 1, gb: int = 2, first_gb: float = 1e9) -> str:
    """Bytes -> 83.1 MB, 5.14 GB: with `mb` and `gb` digits, in GB from `first_gb` bytes on."""
    return gigabytes(count, gb) if count >= first_gb else megabytes(count, mb)


def scaled(number: int, units: Sequence[str]) -> str:
    """Three digits or so and the largest unit that fits; each unit is a thousand of the one before."""
    power = min((len(str(number)) - 1) // 3, len(units) - 1)
    value = number / 1000**power
    return f"{value:.{0 if power == 0 else 2 if value < 10 else 1}f} {units[power]}".strip()


def parameters_text(number: int) -> str:
    """782.1 M, 1.16 B."""
    return scaled(number, ("", "k", "M", "B"))


def flops_text(number: int) -> str:
    """2.39 TFLOP."""
    return scaled(number, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"))


def many(count: int, noun: str) -> str:
    """1 picture, 2,000 pictures: for nouns whose plural ends in s."""
    return f"{count:,} {plural(count, noun)}"


def plural(count: int, noun: str) -> str:
    """The noun alone: picture for one, pictures for more."""
    return noun if count == 1 else f"{noun}s"


def listed(items: Sequence[str], last: str = "and") -> str:
    """a; a and b; a, b and c."""
    *before, end = items
    return f"{', '.join(before)} {last} {end}" if before else end


def settings_text(steps: int, guidance: float, calls: int) -> str:
    """25 steps with guidance 2; 4 steps without guidance: `calls` of the U-Net say how many steps called it twice."""
    guided = calls - steps
    if not guided:
        return f"{many(steps, 'step')} without guidance"
    return f"{many(steps, 'step')} with guidance {guidance:g}" + ("" if guided == steps else f" in {guided} of them")


# --- times


def duration(ms: float) -> str:
    """What was measured, in ms -> 840 ms, 1.32 s."""
    return f"{ms / 1000:.2f} s" if ms >= 1000 else f"{ms:.0f} ms"


def span(seconds: float) -> str:
    """How long something runs, in the two largest units: 45 s, 2 min 5 s, 3 h 20 min, 2 d 4 h."""
    s = round(seconds)
    for unit, smaller, length, small in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if s >= length:
            rest = s % length // small
            return f"{s // length} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{s} s"


def clock_time(seconds: float) -> str:
    """Minutes and seconds, as a clock shows them: 1:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def seconds_or_minutes(seconds: float) -> str:
    """An estimate in one unit: 45 s, 3 min."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def about(seconds: float) -> str:
    """A forecast, no finer than it can be: about 4 s, about 20 s, about 3 min."""
    if seconds >= 100:
        return f"about {round(seconds / 60)} min"
    step = 5 if seconds > 10 else 1
    return f"about {step * math.ceil(seconds / step)} s"


def up_to_days(seconds: float) -> str:
    """An estimate in the largest unit of which there are two or more: 50 seconds, 119 minutes, 3 days."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


# --- tables


def seconds_cell(ms: float) -> str:
    """A time in ms -> seconds for a table whose head names the unit: three digits, and no exponent."""
    return f"{ms / 1000:.3g}" if ms < 100_000 else f"{ms / 1000:.0f}"


def gigabytes_cell(count: float | None) -> str:
    """Bytes -> GB for a table whose head names the unit; a dash where there is no number."""
    return "-" if count is None else f"{count / 1e9:.2f}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table in Markdown: the first `left` columns flush left, the others flush right."""
    lines = [head, [*[":--"] * left, *["--:"] * (len(head) - left)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
