"""Everything a run needs before its first step: prepare, wrap, resume. Each takes what the one before it returned."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import DDPMScheduler, UNet2DConditionModel

from koala.distill.config import DistillConfig
from koala.distill.draws import Batches, generator
from koala.distill.loss.pairs import feature_pairs
from koala.distill.loss.phased import GuidanceStep, PhasedStep
from koala.distill.loss.step import BrokenLoss, DistillationStep, Step, alphas_cumprod, check_gradients
from koala.distill.loss.velocity import GuidedTeacher
from koala.distill.optimizers import Ema, build_optimizers
from koala.distill.processes import Processes, on_cpu
from koala.distill.run import snapshots
from koala.distill.run.claim import Claim
from koala.distill.run.folder import RunFolder
from koala.distill.run.gathering import Gathering
from koala.distill.run.preflight import check, keep_exact
from koala.distill.run.reporter import Reporter
from koala.distill.run.stopping import Pauses
from koala.distill.run.student_folder import check_student, update_student
from koala.distill.sampling import guidance_range
from koala.distill.validation import Validator, student_model
from koala.files.tensorfiles import stored_tensors
from koala.lora.training import attach, initialise
from koala.models.layout import STEMS
from koala.models.library import Library
from koala.models.loaded import LoadedModel
from koala.models.networks import read_network
from koala.sampling.noising import noising_of
from koala.unet.specs import student as student_spec
from koala.words import many

log = logging.getLogger(__name__)

_TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call of `train` in one process: what is asked for, and the services that every part of it uses."""

    run: RunFolder
    config: DistillConfig
    resume_from: int | None  # the step of the checkpoint to resume from; None for a new run
    processes: Processes
    accelerator: Accelerator
    reporter: Reporter
    pauses: Pauses
    claim: Claim
    say: Callable[[str], None]

    @classmethod
    def of(cls, run: RunFolder, config: DistillConfig, resume_from: int | None, say: Callable[[str], None]) -> "Job":
        """Joins the other processes of the run."""
        processes = Processes(errors=(BrokenLoss,))  # first: it waits for the others longer than Accelerator would
        accelerator = Accelerator(
            mixed_precision={"fp32": "no"}.get(config.precision, config.precision),
            log_with=list(config.trackers) or None,
            project_dir=str(run.path),
            cpu=on_cpu(),
        )
        reporter = Reporter(run, config.num_steps, active=processes.main)
        return cls(
            run=run,
            config=config,
            resume_from=resume_from,
            processes=processes,
            accelerator=accelerator,
            reporter=reporter,
            pauses=Pauses(run, reporter, processes, config.time_limit),
            claim=Claim(run, config, processes, reporter, new=resume_from is None),
            say=say if processes.main else log.debug,
        )

    def announce(self, message: str) -> None:
        """Say what is being prepared, on the terminal and in status.json."""
        self.say(message)
        self.reporter.say("preparing", message)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The data and the networks in this process's memory; `network` is the student, not yet wrapped."""

    batches: Batches
    distillation: Step
    network: UNet2DConditionModel
    validator: Validator | None  # of the first process
    position: snapshots.Position
    scaler: dict | None  # state of fp16's gradient scaler


@dataclass(frozen=True, kw_only=True)
class Student:
    """The student and what updates it, for however many processes there are."""

    wrapped: torch.nn.Module  # to be called
    network: torch.nn.Module  # the U-Net inside
    optimizers: tuple
    ema: Ema | None

    def kept_weights(self) -> dict[str, torch.Tensor]:
        """The weights that are the result so far, whole and on the CPU. Every process must call it."""
        return snapshots.ema_tensors(self.ema) if self.ema else snapshots.student_tensors(self.network)


def prepare(job: Job) -> Prepared:
    """Encode the data, cut the student out of its teacher and load both. Stopped where the run is asked to stop."""
    config, each, on_main = job.config, job.processes.on_each, job.processes.on_main
    each(check, config, job.accelerator)
    if job.resume_from is None:
        each(check_student, config)
    data = Gathering(
        job.run,
        config,
        job.resume_from,
        processes=job.processes,
        pauses=job.pauses,
        claim=job.claim,
        reporter=job.reporter,
        say=job.announce,
    ).encoded()
    if job.resume_from is None:
        position, scaler = snapshots.Position(step=0, ema_steps=0, seconds=0.0, data=data.key), None
    else:
        position, scaler = each(snapshots.position, job.run, job.resume_from)
    batches = Batches(config, data)
    on_main(job.announce, "cutting the student out of its teacher")
    on_main(job.claim.begin, job.resume_from, job.say)
    job.claim.began = True
    job.pauses.may_stop("while it was preparing")
    on_main(job.announce, "loading the teacher")
    distillation, network, validator = each(_load, job, batches)
    job.pauses.may_stop("while it was preparing")
    return Prepared(
        batches=batches,
        distillation=distillation,
        network=network.train(),
        validator=validator,
        position=position,
        scaler=scaler,
    )


def _load(job: Job, batches: Batches) -> tuple[Step, UNet2DConditionModel, Validator | None]:
    """Teacher and student in this process's memory; on the first process also what validates them."""
    config, device = job.config, job.processes.device
    library = Library(str(device), dtype=_TORCH_DTYPES[config.teacher_precision])
    teacher = library.get(config.teacher)
    library.residence.bring([teacher.pipeline.unet])
    distillation = step_of(config, teacher, batches.data.empty)
    if config.lora_rank:
        student = adapted_teacher(config, distillation.teacher)
    else:
        student = _read_student(job.run, torch.float32).requires_grad_(True).to(device)
    if config.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    validator = None
    if job.processes.main:
        its_unet = student if config.lora_rank else _read_student(job.run, distillation.teacher.dtype)
        shown = student_model(teacher, its_unet, job.run)
        validator = Validator(job.run, config, batches.data, distillation, teacher, shown, job.pauses.between)
    if job.resume_from is not None:
        snapshots.load_weights(job.run, job.resume_from, student)
    else:
        half = bool(config.lora_rank) and config.precision != "fp32"  # the teacher's own weights are in half precision
        batch, draws = batches.at(0, [0])
        with (
            distillation.hooked(student) as losses_of,
            torch.autocast(device.type, getattr(torch, _TORCH_DTYPES[config.precision]), enabled=half),
        ):
            losses = losses_of(student, batch, draws)
        check_gradients(losses, student)
    return distillation, student, validator


def adapted_teacher(config: DistillConfig, network: UNet2DConditionModel) -> UNet2DConditionModel:
    """The teacher's own U-Net as the student: with a LoRA, whose first values the config's seed decides."""
    attach(network, config.lora_rank, config.lora_alpha)
    initialise(network, generator("lora", config.seed))
    return network


class Adapted(torch.nn.Module):
    """A student that is its teacher's own network, to be wrapped: autocast is only around calls of the student."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, *inputs, **more):
        """As the network's."""
        return self.network(*inputs, **more)


def step_of(config: DistillConfig, teacher: LoadedModel, empty: tuple[torch.Tensor, torch.Tensor]) -> Step:
    """The step of the config's method; `empty` is the encoded empty prompt. UserError for an unsuitable teacher."""
    network, scheduler = teacher.pipeline.unet, teacher.pipeline.scheduler.config
    noising = noising_of(teacher.card, config.noising)
    if config.method == "koala":
        pairs = feature_pairs(config, student_spec(config.student_spec, teacher.spec), teacher.spec)
        return DistillationStep(config, network, pairs, alphas_cumprod(scheduler), noising)
    guidance = guidance_range(config, teacher.card)
    guided = GuidedTeacher(network, empty, guidance, scheduler.get("prediction_type", "epsilon"))
    kind = PhasedStep if config.method == "phased" else GuidanceStep
    return kind(config, guided, DDPMScheduler.from_config(scheduler).alphas_cumprod, noising)


def _read_student(run: RunFolder, dtype: torch.dtype) -> UNet2DConditionModel:
    """The student's U-Net, frozen; UserError where its file lacks a tensor."""
    folder = run.student / "unet"
    return read_network("unet", folder, stored_tensors(folder / f"{STEMS['unet']}.safetensors"), dtype)


def wrap(job: Job, network: UNet2DConditionModel) -> Student:
    """Student and optimizers through accelerate; the moving average starts from the student."""
    config, accelerator = job.config, job.accelerator
    optimizers = job.processes.on_each(build_optimizers, network, config)
    if accelerator.distributed_type == DistributedType.FSDP:
        keep_exact(accelerator)
    called = Adapted(network) if config.lora_rank else network
    wrapped, *optimizers = accelerator.prepare(called, *optimizers)
    inside = network if config.lora_rank else accelerator.unwrap_model(wrapped)
    ema = Ema(inside, config.ema_decay, config.ema_device) if config.ema_decay else None
    return Student(wrapped=wrapped, network=inside, optimizers=tuple(optimizers), ema=ema)


def resume(job: Job, prepared: Prepared, student: Student) -> None:
    """Optimizers, moving average and scaler as the checkpoint has them, for a run that is resumed; then the curves.

    What metrics.jsonl says of later steps is forgotten, and a new run begins without curves.
    """
    position, on_main = prepared.position, job.processes.on_main
    if job.resume_from is not None:
        snapshots.load_rest(job.run, job.resume_from, student.network, student.ema, student.optimizers)
        if student.ema:
            student.ema.steps = position.ema_steps
        if prepared.scaler and job.accelerator.scaler:
            job.accelerator.scaler.load_state_dict(prepared.scaler)
        # the run may have been killed after it wrote the checkpoint and before it wrote student/
        on_main(update_student, job.run, job.config, student.kept_weights())
    if lost := on_main(job.run.forget_metrics_after, -1 if job.resume_from is None else position.step):
        job.say(f"{many(lost, 'damaged line')} of {job.run.metrics_file} left out")
    if job.config.trackers:
        settings = {key: str(value) for key, value in job.config.to_dict().items()}
        job.processes.on_each(job.accelerator.init_trackers, "koala", settings)
