"""Student module -> teacher module, from two specs: one table for surgery, distillation pairs and comparison.

The encoder keeps a stage's first residual blocks. The decoder keeps its first ones and the very last, because
only that one takes the skip connection from the stage's input, which the student still has: its shapes fit no
other. Transformer block j of the student is block j of the teacher, the paper's SA-bottom (KOALA, table 11c).
"""

from koala.specs import STAGES, UNetSpec

_ENDS = ("conv_in", "time_embedding", "add_embedding", "conv_norm_out", "conv_out")


def _kept(stage: str, student: int, teacher: int) -> list[int]:
    """Which of the teacher's residual blocks of a stage the student keeps, in the student's order."""
    if not stage.startswith("UP"):
        return list(range(student))
    return [*range(student - 1), teacher - 1]


def layer_map(student: UNetSpec, teacher: UNetSpec) -> dict[str, str]:
    """Module path of the student -> module path of the teacher; longer paths first win as prefixes of a key.

    Raises ValueError where the student has something that the teacher lacks.
    """
    table = {name: name for name in _ENDS}
    theirs = teacher.depths()
    for stage, depths in student.depths().items():
        block = STAGES[stage]
        if stage not in theirs:
            raise ValueError(f"{student.name} has a stage {stage} that its teacher {teacher.name} lacks")
        if len(depths) > len(theirs[stage]):
            raise ValueError(
                f"{stage}: {student.name} has {len(depths)} residual blocks, {teacher.name} only {len(theirs[stage])}"
            )
        kept = _kept(stage, len(depths), len(theirs[stage]))
        for mine, (depth, its) in enumerate(zip(depths, kept, strict=True)):
            if depth > theirs[stage][its]:
                raise ValueError(
                    f"{stage}: {student.name} has {depth} transformer blocks, {teacher.name} only {theirs[stage][its]}"
                )
            if stage != "MID":  # MID's two residual blocks stand around its one transformer
                table[f"{block}.resnets.{mine}"] = f"{block}.resnets.{its}"
            if depth:
                table[f"{block}.attentions.{mine}"] = f"{block}.attentions.{its}"
        if stage == "MID":
            table |= {f"{block}.resnets.{i}": f"{block}.resnets.{i}" for i in (0, 1)}
        for sampler in ("downsamplers", "upsamplers"):
            table[f"{block}.{sampler}"] = f"{block}.{sampler}"
    return table


def teacher_key(key: str, table: dict[str, str]) -> str | None:
    """Where a student's parameter or module `key` comes from in the teacher; None when the map has no source."""
    for mine, its in table.items():
        if key == mine or key.startswith(mine + "."):
            return its + key[len(mine) :]
    return None


def self_attention_pairs(student: UNetSpec, teacher: UNetSpec) -> list[tuple[str, str, str]]:
    """(stage, student's attn1, teacher's attn1) for every self-attention layer of the student, in forward order."""
    table = layer_map(student, teacher)
    return [(stage, path, teacher_key(path, table)) for stage, path in student.self_attentions()]
