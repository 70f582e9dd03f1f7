"""What the Architecture tab shows of a spec, as JSON: parts, stages, sums, controls. Arithmetic on specs alone."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from koala.errors import UserError
from koala.hardware.latency import HARDWARE, Prediction, predict
from koala.hardware.memory_plan import Plan, plan
from koala.unet.costs import LATENT_FACTOR, Block, blocks, by_stage
from koala.unet.layer_map import layer_map, renamed
from koala.unet.specs import SDXL, TINY_SDXL, UNetSpec, student
from koala.words import duration, flops_text, gigabytes, parameters_text

TEACHERS = {"sdxl": SDXL, "tiny-sdxl": TINY_SDXL}
WIDTHS = {"sdxl": "Full size", "tiny-sdxl": "Tiny, embedded"}
SIDES = {"sdxl": (512, 768, 1024), "tiny-sdxl": (128, 192, 256)}  # px of a picture
TITLES = {
    "sdxl": "SDXL",
    "koala-1b": "KOALA-1B",
    "koala-700m": "KOALA-700M",
    "bk-sdxl": "BK-SDXL",
    "ssd-1b": "SSD-1B",
    "segmind-vega": "Vega",
}
BEGIN = {"spec": "koala-700m", "teacher": "sdxl", "side": 1024, "gpu": "rtx-4090"}
STEPS = 25  # of a predicted picture, with guidance
DEEP = {"DW-2": 2, "DW-3": 10, "UP-1": 10, "UP-2": 2}  # stages whose depth can be set, up to the teacher's
MID_CHOICES = {"attention": "with attention", "alone": "one residual block", "absent": "absent"}
_KINDS = {
    "resnet": "residual block",
    "attention": "transformer",
    "downsampler": "downsampler: halves the sides",
    "upsampler": "upsampler: doubles the sides",
}
_ENDS = {
    "time_embedding": "Time embedding",
    "add_embedding": "Pooled text and size embedding",
    "conv_in": "First convolution",
    "conv_norm_out": "Last normalisation",
    "conv_out": "Last convolution",
}


# --- specs


def read(spec: str, teacher: str) -> UNetSpec:
    """The spec of these depths at this teacher's widths; UserError where the teacher is not as deep."""
    if teacher not in TEACHERS:
        raise UserError(f"unknown widths {teacher[:40]!r}; choose {' or '.join(TEACHERS)}")
    depths = student(spec[:200], TEACHERS[teacher])
    layer_map(depths, TEACHERS[teacher])
    return depths


def name_of(spec: UNetSpec) -> str | None:
    """The name among TITLES of these depths, at any widths; None where they have none."""
    full = student(spec.notation, SDXL)
    return full.name if full.name in TITLES else None


def change(spec: UNetSpec, what: Mapping) -> UNetSpec:
    """The spec after controls were moved: "pairs", "mid", or a stage's depth by its name. Other keys are ignored."""
    down, mid, up = list(spec.down_depths), spec.mid_depth, list(spec.up_depths)
    if "pairs" in what:
        if what["pairs"] not in (1, 2):
            raise UserError("an encoder stage has 1 or 2 residual blocks")
        pairs = int(what["pairs"])
        down = [(d[0],) * pairs for d in down]
        up = [(*(u[:1] * pairs), u[-1]) for u in up]
    for stage, deepest in DEEP.items():
        if stage in what:
            if what[stage] not in range(deepest + 1):
                raise UserError(f"{stage} has 0 to {deepest} transformer blocks, not {str(what[stage])[:20]!r}")
            stages, at = (down if stage.startswith("DW") else up), int(stage[-1]) - 1
            stages[at] = (int(what[stage]),) * len(stages[at])
    if "mid" in what:
        choices = {"attention": down[2][0] or up[0][0] or 1, "alone": 0, "absent": None}
        if str(what["mid"]) not in choices:
            raise UserError(f"MID is {', '.join(MID_CHOICES)}, not {str(what['mid'])[:20]!r}")
        mid = choices[what["mid"]]
    if mid and down[2][0]:
        mid = down[2][0]  # diffusers has one setting for both
    moved = replace(spec, name="custom", down_depths=tuple(down), mid_depth=mid, up_depths=tuple(up))
    return student(moved.notation, spec)


# --- the values of the page


def _title(block: Block, of: int) -> str:
    if block.stage in ("in", "out"):
        return _ENDS[block.path]
    if block.kind in ("downsampler", "upsampler"):
        return f"{block.stage}: {_KINDS[block.kind]}"
    number = int(block.path.rpartition(".")[2]) + 1
    return f"{block.stage}: {_KINDS[block.kind]} {number} of {of}" if of > 1 else f"{block.stage}: {_KINDS[block.kind]}"


def _grid(tokens: int, side: int) -> str:
    edge = side // LATENT_FACTOR
    while edge * edge > tokens:
        edge //= 2
    return f"{edge} × {edge}"


def _source(own: Block, teachers: Block) -> str:
    text = f"the teacher's {teachers.path}"
    if own.depth and own.depth < teachers.depth:
        text += f", its first {own.depth} of {teachers.depth} blocks"
    return text if own.path == teachers.path else f"{text}; here it is {own.path}"


def _part(block: Block, kept: Block | None, of: int, side: int) -> dict:
    """One part of the drawing: its figures, and the source of its weights."""
    partly = kept is not None and kept.depth < block.depth

    def of_whole(show: Callable[[int], str], own: int | None, whole: int) -> str:
        return f"{show(own)} of {show(whole)}" if partly else show(whole)

    parameters = of_whole(parameters_text, kept and kept.parameters, block.parameters)
    facts = [
        ["Parameters", parameters],
        ["FLOPs per call", of_whole(flops_text, kept and kept.flops, block.flops)],
        ["Tokens", f"{block.tokens:,} ({_grid(block.tokens, side)}), {block.channels:,} channels each"],
    ]
    if block.kind == "attention":
        depth = f"{kept.depth} of {block.depth}" if partly else str(block.depth)
        facts.append(["Blocks", f"{depth}: self-attention, cross-attention and feed-forward each"])
    facts.append(["Weights", _source(kept, block) if kept else f"not in this student: saves {parameters} parameters"])
    title = _title(block, of)
    state = "removed" if kept is None else "partly kept" if partly else "kept"
    spoken = "; ".join(f"{name} {value}" for name, value in facts)
    return {
        "title": title,
        "state": state,
        "depth": kept.depth if kept else 0,
        "facts": facts,
        "label": f"{title}, {state}. {spoken}",
    }


def _parts(spec: UNetSpec, teacher: UNetSpec, side: int) -> dict[str, dict]:
    table = layer_map(spec, teacher)
    own = {renamed(b.path, table): b for b in blocks(spec, width=side, height=side)}
    theirs = list(blocks(teacher, width=side, height=side))
    parts = {}
    for block in theirs:
        family = block.path.rpartition(".")[0]
        of = sum(b.path.rpartition(".")[0] == family for b in theirs)
        parts[block.path] = _part(block, own.get(block.path), of, side)
    return parts


def _stages(spec: UNetSpec, teacher: UNetSpec, side: int) -> dict[str, dict]:
    """Stage -> sums of student and teacher and, for the bars, both in percent of the teacher's largest stage."""
    own_sums = by_stage(spec, width=side, height=side)
    theirs = by_stage(teacher, width=side, height=side)
    largest = [max(sums[k] for sums in theirs.values()) for k in (0, 1)]
    tokens = {b.stage: b for b in blocks(teacher, width=side, height=side) if b.kind in ("resnet", "convolution")}
    depths = spec.depths()
    stages = {}
    for stage, whole in theirs.items():
        own = own_sums.get(stage, (0, 0))
        stages[stage] = {
            "note": f"{_grid(tokens[stage].tokens, side)} · {tokens[stage].channels:,} channels",
            "parameters": parameters_text(own[0]),
            "parameters_of": parameters_text(whole[0]),
            "flops": flops_text(own[1]),
            "flops_of": flops_text(whole[1]),
            "bars": [round(100 * value / top, 2) for value, top in zip((*own, *whole), largest * 2, strict=True)],
            "depths": list(depths.get(stage, ())),
            "most": max(teacher.depths().get(stage, (0,))),
        }
    return stages


def _controls(spec: UNetSpec) -> dict:
    mid = "absent" if spec.mid_depth is None else "attention" if spec.mid_depth else "alone"
    return {"pairs": len(spec.down_depths[0]), "mid": mid}


def _plan_text(best: Plan) -> str:
    """What a plan offloads, briefly."""
    given = []
    if best.text != "resident":
        given.append("text encoders leave the card")
    if best.unet != "resident":
        given.append("the U-Net, too")
    if best.vae_tile:
        given.append("decoding in tiles")
    return "; ".join(given) or "everything stays on the device"


def predictions(spec: UNetSpec, teacher: UNetSpec, side: int, gpu: str) -> dict:
    """Predicted time and memory of one picture on this card (koala.hardware: latency, memory_plan)."""
    card = HARDWARE[gpu]
    size = {"width": side, "height": side}

    def time(which: UNetSpec) -> Prediction:
        return predict(which, card, steps=STEPS, guided=True, **size)

    own, teachers = time(spec), time(teacher)
    device = "cuda" if card.memory_bytes else "cpu"
    times = {
        "gpu": gpu,
        "time": duration(own.total_ms),
        "time_note": f"{STEPS} guided steps of {duration(own.unet_ms[0])}"
        + ("" if spec.notation == teacher.notation else f"; the teacher {duration(teachers.total_ms)}"),
    }
    try:
        best = plan(spec, device=device, vram_bytes=card.memory_bytes, **size)
    except UserError as error:
        return times | {"memory": "too little", "memory_note": str(error)}
    return times | {"memory": gigabytes(best.predicted_peak_bytes), "memory_note": f"at its peak; {_plan_text(best)}"}


def _blocks(spec: UNetSpec) -> int:
    return sum(sum(depths) for depths in spec.depths().values())


def _resnets(spec: UNetSpec) -> int:
    """Residual blocks. MID has two around its transformer, or one where it has no transformer."""
    depths = spec.depths()
    return sum(map(len, depths.values())) + bool(spec.mid_depth)


def command(spec: UNetSpec) -> str:
    """The command that cuts these depths out of SDXL."""
    name = name_of(spec)
    return f"python -m koala compress --teacher sdxl-base --spec {name or spec.notation} --out {name or 'my-koala'}"


def view(spec: UNetSpec, teacher: str, side: int, gpu: str) -> dict:
    """All that the tab shows of a spec."""
    whole = TEACHERS[teacher]
    own_stages, teacher_stages = by_stage(spec, width=side, height=side), by_stage(whole, width=side, height=side)
    (parameters, flops), (full, full_flops) = (
        [sum(s[k] for s in sums.values()) for k in (0, 1)] for sums in (own_stages, teacher_stages)
    )
    named = name_of(spec)
    title = TITLES[named] if named else "Your own"
    complete = spec.notation == whole.notation
    return predictions(spec, whole, side, gpu) | {
        "title": title if teacher == "sdxl" else f"Tiny {title}",
        "kept": f"{_blocks(spec)} of {_blocks(whole)} transformer blocks, "
        f"{_resnets(spec)} of {_resnets(whole)} residual",
        "named": named,
        "spec": spec.notation,
        "teacher": teacher,
        "side": side,
        "sides": list(SIDES[teacher]),
        "parts": _parts(spec, whole, side),
        "stages": _stages(spec, whole, side),
        "controls": _controls(spec),
        "parameters": f"{parameters:,}",
        "parameters_note": "the teacher" if complete else f"{parameters / full:.0%} of the teacher's {full:,}",
        "flops": flops_text(flops),
        "flops_note": f"per call at {side} px" + ("" if complete else f", {flops / full_flops:.0%} of the teacher's"),
        "command": command(spec),
        "complete": complete,
        "summary": f"{title}: {parameters:,} parameters, {flops_text(flops)} per call",
    }
