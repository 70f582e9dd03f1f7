"""Student module -> teacher module, from two specs: one table for surgery, distillation pairs, comparison and LoRAs.

The encoder keeps a stage's first residual blocks. The decoder keeps its first ones and the very last, because
only that one takes the skip connection from the stage's input, which the student still has: its shapes fit no
other. Transformer block j of the student is block j of the teacher, the paper's SA-bottom (KOALA, table 11c).
"""

from koala.errors import UserError
from koala.unet.specs import STAGES, UNetSpec

_ENDS = ("conv_in", "time_embedding", "add_embedding", "conv_norm_out", "conv_out")


def kept_blocks(student: UNetSpec, teacher: UNetSpec) -> dict[str, list[int]]:
    """Stage -> which of the teacher's residual blocks the student keeps, in the student's order.

    Raises UserError where the student has something that the teacher lacks.
    """
    kept, theirs = {}, teacher.depths()
    for stage, depths in student.depths().items():
        if stage not in theirs:
            raise UserError(f"{student.name} has a stage {stage} that its teacher {teacher.name} lacks")
        own_count, teacher_count = len(depths), len(theirs[stage])
        if own_count > teacher_count:
            raise UserError(
                f"{stage}: {student.name} has {own_count} residual blocks, {teacher.name} only {teacher_count}"
            )
        kept[stage] = [*range(own_count - 1), teacher_count - 1] if stage.startswith("UP") else list(range(own_count))
        for depth, teacher_depth in zip(depths, (theirs[stage][block] for block in kept[stage]), strict=True):
            if depth > teacher_depth:
                raise UserError(
                    f"{stage}: {student.name} has {depth} transformer blocks, {teacher.name} only {teacher_depth}"
                )
    return kept


def layer_map(student: UNetSpec, teacher: UNetSpec) -> dict[str, str]:
    """Module path of the student -> module path of the teacher, for `renamed`.

    Raises UserError where the student has something that the teacher lacks.
    """
    table = {name: name for name in _ENDS}
    for stage, kept in kept_blocks(student, teacher).items():
        block = STAGES[stage]
        resnets = (
            range(2 if student.mid_depth else 1) if stage == "MID" else kept
        )  # MID's are before and after its transformer
        table |= {f"{block}.resnets.{number}": f"{block}.resnets.{source}" for number, source in enumerate(resnets)}
        if student.depths()[stage][0]:
            table |= {
                f"{block}.attentions.{number}": f"{block}.attentions.{source}" for number, source in enumerate(kept)
            }
        table |= {f"{block}.{sampler}": f"{block}.{sampler}" for sampler in ("downsamplers", "upsamplers")}
    return table


def renamed(key: str, table: dict[str, str]) -> str | None:
    """A parameter or module `key` with its beginning replaced by the table; None where the table has none of it."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if new := table.get(".".join(parts[:length])):
            return ".".join([new, *parts[length:]])
    return None


def self_attention_pairs(student: UNetSpec, teacher: UNetSpec) -> list[tuple[str, str, str]]:
    """(stage, student's attn1, teacher's attn1) for every self-attention layer of the student, in forward order."""
    table = layer_map(student, teacher)
    return [(stage, path, renamed(path, table)) for stage, path in student.self_attentions()]
