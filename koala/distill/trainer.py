"""The trainer: one loop from a laptop's CPU to many GPUs, through accelerate.

The teacher stands outside `prepare`, frozen and in its own precision. Order, noise, timesteps and captions are
functions of the step (data/order.py, draws.py), so that a run may be split over processes, killed and resumed.
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import UNet2DConditionModel

from koala.distill.config import DistillConfig
from koala.distill.data.order import BatchOrder
from koala.distill.draws import draw
from koala.distill.ema import Ema
from koala.distill.loss.means import Means
from koala.distill.loss.pairs import feature_pairs
from koala.distill.loss.step import BrokenLoss, DistillationStep, Losses, alphas_cumprod, check_gradients
from koala.distill.optimizers import build_optimizers, learning_rate
from koala.distill.processes import Processes, on_cpu
from koala.distill.run import snapshots
from koala.distill.run.claim import Claim
from koala.distill.run.folder import RunFolder
from koala.distill.run.gathering import Gathering
from koala.distill.run.pauses import Pauses
from koala.distill.run.preflight import check, keep_exact
from koala.distill.run.reporter import Reporter
from koala.distill.run.stopping import Interrupted, Stopped
from koala.distill.run.student_folder import check_student, update_student
from koala.distill.validation import Validator, student_model
from koala.errors import UserError
from koala.files.tensorfiles import stored_tensors
from koala.hardware.timing import StageTimer, synchronize
from koala.models.layout import STEMS
from koala.models.library import Library
from koala.models.networks import read_network
from koala.sampling.noising import noising_of
from koala.unet.costs import LATENT_CHANNELS, LATENT_FACTOR
from koala.unet.specs import student as student_spec
from koala.words import many

log = logging.getLogger(__name__)

_MOST_SKIPPED = 50  # the scaler halves its factor at each: 2**-50 of it is no precision any more
_TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


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
        _Run(run, config, resume_from, say).go()
    finally:
        torch.set_num_threads(before)  # for other work of this process, whose sums another number would round otherwise


class _Run:
    """One call of `train`: what it needs, the loop, and what it keeps."""

    def __init__(
        self,
        run: RunFolder,
        config: DistillConfig,
        resume_from: int | None,
        say: Callable[[str], None],
    ):
        self.run, self.config, self.resume_from = run, config, resume_from
        self.processes = Processes(errors=(BrokenLoss,))  # joins the others, with a patience that Accelerator has not
        self.accelerator = Accelerator(
            mixed_precision={"fp32": "no"}.get(config.precision, config.precision),
            log_with=list(config.trackers) or None,
            project_dir=str(run.path),
            cpu=on_cpu(),
        )
        self.device = self.accelerator.device
        self.reporter = Reporter(run, config.num_steps, active=self.processes.main)
        self.say = say if self.processes.main else log.debug
        self.pauses = Pauses(run, self.reporter, self.processes, config.time_limit)
        self.claim = Claim(run, config, self.processes, self.reporter, new=resume_from is None)
        self.skipped = 0  # steps on end that fp16's scaler left out

    def go(self) -> None:
        with self.claim.alone():  # before a word is written: the folder may be that of a run that is still going
            try:
                with self.pauses.asked.listening():
                    self._prepare()
                    self._train()
            except Stopped as stopped:
                self.processes.on_main(self.claim.stopped, str(stopped))
                self.processes.leave()
                raise
            except Exception as error:
                with suppress(OSError, UserError):  # a full disk takes no word; the error itself is what counts
                    self.claim.failed(error)
                if error is self.processes.shared:  # else the others may be anywhere: the launcher ends them
                    self.processes.leave()
                raise
            finally:
                for tracker in self.accelerator.trackers:
                    tracker.finish()
            self.processes.leave()
            if self.processes.main:
                self.reporter.end("done", f"{self.config.num_steps:,} steps; the student is in student/")

    # what a run needs before its first step

    def _prepare(self) -> None:
        config, each, on_main = self.config, self.processes.on_each, self.processes.on_main
        each(check, config, self.accelerator)
        if self.resume_from is None:
            each(check_student, config)
        self.data = self._gathering().encoded()
        self.position, self.scaler = each(self._start)
        self.order = BatchOrder(self.data.sizes, config.batch_size, config.seed)
        on_main(self._prepares, "cutting the student out of its teacher")
        on_main(self.claim.begin, self.resume_from, self.say)
        self.claim.began = True
        self.pauses.may_stop("while it was preparing")
        on_main(self._prepares, "loading the teacher")
        bare = each(self._load)
        self.pauses.may_stop("while it was preparing")
        self._wrap(bare.train())
        if self.resume_from is not None:
            self._go_on()
        if lost := on_main(self.run.forget_metrics_after, -1 if self.resume_from is None else self.position.step):
            self.say(f"{many(lost, 'damaged line')} of {self.run.metrics_file} left out")
        if config.trackers:
            each(self.accelerator.init_trackers, "koala", {k: str(v) for k, v in config.to_dict().items()})

    def _prepares(self, message: str) -> None:
        self.say(message)
        self.reporter.say("preparing", message)

    def _gathering(self) -> Gathering:
        return Gathering(
            self.run,
            self.config,
            self.resume_from,
            processes=self.processes,
            pauses=self.pauses,
            claim=self.claim,
            reporter=self.reporter,
            say=self._prepares,
        )

    def _start(self) -> tuple[snapshots.Position, dict | None]:
        """Where the run stands, and the scaler's state."""
        if self.resume_from is None:
            return snapshots.Position(step=0, ema_steps=0, seconds=0.0, data=self.data.key), None
        return snapshots.position(self.run, self.resume_from)

    def _load(self) -> UNet2DConditionModel:
        """Teacher and student in this process's memory, and the first process's validator. The student, not wrapped."""
        config, run = self.config, self.run
        library = Library(str(self.device), dtype=_TORCH_DTYPES[config.teacher_precision])
        self.teacher = library.get(config.teacher)
        network = self.teacher.pipeline.unet
        library.residence.bring([network])
        bare = self._read_student(torch.float32).requires_grad_(True).to(self.device)
        pairs = feature_pairs(config, student_spec(config.student_spec, self.teacher.spec), self.teacher.spec)
        alphas = alphas_cumprod(self.teacher.pipeline.scheduler.config)
        self.step = DistillationStep(config, network, pairs, alphas, noising_of(self.teacher.card, config.noising))
        if config.gradient_checkpointing:
            bare.enable_gradient_checkpointing()
        self.validator = self._validator(library) if self.processes.main else None
        if self.resume_from is not None:
            snapshots.load_weights(run, self.resume_from, bare)
        else:
            with self.step.hooked(bare) as losses_of:
                check_gradients(losses_of(bare, *self._micro_batch(0, [0])), bare)
        return bare

    def _read_student(self, dtype: torch.dtype) -> UNet2DConditionModel:
        """The student's network, frozen; UserError where its file lacks a tensor."""
        folder = self.run.student / "unet"
        return read_network("unet", folder, stored_tensors(folder / f"{STEMS['unet']}.safetensors"), dtype)

    def _validator(self, library: Library) -> Validator:
        student = student_model(self.teacher, self._read_student(self.step.teacher.dtype), self.run)
        return Validator(self.run, self.config, self.data, self.step, self.teacher, student, self.pauses.between)

    def _wrap(self, bare: UNet2DConditionModel) -> None:
        """Student and optimizers for however many processes there are; the moving average starts from the student."""
        accelerator, config = self.accelerator, self.config
        self.micro = config.batch_size // (self.processes.number * config.accumulation)
        optimizers = self.processes.on_each(build_optimizers, bare, config)
        if accelerator.distributed_type == DistributedType.FSDP:
            keep_exact(accelerator)
        self.student, *self.optimizers = accelerator.prepare(bare, *optimizers)
        self.bare = accelerator.unwrap_model(self.student)
        self.ema = Ema(self.bare, config.ema_decay, config.ema_device) if config.ema_decay else None

    def _go_on(self) -> None:
        """Optimizer and moving average from the checkpoint."""
        snapshots.load_rest(self.run, self.resume_from, self.bare, self.ema, self.optimizers)
        if self.ema:
            self.ema.steps = self.position.ema_steps
        if self.scaler and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(self.scaler)
        # a run may have been killed between its checkpoint and this
        self.processes.on_main(update_student, self.run, self._kept())

    # the loop

    def _train(self) -> None:
        config, first, on_main = self.config, self.position.step, self.processes.on_main
        if first == 0:
            on_main(self._first_look)
        self.pauses.may_stop(f"before step {first + 1:,}")
        on_main(self.reporter.step, first, 0.0)
        timer = StageTimer(self.device)
        means = Means(self.processes, config, since=self.position.seconds)
        began, paused = time.perf_counter() - self.position.seconds, 0.0
        with self.step.hooked(self.bare) as self.losses_of:
            for step in range(first, config.num_steps):
                paused += self.pauses.give_way()
                rate = learning_rate(config, step)
                norm = self._one_step(step, rate, means)
                done, last = step + 1, step + 1 == config.num_steps
                stopping = self.pauses.all_stop()
                if done % config.log_every == 0 or done == first + 1 or last or stopping:
                    synchronize(self.device)
                    taken = means.take(time.perf_counter() - began - paused)
                    on_main(self._log, done, rate, norm, taken, timer)
                pause = time.perf_counter()
                measured = config.validate_every and done % config.validate_every == 0
                self.position = dataclasses.replace(
                    self.position,
                    step=done,
                    ema_steps=self.ema.steps if self.ema else 0,
                    seconds=time.perf_counter() - began - paused,
                )
                if (measured or last) and not stopping:
                    self._validate(done)
                    stopping = self.pauses.all_stop()
                if done % config.checkpoint_every == 0 or last or stopping or self.position.best_step == done:
                    self._checkpoint()
                paused += time.perf_counter() - pause
                if stopping and not last:
                    raise self.pauses.stopped(f"after step {done:,}")

    def _one_step(self, step: int, rate: float, means: Means) -> float:
        """Gradients of the whole batch, in `accumulation` passes, and one step of every optimizer. Gradient norm."""
        config, accelerator = self.config, self.accelerator
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        broken = None  # told when all are done: the others wait in this one's backward pass
        for index in range(config.accumulation):
            last = index + 1 == config.accumulation
            start = (index * self.processes.number + self.processes.rank) * self.micro
            places = range(start, start + self.micro)
            with nullcontext() if last else accelerator.no_sync(self.student):
                losses = self.losses_of(self.student, *self._micro_batch(step, places))
                broken = broken or _broken(losses, step + 1)
                accelerator.backward(losses.total / config.accumulation)
            means.add(losses)
        self.processes.on_each(_raise, broken)
        norm = accelerator.clip_grad_norm_(self.student.parameters(), config.max_grad_norm or float("inf"))
        if config.precision != "fp16" and not torch.isfinite(norm):  # fp16's scaler skips such a step by itself
            raise BrokenLoss(f"step {step + 1}: the gradient is no longer finite; {self._slower()}")
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        skipped = any(optimizer.step_was_skipped for optimizer in self.optimizers)
        if config.precision == "fp16":
            skipped = self.processes.any(skipped)
        self.skipped = self.skipped + 1 if skipped else 0
        if self.skipped > _MOST_SKIPPED:
            raise BrokenLoss(
                f"step {step + 1}: fp16's gradients overflowed in {self.skipped} steps on end; {self._slower()}, or "
                "with precision=bf16"
            )
        if self.ema and not skipped:
            self.ema.update(self.bare)
        return float(norm)

    def _slower(self) -> str:
        return f"resume with a lower learning rate, for example learning_rate={self.config.learning_rate / 4:g}"

    def _micro_batch(self, step: int, places):
        """The pictures at these places of the step's batch, and their draws."""
        bucket, rows = self.order.rows(step)
        width, height = bucket
        indices = [step * self.config.batch_size + place for place in places]
        draws = draw(self.config, indices, (LATENT_CHANNELS, height // LATENT_FACTOR, width // LATENT_FACTOR))
        return self.data.batch(bucket, [rows[place] for place in places], draws.picks), draws

    def _log(self, done: int, rate: float, norm: float, means: dict[str, float], timer: StageTimer) -> None:
        entry = {"kind": "train", "step": done, **means, "learning_rate": rate, "grad_norm": norm}
        entry["peak_memory_bytes"] = timer.peak_memory()
        self.run.log(entry)
        if self.config.trackers:
            self.accelerator.log({k: v for k, v in entry.items() if k not in ("kind", "step")}, step=done)
        self.reporter.step(done, entry["pictures_per_second"] / self.config.batch_size)
        self.say(
            f"step {done:,} of {self.config.num_steps:,}: loss {entry['loss']:.4f}, "
            f"{entry['pictures_per_second']:.1f} pictures per second"
        )

    # what is kept

    def _kept(self) -> dict[str, torch.Tensor]:
        """The weights that are the result so far, whole and on the CPU; every process asks."""
        return snapshots.ema_tensors(self.ema) if self.ema else snapshots.student_tensors(self.bare)

    def _first_look(self) -> None:
        """Teacher and student before any step: what the curves and the pictures start from."""
        self._prepares("drawing the teacher's pictures and the student's before training")
        with suppress(Interrupted):  # all stop together afterwards
            self.validator.pictures("teacher", of_teacher=True)
            self.validator.pictures("before")
            self._measure(0)
        self.validator.rest()

    def _validate(self, done: int) -> None:
        """Measure and draw on one process; which step is the best, and so is saved, is for all to know."""
        loss = self.processes.on_main(self._look, done, self._kept())
        if loss is not None and (self.position.best_loss is None or loss < self.position.best_loss):
            self.position = dataclasses.replace(self.position, best_step=done, best_loss=loss)

    def _look(self, done: int, weights: dict[str, torch.Tensor]) -> float | None:
        """The validation loss of these weights; None where it was interrupted before there was one."""
        loss = None
        self.reporter.say("running", "validating")
        self.validator.show(weights)
        with suppress(Interrupted):  # the step is saved, and the run stops before the next one
            loss = self._measure(done)
            self.validator.pictures(f"step-{done}")
        self.validator.rest()
        self.reporter.say("running", "")
        return loss

    def _measure(self, done: int) -> float:
        """Validation losses and, where asked for, the shapes score, into metrics.jsonl. The loss."""
        entries = [self.validator.losses(done)]
        if self.config.score_prompts:
            entries.append(self.validator.score(done))
        for entry in entries:
            self.run.log(entry)
            if self.config.trackers:
                flat = {f"{entry['kind']}/{k}": v for k, v in entry.items() if isinstance(v, float)}
                self.accelerator.log(flat, step=done)
        return entries[0]["loss"]

    def _checkpoint(self) -> None:
        kept = snapshots.contents(self.bare, self.ema, self.optimizers, writes=self.processes.main)
        self.processes.on_main(self._save, kept, self._kept())

    def _save(self, kept: snapshots.Contents, weights: dict[str, torch.Tensor]) -> None:
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
        snapshots.save(self.run, self.config, self.position, kept, scaler)
        update_student(self.run, weights)
        snapshots.tidy(self.run, self.config.keep_last, self.position.best_step)


def _broken(losses: Losses, step: int) -> BrokenLoss | None:
    try:
        losses.check(step)
    except BrokenLoss as error:
        return error
    return None


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error
