"""What became of a LoRA on a student: layers kept, moved and dropped, as numbers and as text."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LoraReport:
    """What became of a LoRA's U-Net layers, by the teacher's module paths."""

    teacher: str
    student: str
    kept: tuple[str, ...]  # same module path in the student
    moved: dict[str, str]  # teacher's path -> the student's, with another number
    dropped: tuple[str, ...]  # the student lacks their block
    text_keys: int  # of the text encoders, which a request does not change
    skipped: tuple[str, ...]  # other keys that change nothing: new words, scales without factors, biases of no layer
    coverage: float  # share of the LoRA's layers that the student has
    reach: float  # share of the student's layers that are adapted, among those of the same kinds
    stages: dict[str, tuple[int, int]]  # stage -> layers that the student has, layers of the LoRA
    notes: tuple[str, ...] = ()  # what was assumed, as sentences

    @property
    def summary(self) -> str:
        """One clause."""
        survivors = len(self.kept) + len(self.moved)
        text = f"{survivors:,} of its {survivors + len(self.dropped):,} U-Net layers ({self.coverage:.0%})"
        text += f", {self.text_keys:,} text-encoder tensors not used" if self.text_keys else ""
        others = f"{len(self.skipped):,} other tensor" + "s" * (len(self.skipped) != 1)
        text += f", {others} skipped" if self.skipped else ""
        return "; ".join([text, *self.notes])

    def lines(self) -> list[str]:
        """As text, for a terminal."""
        total = len(self.kept) + len(self.moved) + len(self.dropped)
        return [
            f"{total:,} layers of {self.teacher}: {len(self.kept):,} kept, {len(self.moved):,} moved to another "
            f"number, {len(self.dropped):,} dropped because {self.student} lacks their block",
            ", ".join(f"{stage} {kept} of {all_}" for stage, (kept, all_) in self.stages.items()),
            f"coverage: {self.coverage:.1%} of the LoRA; it adapts {self.reach:.1%} of the student's layers of its "
            f"kinds; {self.text_keys:,} keys of the text encoders are as before",
            *([f"skipped, as they change no layer: {', '.join(self.skipped[:5])}"] if self.skipped else []),
            *self.notes,
        ]
