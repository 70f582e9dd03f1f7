"""What one attack on the app came to, in numbers that a page can show."""

from collections.abc import Mapping
from dataclasses import dataclass, field

SHOWN = 10  # failures that a report quotes; the rest are counted


@dataclass(frozen=True, kw_only=True)
class Trial:
    """`tried` attempts, of which `survived` ended as promised; `failures` says how the others ended."""

    what: str  # one sentence: what was tried
    tried: int
    survived: int
    figures: Mapping[str, object] = field(default_factory=dict)
    failures: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether nothing failed."""
        return self.survived == self.tried and not self.failures

    def to_dict(self) -> dict:
        """As the report has it."""
        return {
            "what": self.what,
            "tried": self.tried,
            "survived": self.survived,
            "figures": dict(self.figures),
            "failures": list(self.failures[:SHOWN]),
        }
