"""What an exported folder holds, read from its files alone: neither its model nor a run is needed."""

import argparse
import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from koala.errors import UserError
from koala.export.gates.operators import unwanted
from koala.export.manifest import PREFIX
from koala.export.targets import target_of
from koala.export.tensors import live_bytes
from koala.models.export_manifest import AGAIN, Component, Exported
from koala.unet.costs import LATENT_FACTOR
from koala.words import size

HELP = "say what an export holds: operators, sizes, inputs, outputs, metadata, and the memory that it will take"
SHOWN = 6  # operators of a component in the text, the most frequent


@dataclass(frozen=True, kw_only=True)
class Part:
    """One ONNX graph. Dimensions are numbers or names; `operators` are by frequency, `metadata` without our prefix."""

    files: dict[str, int]  # path in the folder -> bytes
    dtype: str
    opset: int
    parameters: int
    nodes: int
    operators: dict[str, int]
    inputs: dict[str, tuple]
    outputs: dict[str, tuple]
    metadata: dict[str, object]
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that one size takes: all weights as stored, and the most tensors at once in any part; None if unknown."""

    width: int  # px
    height: int
    batch: int  # samples of a U-Net call: a guided picture is two
    weights_bytes: int
    tensors_bytes: int | None
    busiest: str | None

    @property
    def bytes(self) -> int | None:
        """Both together."""
        return None if self.tensors_bytes is None else self.weights_bytes + self.tensors_bytes


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """An exported folder; `problems` are what its files must not have for their target."""

    model: str
    title: str
    licence: str
    target: str
    dtype: str
    bytes: int  # of all files in the folder
    components: dict[str, Part]
    memory: tuple[Memory, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """Of every component."""
        return tuple(f"{name}: {problem}" for name, part in self.components.items() for problem in part.problems)

    def to_dict(self) -> dict:
        """Every field, for `--json`."""
        memory = [dataclasses.asdict(one) | {"bytes": one.bytes} for one in self.memory]
        return dataclasses.asdict(self) | {"memory": memory, "problems": self.problems}

    def lines(self) -> list[str]:
        """For people."""
        found = [f"{self.title} for {self.target}, {self.dtype}, {self.licence}: {size(self.bytes)}"]
        for name, part in self.components.items():
            sizes = ", ".join(f"{file} {size(count)}" for file, count in part.files.items())
            found.append(f"{name}: {sizes}; {part.dtype}, opset {part.opset}, {part.parameters:,} parameters")
            common = list(part.operators.items())[:SHOWN]
            rest = len(part.operators) - len(common)
            counts = ", ".join(f"{count} {kind}" for kind, count in common)
            found.append(f"  {part.nodes:,} nodes: {counts}" + (f" and {rest} other operators" if rest > 0 else ""))
            for way, values in (("in ", part.inputs), ("out", part.outputs)):
                found += [f"  {way}  {value}  {kind} [{', '.join(map(str, d))}]" for value, (kind, d) in values.items()]
        found += [_memory_line(one) for one in self.memory]
        source = self.components["unet"].metadata.get("source_sha256", {})
        found += [f"made of {file}, SHA-256 {sha256}" for file, sha256 in source.items()]
        return found + [f"PROBLEM  {problem}" for problem in self.problems]


def _memory_line(one: Memory) -> str:
    where = f"{one.width}x{one.height} px, batch {one.batch}"
    if one.tensors_bytes is None:
        return f"{where}: {size(one.weights_bytes)} of weights; what tensors take cannot be told from the file"
    return (
        f"{where}: about {size(one.bytes)} of memory, {size(one.weights_bytes)} of weights and "
        f"{size(one.tensors_bytes)} of tensors in the {one.busiest}"
    )


def inspect(folder: Path) -> Inspection:
    """UserError where the folder is no export, or a file of it is missing, changed or damaged."""
    exported = Exported.read(folder)
    exported.check(folder)
    return Inspection(
        model=exported.model,
        title=exported.title,
        licence=exported.licence,
        target=exported.target,
        dtype=exported.dtype,
        bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        components={name: _part(folder, name, exported, one) for name, one in exported.components.items()},
        memory=tuple(_memory(folder, exported)),
    )


def _part(folder: Path, name: str, exported: Exported, component: Component) -> Part:
    file = folder / name / "model.onnx"
    try:
        onnx.checker.check_model(str(file))  # by path: also above 2 GiB
    except onnx.checker.ValidationError as error:
        raise UserError(f"{file} is no whole ONNX file ({str(error).strip().splitlines()[0]}); {AGAIN}") from error
    model = ir.load(file)
    operators = Counter(node.op_type for node in model.graph)
    target, _ = target_of(exported.target, None)
    return Part(
        files={name: (folder / name).stat().st_size for name in component.files},
        dtype=component.dtype,
        opset=component.opset,
        parameters=component.parameters,
        nodes=operators.total(),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        inputs=dict(component.inputs),
        outputs=dict(component.outputs),
        metadata={key.removeprefix(PREFIX): _value(text) for key, text in sorted(model.metadata_props.items())},
        problems=tuple(unwanted(model, target)),
    )


def _value(text: str) -> object:
    """What a metadata text says: JSON, or itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _memory(folder: Path, exported: Exported) -> list[Memory]:
    """At the smallest, usual and largest size of the export's profile; every part is held in memory all the while."""
    weights = sum((folder / file).stat().st_size for one in exported.components.values() for file in one.files)
    guided = exported.profile["sample"]["opt"][0]
    tokens = exported.profile["encoder_hidden_states"]["opt"][1]
    found = []
    for kind in ("min", "opt", "max"):
        _, _, height, width = exported.profile["sample"][kind]
        latents = {"batch": guided, "sequence": tokens, "height": height, "width": width}
        pixels = latents | {"height": height * LATENT_FACTOR, "width": width * LATENT_FACTOR}
        each = {
            name: live_bytes(folder / name / "model.onnx", sizes | {"batch": guided if name == "unet" else 1})
            for name in exported.components
            for sizes in (pixels if name == "vae_encoder" else latents,)
        }
        known = None not in each.values()
        busiest = max(each, key=each.get) if known else None
        found.append(
            Memory(
                width=width * LATENT_FACTOR,
                height=height * LATENT_FACTOR,
                batch=guided,
                weights_bytes=weights,
                tensors_bytes=each[busiest] if known else None,
                busiest=busiest,
            )
        )
    return found


def add(parser: argparse.ArgumentParser) -> None:
    """The command's one argument."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="an export")


def run(args: argparse.Namespace) -> int:
    """Prints what the folder holds, or JSON; exit status 0, or 1 where its files have what they must not."""
    found = inspect(args.folder)
    print(json.dumps(found.to_dict(), indent=1) if args.json else "\n".join(found.lines()))
    return 1 if found.problems else 0
