"""record: the queries and keys of a run's attention layers, recorded by hooks while the run uses its usual kernels.

softmax(q k^T / sqrt(d)) of the record is the exact attention, at a thirtieth of its size: a 64x64 layer's maps take
320 MiB per step, its q and k 10 MiB. The pictures are the same to the bit.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from koala.attention.plan import AttentionPlan
from koala.attention.plan import plan as plan_of
from koala.attention.recorded import AttentionRecord, Frame
from koala.errors import UserError
from koala.finite import NotFinite, alike, is_finite, number
from koala.hardware.timing import synchronize
from koala.models.hooks import listen
from koala.models.loaded import LoadedModel
from koala.presets import PRESETS
from koala.request import GenerationRequest
from koala.sampling.generate import MAX_PREVIEWS, Step, generate, resolve
from koala.sampling.nan_causes import check_prediction
from koala.sampling.result import GenerationResult
from koala.unet.config import from_config
from koala.unet.costs import LATENT_FACTOR
from koala.words import many

HALVES = ("conditional", "unconditional")


@dataclass(kw_only=True)
class Pass:
    """One pass of the U-Net: its input, and q and k of the planned layers."""

    timestep: float
    sample: torch.Tensor | None = None  # (images, 4, h, w), noisy, as the network sees it
    q: dict[str, torch.Tensor] = field(default_factory=dict)
    k: dict[str, torch.Tensor] = field(default_factory=dict)


class Recorder:
    """Listens to one U-Net in the thread that created it, and keeps the last `plan.steps` passes; see `record`.

    The layers' hooks are registered again at each pass, on the modules that exist then.
    """

    record: AttentionRecord | None = None  # set when the `with` block has ended

    def __init__(
        self,
        unet: UNet2DConditionModel,
        plan: AttentionPlan | None,
        half: str,
        planned: Callable[[int, int, int], AttentionPlan],
    ):
        if half not in HALVES:
            raise UserError(f"half is one of {' and '.join(HALVES)}, not {half!r}")
        self.unet, self.plan, self.half = unet, plan, half
        self.passes: deque[Pass] = deque(maxlen=plan and plan.steps)
        self.seconds = 0.0
        self._planned = planned  # width, height, images -> the plan, if none was given
        self._doubled = False
        self._thread = threading.get_ident()
        self._layers = ExitStack()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record every step that runs inside."""
        inputs = {"timestep": self.unet.time_proj, "sample": self.unet.conv_in}
        with self._layers, listen(inputs, self._timed(self._heard_input)):
            yield
        synchronize(self.unet.device)

    def _timed(self, on_output: Callable) -> Callable:
        def timed(name: str, inputs: tuple, output: torch.Tensor) -> None:
            if threading.get_ident() != self._thread:  # another run of the same model, before or after this one
                return
            began = time.perf_counter()
            on_output(name, inputs, output)
            self.seconds += time.perf_counter() - began

        return timed

    def _heard_input(self, name: str, inputs: tuple, output: torch.Tensor) -> None:
        """A pass begins with its timestep; its sample has the size, and shows whether guidance doubled the batch."""
        if name == "timestep":
            self.passes.append(Pass(timestep=number(inputs[0].flatten()[0])))
            return
        sample = inputs[0]  # (B, 4, h, w)
        height, width = (side * LATENT_FACTOR for side in sample.shape[-2:])
        if self.plan is None:
            self.plan = self._planned(width, height, len(sample) // (2 if _alike(sample) else 1))
            self.passes = deque(self.passes, maxlen=self.plan.steps)
        if (width, height) != (self.plan.width, self.plan.height):
            raise UserError(
                f"the plan is for {self.plan.width}x{self.plan.height} px and the run draws {width}x{height}; "
                "make the plan for the run's own size"
            )
        self._doubled = self._is_doubled(sample)
        self.passes[-1].sample = self._half(sample).to("cpu", copy=True)
        self._layers.close()
        modules = {
            f"{path}.{name}": getattr(module, name)
            for path, module in self._attentions.items()
            for name in ("to_q", "to_k")
        }
        self._layers.enter_context(listen(modules, self._timed(self._heard_layer)))

    @cached_property
    def _attentions(self) -> dict[str, torch.nn.Module]:
        """The planned layers by path."""
        return {x.path: self.unet.get_submodule(x.path) for x in self.plan.layers}

    def _is_doubled(self, sample: torch.Tensor) -> bool:
        """Guidance runs every picture twice, [unconditional; conditional]: then both halves of the sample are equal."""
        images = self.plan.images
        doubled = len(sample) == 2 * images and _alike(sample)
        if len(sample) != images and not doubled:
            raise UserError(
                f"the plan is for {many(images, 'picture')} at once and a pass of the run has "
                f"{len(sample)} rows; make the plan with the run's own number of images"
            )
        return doubled

    def _half(self, batch: torch.Tensor) -> torch.Tensor:
        """The rows of a batch that are kept."""
        if not self._doubled:
            if self.half == "unconditional":
                raise UserError("without guidance there is no unconditional half; record the conditional one")
            return batch
        return batch.chunk(2)[HALVES[::-1].index(self.half)]

    def _heard_layer(self, name: str, inputs: tuple, output: torch.Tensor) -> None:
        path, _, which = name.rpartition(".to_")
        heads = self._attentions[path].heads
        rows = self._half(output).unflatten(-1, (heads, -1)).transpose(1, 2)  # (images, heads, N, d)
        copied = rows.to(getattr(torch, self.plan.dtype), copy=True, memory_format=torch.contiguous_format).to(
            "cpu", non_blocking=True
        )
        getattr(self.passes[-1], which)[path] = copied

    def frames(self) -> tuple[Frame, ...]:
        """Complete passes; UserError if a planned layer did not run."""
        if not self.passes:
            raise UserError("nothing was recorded: the model did not run within the block")
        for one in self.passes:
            if silent := [x for x in self.plan.layers if x.path not in one.q or x.path not in one.k]:
                raise UserError(
                    f"{len(silent)} of {len(self.plan.layers)} planned layers recorded nothing, such as "
                    f"{silent[0].path}; undo fuse_qkv_projections(), and run the U-Net uncompiled"
                )
            for x in self.plan.layers:
                if not (is_finite(one.q[x.path]) and is_finite(one.k[x.path])):
                    raise NotFinite(
                        f"the queries or keys of {x.label} are too large for {self.plan.dtype}, in which they are "
                        f"kept; record other stages than {x.stage}, or in Python with plan(..., dtype='float32')"
                    )
        return tuple({x.path: (one.q[x.path], one.k[x.path]) for x in self.plan.layers} for one in self.passes)


def _alike(sample: torch.Tensor) -> bool:
    """Whether both halves of a batch are equal, with NaN in the same places."""
    if len(sample) % 2:
        return False
    return alike(*sample.chunk(2))


@contextmanager
def record(
    target: LoadedModel | StableDiffusionXLPipeline,
    plan: AttentionPlan | None = None,
    half: str = "conditional",
    *,
    request: GenerationRequest | None = None,
) -> Iterator[Recorder]:
    """Record what this thread draws with a model; afterwards `recorder.record` holds the last `plan.steps` passes.

    `request` is what is drawn; it is kept with the record. A pipeline of diffusers that is called directly needs
    neither: without a plan the last layer of each stage is recorded, in the size and steps of the call.
    """
    if isinstance(target, LoadedModel):
        pipeline, name, revision, spec = target.pipeline, target.card.name, target.revision, target.spec
    else:
        pipeline, revision = target, "local"
        name = pipeline.config.get("_name_or_path") or "pipeline"
        spec = from_config(pipeline.unet.config, name)
    if plan is None and isinstance(target, LoadedModel):
        raise UserError("a run of `generate` needs its plan, for example plan(model.spec, width, height, steps)")

    def planned(width: int, height: int, images: int) -> AttentionPlan:
        return plan_of(spec, width, height, pipeline.scheduler.num_inference_steps, images=images)

    recorder = Recorder(pipeline.unet, plan, half, planned)
    with recorder.listening():
        yield recorder
    frames, plan = recorder.frames(), recorder.plan
    recorder.record = AttentionRecord(
        model=name,
        revision=revision,
        spec=spec,
        prompt=request.prompt if request else "",
        seed=request.seed if request else None,
        guidance=request.guidance if request else None,
        width=plan.width,
        height=plan.height,
        images=plan.images,
        half=half,
        timesteps=tuple(one.timestep for one in recorder.passes),
        tokens=prompt_tokens(pipeline, request.prompt) if request else (),
        overhead_ms=recorder.seconds * 1000,
        layers=plan.layers,
        frames=frames,
    )


def prompt_tokens(pipeline: StableDiffusionXLPipeline, prompt: str) -> tuple[str, ...]:
    """The tokens that the text encoders read, from start to end; SDXL's two tokenizers agree on them."""
    tokenizer = pipeline.tokenizer
    ids = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    return tuple(tokenizer.convert_ids_to_tokens(ids))


def capture(
    model: LoadedModel,
    request: GenerationRequest,
    plan: AttentionPlan,
    half: str = "conditional",
    *,
    on_step: Callable[[Step], None] | None = None,
    cancel: threading.Event | None = None,
    num_previews: int = MAX_PREVIEWS,
) -> tuple[GenerationResult, AttentionRecord]:
    """Draw the request's pictures, the same as without a recorder, and record their attention."""
    request = _planned(model, request, plan)
    with record(model, plan, half, request=request) as recorder:
        result = generate(request, model, on_step=on_step, cancel=cancel, num_previews=num_previews)
    return result, recorder.record


def _planned(model: LoadedModel, request: GenerationRequest, plan: AttentionPlan) -> GenerationRequest:
    """The request with its defaults filled in; UserError, before the run, for what cannot be recorded."""
    request = resolve(request, model.card)
    if request.steps != plan.steps:
        raise UserError(f"the plan is for {plan.steps} steps and the run has {request.steps}; make both the same")
    if PRESETS[request.preset].compiled and model.device.type == "cuda":
        raise UserError(f"the preset {request.preset} compiles the U-Net, which hides its layers; choose quality")
    return request


@torch.inference_mode()
def same_input(
    teacher: LoadedModel,
    student: LoadedModel,
    request: GenerationRequest,
    student_plan: AttentionPlan,
    teacher_plan: AttentionPlan,
    *,
    on_step: Callable[[Step], None] | None = None,
    cancel: threading.Event | None = None,
    num_previews: int = MAX_PREVIEWS,
) -> tuple[GenerationResult, AttentionRecord, AttentionRecord]:
    """The student draws; the teacher then gets, step by step, exactly the inputs that the student had.

    Two free runs drift apart, and so does their attention. Here only the networks differ. Both records are of the
    conditional half; the teacher runs on that half alone.
    """
    request = _planned(student, request, student_plan)
    with record(student, student_plan, request=request) as recorder:
        result = generate(request, student, on_step=on_step, cancel=cancel, num_previews=num_previews)
    seen = recorder.passes
    placement, unet = teacher.place(request), teacher.pipeline.unet
    with teacher.lock:
        placement.enter("text", teacher)
        context, _, pooled, _ = teacher.pipeline.encode_prompt(
            request.prompt,
            num_images_per_prompt=request.images,
            do_classifier_free_guidance=False,
            device=teacher.device,
        )
        sizes = torch.tensor([request.height, request.width, 0, 0, request.height, request.width])  # no crop
        added = {"text_embeds": pooled, "time_ids": sizes.repeat(request.images, 1).to(teacher.device, teacher.dtype)}
        placement.enter("unet", teacher)
        with record(teacher, teacher_plan, request=request) as watching, torch.compiler.set_stance("force_eager"):
            for one in seen:
                sample = one.sample.to(teacher.device, teacher.dtype)
                noise = unet(sample, one.timestep, context, added_cond_kwargs=added).sample
                check_prediction(noise, teacher, (context, pooled))
    return result, recorder.record, watching.record
