"""One export for a command: estimate, progress and findings are reported as they come."""

import argparse
import dataclasses
from pathlib import Path

from koala.export.folder import Job, Lora, export, plan
from koala.export.gates.case import Finding
from koala.export.reporting import ProgressReporter
from koala.export.verify import gated
from koala.models.export_manifest import Exported


def write_export(
    args: argparse.Namespace, model: str, out: Path, reporter: ProgressReporter, *, target: str, dtype: str | None
) -> tuple[Job, list[dict], Exported]:
    """Export to the folder `out`: the job, the gates' findings and the manifest."""
    lora = Lora(file=args.lora, strength=args.lora_strength) if args.lora else None
    job = plan(model, target=target, dtype=dtype, components=args.components, lora=lora)
    if job.lora:
        reporter.lora(job.lora.file.name, job.lora_layers)
    reporter.estimate(f"{job.card.name} for {job.target.name}", job.estimate)
    findings = []

    def tell(finding: Finding) -> None:
        findings.append(dataclasses.asdict(finding))
        reporter.finding(finding)

    def check(folder: Path) -> dict[str, object]:
        return gated(
            folder, model=model, lora=args.lora, prompts=args.pictures, thorough=args.thorough, on_finding=tell
        )

    return job, findings, export(job, out, check=check, on_progress=reporter.progress)
