"""distill: train a KOALA of your own."""

import argparse
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from koala.cli.options import fetch_missing, gigabytes
from koala.cli.output import emit, say
from koala.console import no_bars
from koala.distill.config import DistillConfig
from koala.distill.presets import PRESETS
from koala.distill.run.folder import RunFolder
from koala.distill.settings import read
from koala.errors import UserError

HELP = "distil a teacher into a student cut out of it; one process, or many under `accelerate launch -m koala`"

# what helps where memory ran out
SMALLER = "gradient_checkpointing=true, a larger accumulation=N, a smaller resolution=N, a smaller teacher"


def add(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    fields = ", ".join(f.name for f in dataclasses.fields(DistillConfig))
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--out", type=Path, metavar="RUN", help="new folder for the run")
    start.add_argument("--resume", type=Path, metavar="RUN", help="resume a run from its last checkpoint")
    start.add_argument("--estimate", action="store_true", help="print what the run would take, and exit")
    start.add_argument("--fields", action="store_true", help="list every field of a config with its meaning")
    parser.add_argument("--preset", choices=PRESETS, help="start from a ready-made config")
    parser.add_argument("--config", type=Path, metavar="FILE.json", help="config whose fields replace the preset's")
    parser.add_argument("--step", type=int, metavar="N", help="with --resume: the checkpoint to resume from")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="with --estimate: for this many GPUs, not this machine"
    )
    parser.add_argument("--vram", type=gigabytes, metavar="GB", help="with --estimate: for GPUs with this much memory")
    parser.add_argument(
        "settings", nargs="*", metavar="field=value", help=f"settings that override all of these: {fields}"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the run's last status, the estimate or the fields, as text or JSON; exit status 0, 1 for a broken loss."""
    if args.fields:
        return _list_fields(args)
    folder = RunFolder(path=args.resume or args.out or Path())
    from koala.distill.estimate.forecast import estimate_here

    no_bars()
    if args.estimate:
        from koala.distill.run.preflight import describe_data

        config = _fresh(args, folder)
        expected, data = estimate_here(config, processes=args.processes, memory_bytes=args.vram), describe_data(config)
        emit(args, expected.to_dict() | {"data": data}, "\n".join([*expected.lines(), *([data] if data else [])]))
        return 0
    if args.processes or args.vram:
        raise UserError("--processes and --vram ask about another machine; give them together with --estimate")
    return _train(args, folder)


def _fresh(args: argparse.Namespace, folder: RunFolder) -> DistillConfig:
    from koala.distill.run.folder import check_place

    if args.step is not None:
        raise UserError("--step names a checkpoint of a run; give it together with --resume RUN")
    if not args.estimate:
        check_place(folder)
    base = PRESETS[args.preset].config if args.preset else None
    return read(args.config, args.settings, base)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What a command means; `step` is the checkpoint to resume from, `ended` says why there is nothing to train."""

    config: DistillConfig
    step: int | None = None
    ended: str = ""


def _planned(args: argparse.Namespace, folder: RunFolder) -> _Plan:
    """Called on one process, before the run changes what the others would read."""
    return _resumed(args, folder) if args.resume else _Plan(config=_fresh(args, folder))


def _resumed(args: argparse.Namespace, folder: RunFolder) -> _Plan:
    """The run's own config, and the checkpoint to resume from, None where it has none; reports what was repaired."""
    from koala.distill.run.intact import config_of, trained_with, verify
    from koala.distill.run.resuming import refuse_fixed, words_of_changes

    if args.preset or args.config:
        raise UserError("a resumed run keeps its config; leave --preset and --config out")
    own, repaired = config_of(folder)
    config = read(None, args.settings, own)
    if repaired:
        say(f"koala: {repaired}")
    if args.step is not None:
        folder.check_checkpoint(args.step)
    steps = folder.checkpoints()
    if not steps:
        return _Plan(config=config)  # nothing was computed yet, so anything may change
    asked = {setting.partition("=")[0] for setting in args.settings}
    refuse_fixed(folder, config, trained_with(folder) or own, asked)
    step = steps[-1] if args.step is None else args.step
    trained = verify(folder, step, config, asked)
    for line in words_of_changes(config, trained, step):
        say(line)
    if step >= config.num_steps and _is_done(folder):
        if fault := _rebuilt(folder, config, step):
            return _Plan(config=config, ended=f"student/ was recreated from checkpoint step-{step}: {fault}")
        raise UserError(
            f"{folder.path} is done: {step:,} steps. Give num_steps=N with a larger N to continue, for example "
            f"num_steps={2 * step}"
        )
    return _Plan(config=config, step=step)


def _rebuilt(folder: RunFolder, config: DistillConfig, step: int) -> str | None:
    """Why the student of a finished run had to be recreated; None where all of it is intact."""
    from koala.distill.run.intact import FILES
    from koala.distill.run.student_folder import repair_student

    with folder.alone():
        return repair_student(folder, config, folder.checkpoint(step) / FILES[1 if config.ema_decay else 0])


def _is_done(folder: RunFolder) -> bool:
    try:
        status = folder.status()
    except UserError as error:
        say(f"koala: {error}")
        return False
    return status is not None and status.state == "done"


def _train(args: argparse.Namespace, folder: RunFolder) -> int:
    plan = None if "LOCAL_RANK" in os.environ else _planned(args, folder)  # alone: before anything slow is imported
    from koala.distill.estimate.forecast import estimate_here
    from koala.distill.loss.step import BrokenLoss
    from koala.distill.processes import Processes
    from koala.distill.run.resuming import check_fits
    from koala.distill.run.stopping import Stopped
    from koala.distill.trainer import train

    processes = Processes()
    main = processes.main
    plan = plan or processes.on_main(_planned, args, folder)
    if plan.ended:
        if main:
            emit(args, dataclasses.asdict(folder.status()) | {"run": str(folder.path)}, plan.ended)
        processes.leave()
        return 0
    config = plan.config
    models = [name for name in (config.teacher, config.student_init) if name]
    processes.on_main(fetch_missing, models)
    processes.on_each(fetch_missing, models)  # on machines with a disk of their own
    expected = estimate_here(config)
    for line in expected.lines() if main else ():
        say(line)
    processes.on_each(*((expected.check,) if plan.step is None else (check_fits, folder, expected)))
    try:
        train(folder, config, resume_from=plan.step, say=say)
    except Stopped as stopped:
        if main:
            say(f"{stopped}; resume it with --resume {folder.path}")
    except BrokenLoss as error:
        if main:
            say(f"koala: {error}")
        return 1
    if not main:
        return 0
    status = folder.status()
    emit(args, json.loads(json.dumps(dataclasses.asdict(status))) | {"run": str(folder.path)}, status.message)
    return 0


def _list_fields(args: argparse.Namespace) -> int:
    fields = {f.name: {"default": f.default, "help": f.metadata["help"]} for f in dataclasses.fields(DistillConfig)}
    lines = [f"{n} = {json.dumps(v['default'])}\n    {v['help']}" for n, v in fields.items()]
    emit(args, fields, "\n".join(lines))
    return 0
