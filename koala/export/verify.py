"""The gates that every export must pass before it gets its name, and the command `verify`."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import torch

from koala.errors import UserError
from koala.export.gates.case import Case, Finding, open_case
from koala.export.gates.numbers import Shape, inputs, numbers, onnx_call, parts, torch_call
from koala.export.gates.pictures import pictures
from koala.export.gates.structure import range_census, structure
from koala.export.reporting import ProgressReporter, add_depth, add_progress
from koala.files.outputs import check_file, new_file
from koala.hardware.device import give_back
from koala.hardware.timing import device_name

ROUNDS = 12
WARM = 2


def speed(case: Case) -> Finding:
    """Never fails, because speed depends on the machine. Times are medians over alternating rounds."""
    if case.large:
        return Finding(
            gate="speed", passed=None, text="a step of this size takes many seconds on a CPU; see --thorough"
        )
    size = case.exported.defaults
    shape = Shape(width=int(size["width"]), height=int(size["height"]), batch=2, tokens=77, timestep=500.0)
    given = inputs(case, shape)
    runners = {"torch": torch_call(case.source("unet", "float32")), "onnx": onnx_call(case.file("unet"))}
    took: dict[str, list[float]] = {name: [] for name in runners}
    for round_ in range(WARM + ROUNDS):
        for name, call in runners.items():
            begun = time.perf_counter()
            call(given)
            if round_ >= WARM:
                took[name].append((time.perf_counter() - begun) * 1000)
    ms = {name: median(each) for name, each in took.items()}
    ratio = ms["torch"] / ms["onnx"]
    threads = torch.get_num_threads()
    return Finding(
        gate="speed",
        passed=True,
        text=f"one guided step at {shape.width}x{shape.height} px, {threads} CPU thread{'s' * (threads > 1)}: "
        f"{ratio:.2f}x eager torch's pace in fp32 ({ms['onnx']:.0f} against {ms['torch']:.0f} ms)",
        figures={"ratio": round(ratio, 2), "ms": {n: round(v, 1) for n, v in ms.items()}, "threads": threads},
    )


HELP = "check an export against torch: structure, numbers, range, pictures, speed"
GATES: dict[str, Callable[[Case], Finding]] = {
    "structure": structure,
    "numbers": numbers,
    "parts": parts,
    "range": range_census,
    "pictures": pictures,
    "speed": speed,
}


class GateError(RuntimeError):
    """An export failed a gate; the message says which, and nothing was written."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The gates' findings. `passed` is true if none failed; `skipped` names those that were not run."""

    model: str
    target: str
    dtype: str
    findings: tuple[Finding, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    machine: str = ""

    @property
    def passed(self) -> bool:
        """Whether no gate failed."""
        return all(f.passed is not False for f in self.findings)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Gates that were not run."""
        return tuple(f.gate for f in self.findings if f.passed is None)

    def lines(self) -> list[str]:
        """As text."""
        return [finding.line() for finding in self.findings]

    def to_dict(self) -> dict:
        """Every field, for the report's file and `--json`."""
        return asdict(self) | {"passed": self.passed, "skipped": self.skipped}

    def parity(self) -> dict[str, object]:
        """The figures stored in the file: the worst of each gate, without times, so that they are reproducible."""
        figures = {
            f.gate: f.figures.get("worst", f.figures)
            for f in self.findings
            if f.gate not in ("structure", "speed") and f.passed
        }
        return {"passed": [f.gate for f in self.findings if f.passed], "skipped": list(self.skipped), **figures}


def verify(
    folder: Path,
    *,
    model: str | None = None,
    lora: Path | None = None,
    prompts: int = 8,
    thorough: bool = False,
    on_finding: Callable[[Finding], None] | None = None,
    hashes: bool = True,
) -> Report:
    """Run every gate on an exported folder; `hashes` also checks the files against the manifest.

    Raises UserError if the folder is not an export, its files are not those of the manifest, or its model is not
    on this machine.
    """
    case = open_case(folder, model=model, lora=lora, prompts=prompts, thorough=thorough)
    if hashes:
        case.exported.check(folder)
    findings, seconds = [], {}
    for name, gate in GATES.items():
        give_back()
        begun = time.perf_counter()
        try:
            finding = gate(case)
        except UserError as error:
            finding = Finding(gate=name, passed=False, text=str(error))
        findings.append(finding)
        seconds[name] = round(time.perf_counter() - begun, 1)
        if on_finding:
            on_finding(finding)
        if finding.passed is False:
            break  # the others would only fail too
    return Report(
        model=case.exported.model,
        target=case.exported.target,
        dtype=case.exported.dtype,
        findings=tuple(findings),
        seconds=seconds,
        machine=device_name(torch.device("cpu")),
    )


def gated(folder: Path, **settings) -> dict[str, object]:
    """The figures of a folder that passes; GateError for one that does not."""
    report = verify(folder, hashes=False, **settings)
    if not report.passed:
        failed = next(f for f in report.findings if f.passed is False)
        raise GateError(f"the export failed the gate {failed.gate!r}, and nothing was written: {failed.text}")
    return report.parity()


def add(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="an export")
    parser.add_argument("--model", metavar="MODEL", help="the model that was exported, if that was a folder")
    parser.add_argument("--lora", type=Path, metavar="FILE.safetensors", help="the LoRA that was fused into it, if any")
    add_depth(parser)
    add_progress(parser)
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="also write the report to this file")


def run(args: argparse.Namespace) -> int:
    """Prints every gate's finding and the verdict, or JSON; exit status 0, or 1 where a gate fails."""
    reporter = ProgressReporter.of(args)
    if args.out:
        check_file(args.out)
    report = verify(
        args.folder,
        model=args.model,
        lora=args.lora,
        prompts=args.pictures,
        thorough=args.thorough,
        on_finding=lambda finding: reporter.finding(finding, None if args.json else sys.stdout),
    )
    if args.out:
        with new_file(args.out) as file:
            file.write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    if args.json:
        print(json.dumps(report.to_dict(), indent=1))
    elif report.passed:
        print(
            f"{report.model} for {report.target} passes"
            + (f"; not run: {', '.join(report.skipped)}" if report.skipped else "")
        )
    else:
        print(f"{report.model} for {report.target} FAILS", file=sys.stderr)
    return 0 if report.passed else 1
