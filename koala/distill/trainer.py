"""The trainer: one loop from a laptop's CPU to many GPUs, through accelerate.

The teacher is not wrapped by accelerate; it is frozen and keeps its own precision. Order, noise, timesteps and captions
are functions of the step (draws.py), so that a run may be split over processes, killed and resumed.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress

import torch

from koala.distill.config import DistillConfig
from koala.distill.loss.step import BrokenLoss, Losses
from koala.distill.optimizers import learning_rate
from koala.distill.preparation import Job, Prepared, Student, prepare, resume, wrap
from koala.distill.run import snapshots
from koala.distill.run.folder import RunFolder
from koala.distill.run.reporter import Means
from koala.distill.run.snapshots import Position
from koala.distill.run.stopping import Interrupted, Stopped
from koala.distill.run.student_folder import update_student
from koala.distill.validation import Validator
from koala.errors import UserError
from koala.hardware.timing import StageTimer, synchronize

log = logging.getLogger(__name__)

_MOST_SKIPPED = 50  # the scaler halves its factor at each: after 50 halvings it has no precision left


def train(
    run: RunFolder,
    config: DistillConfig,
    *,
    resume_from: int | None = None,
    say: Callable[[str], None] = log.info,
) -> None:
    """Train until `config.num_steps`; from the checkpoint of step `resume_from` where one is given.

    Raises Stopped when it was asked to stop, UserError for what cannot run, BrokenLoss when a loss is no longer
    finite, OSError for a full disk. In each case status.json says so, and the checkpoints written so far are whole.
    """
    config = dataclasses.replace(config, threads=config.threads or torch.get_num_threads())
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        job = Job.of(run, config, resume_from, say)
        with job.claim.alone(), _ended(job), job.pauses.asked.listening():  # alone first: another trainer may be here
            prepared = prepare(job)
            student = wrap(job, prepared.network)
            resume(job, prepared, student)
            _loop(job, prepared, student)
    finally:
        torch.set_num_threads(before)  # another number of threads would round the sums of later work differently


@contextmanager
def _ended(job: Job) -> Iterator[None]:
    """The last word of status.json, and a leave that the processes take together."""
    try:
        yield
    except Stopped as stopped:
        job.processes.on_main(job.claim.stopped, str(stopped))
        job.processes.leave()
        raise
    except Exception as error:
        with suppress(OSError, UserError):  # where the disk is full no word can be written; the error itself counts
            job.claim.failed(error)
        if error is job.processes.shared:  # otherwise the others may be anywhere, and the launcher ends them
            job.processes.leave()
        raise
    finally:
        for tracker in job.accelerator.trackers:
            tracker.finish()
    job.processes.leave()
    if job.processes.main:
        job.reporter.end("done", f"{job.config.num_steps:,} steps; the student is in student/")


class _Clock:
    """Seconds of training, over all the sittings of a run; pauses do not count."""

    def __init__(self, seconds: float):
        self.start = time.perf_counter() - seconds

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    @contextmanager
    def paused(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.start += time.perf_counter() - began


def _loop(job: Job, prepared: Prepared, student: Student) -> None:
    """The steps, and between them what is logged, validated and saved."""
    config, position, pauses, on_main = job.config, prepared.position, job.pauses, job.processes.on_main
    first, skipped = position.step, 0
    if first == 0:
        on_main(_look_before, job, prepared.validator)
    pauses.may_stop(f"before step {first + 1:,}")
    on_main(job.reporter.step, first, 0.0)
    timer, clock = StageTimer(job.processes.device), _Clock(position.seconds)
    means = Means(job.processes, config, since=position.seconds)
    average = student.ema.weights if student.ema else None
    with prepared.distillation.hooked(student.network, average) as losses_of:
        for step in range(first, config.num_steps):
            with clock.paused():
                pauses.give_way()
            rate = learning_rate(config, step)
            norm, was_skipped = _one_step(job, prepared, student, losses_of, step, rate, means)
            skipped = _check_skipped(config, step, skipped + 1 if was_skipped else 0)
            done, last = step + 1, step + 1 == config.num_steps
            stopping = pauses.all_stop()
            if done % config.log_every == 0 or done == first + 1 or last or stopping:
                synchronize(job.processes.device)
                measured = means.take(clock.seconds()) | {"learning_rate": rate, "grad_norm": norm}
                on_main(_log_step, job, done, measured, timer)
            position = dataclasses.replace(
                position, step=done, ema_steps=student.ema.steps if student.ema else 0, seconds=clock.seconds()
            )
            with clock.paused():
                if (last or config.validate_every and done % config.validate_every == 0) and not stopping:
                    position = _validate(job, prepared.validator, student, position)
                    stopping = pauses.all_stop()
                if done % config.checkpoint_every == 0 or last or stopping or position.best_step == done:
                    _checkpoint(job, student, position)
            if stopping and not last:
                raise pauses.stopped(f"after step {done:,}")


def _one_step(
    job: Job, prepared: Prepared, student: Student, losses_of: Callable, step: int, rate: float, means: Means
) -> tuple[float, bool]:
    """Gradients of the whole batch, in `accumulation` passes, and one step of every optimizer.

    Returns the norm of the gradient, and whether fp16's scaler skipped the step.
    """
    config, accelerator, processes = job.config, job.accelerator, job.processes
    for optimizer in student.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
    size = config.batch_size // (processes.number * config.accumulation)
    broken = None  # raised once all are done: the others wait in this process's backward pass
    for index in range(config.accumulation):
        last = index + 1 == config.accumulation
        start = (index * processes.number + processes.rank) * size
        with nullcontext() if last else accelerator.no_sync(student.wrapped):
            losses = losses_of(student.wrapped, *prepared.batches.at(step, range(start, start + size)))
            broken = broken or _broken(losses, step + 1)
            accelerator.backward(losses.total / config.accumulation)
        means.add(losses)
    processes.on_each(_raise, broken)
    norm = accelerator.clip_grad_norm_(student.wrapped.parameters(), config.max_grad_norm or float("inf"))
    if config.precision != "fp16" and not torch.isfinite(norm):  # fp16's scaler skips such a step by itself
        raise BrokenLoss(f"step {step + 1}: the gradient is no longer finite; {_slower(config)}")
    for optimizer in student.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    skipped = any(optimizer.step_was_skipped for optimizer in student.optimizers)
    if config.precision == "fp16":
        skipped = processes.any(skipped)
    if student.ema and not skipped:
        student.ema.update(student.network)
    return float(norm), skipped


def _broken(losses: Losses, step: int) -> BrokenLoss | None:
    try:
        losses.check(step)
    except BrokenLoss as error:
        return error
    return None


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


def _check_skipped(config: DistillConfig, step: int, skipped: int) -> int:
    """BrokenLoss where the scaler skipped too many steps in a row; how many these are."""
    if skipped > _MOST_SKIPPED:
        raise BrokenLoss(
            f"step {step + 1}: fp16's gradients overflowed in {skipped} steps in a row; {_slower(config)}, or with "
            "precision=bf16"
        )
    return skipped


def _slower(config: DistillConfig) -> str:
    return f"resume with a lower learning rate, for example learning_rate={config.learning_rate / 4:g}"


# what the first process does between steps, while the others wait


def _log_step(job: Job, done: int, measured: dict[str, float], timer: StageTimer) -> None:
    config = job.config
    entry = {"kind": "train", "step": done, **measured, "peak_memory_bytes": timer.peak_memory()}
    job.run.log(entry)
    if config.trackers:
        job.accelerator.log({k: v for k, v in entry.items() if k not in ("kind", "step")}, step=done)
    job.reporter.step(done, entry["pictures_per_second"] / config.batch_size)
    job.say(
        f"step {done:,} of {config.num_steps:,}: loss {entry['loss']:.4f}, "
        f"{entry['pictures_per_second']:.1f} pictures per second"
    )


def _look_before(job: Job, validator: Validator) -> None:
    """Teacher and student before any step: where the curves and the pictures start."""
    job.announce("drawing the teacher's pictures and the student's before training")
    with suppress(Interrupted):  # all stop together afterwards
        validator.pictures("teacher", of_teacher=True)
        validator.pictures("before")
        _measure(job, validator, 0)
    validator.rest()


def _look(job: Job, validator: Validator, done: int, weights: dict[str, torch.Tensor]) -> float | None:
    """The validation loss of these weights; None where it was interrupted before there was one."""
    loss = None
    job.reporter.say("running", "validating")
    validator.show(weights)
    with suppress(Interrupted):  # the step is saved, and the run stops before the next one
        loss = _measure(job, validator, done)
        validator.pictures(f"step-{done}")
    validator.rest()
    job.reporter.say("running", "")
    return loss


def _measure(job: Job, validator: Validator, done: int) -> float:
    """Validation losses and, where asked for, the shapes score, into metrics.jsonl. The loss."""
    entries = [validator.losses(done)]
    if job.config.score_prompts:
        entries.append(validator.score(done))
    for entry in entries:
        job.run.log(entry)
        if job.config.trackers:
            flat = {f"{entry['kind']}/{k}": v for k, v in entry.items() if isinstance(v, float)}
            job.accelerator.log(flat, step=done)
    return entries[0]["loss"]


def _save(job: Job, position: Position, kept: snapshots.Contents, weights: dict[str, torch.Tensor]) -> None:
    scaler = job.accelerator.scaler.state_dict() if job.accelerator.scaler else None
    snapshots.save(job.run, job.config, position, kept, scaler)
    update_student(job.run, job.config, weights)
    snapshots.tidy(job.run, job.config.keep_last, position.best_step)


# what all processes do together


def _validate(job: Job, validator: Validator | None, student: Student, position: Position) -> Position:
    """Measure and draw on one process; which step is the best, and is therefore saved, all must know."""
    loss = job.processes.on_main(_look, job, validator, position.step, student.kept_weights())
    if loss is not None and (position.best_loss is None or loss < position.best_loss):
        return dataclasses.replace(position, best_step=position.step, best_loss=loss)
    return position


def _checkpoint(job: Job, student: Student, position: Position) -> None:
    kept = snapshots.contents(student.network, student.ema, student.optimizers, writes=job.processes.main)
    job.processes.on_main(_save, job, position, kept, student.kept_weights())
