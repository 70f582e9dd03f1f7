"""How a run is measured while it trains: losses on held-out pictures, sample pictures, and the shapes score.

All of it uses the weights that are kept, the moving average. Pictures, captions, noise and timesteps are fixed, so that
a curve moves only because the student does.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from koala.distill.config import DistillConfig
from koala.distill.data.encoded import EncodedData
from koala.distill.draws import Draws, generator
from koala.distill.loss.step import Step
from koala.distill.optimizers import learning
from koala.distill.run.folder import RunFolder
from koala.distill.run.stopping import Interrupted
from koala.distill.timesteps import NUM_TIMESTEPS
from koala.evaluate import drawing, shapes
from koala.files.outputs import new_file
from koala.lora.training import without
from koala.models.loaded import LoadedModel
from koala.models.registry import find
from koala.request import GenerationRequest
from koala.sampling.generate import resolve

BUCKETS = 4  # of timesteps
_MOST = 4  # pictures at once


def student_model(teacher: LoadedModel, unet: UNet2DConditionModel, run: RunFolder) -> LoadedModel:
    """The student with its teacher's text encoders and VAE, and the drawing settings of its own folder."""
    card = find(str(run.student))
    parts = teacher.pipeline.components | {"unet": unet}
    zeros = teacher.pipeline.config.force_zeros_for_empty_prompt
    pipeline = StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return dataclasses.replace(
        teacher,
        card=dataclasses.replace(card, name=run.name),
        pipeline=pipeline,
        spec=card.spec,
        parameters=sum(p.numel() for p in unet.parameters()),
        warm=set(),
    )


class Validator:
    """Measures `student`, whose weights `show` replaces, and draws `teacher` for comparison."""

    def __init__(
        self,
        run: RunFolder,
        config: DistillConfig,
        data: EncodedData,
        step: Step,
        teacher: LoadedModel,
        student: LoadedModel,
        between: Callable[[], object],
    ):
        """`between` is called between two batches: it waits while the app draws, and may raise Interrupted."""
        self.run, self.config, self.data, self.step = run, config, data, step
        self.teacher, self.student = teacher, student
        self.between = between
        self._learning: dict[str, torch.Tensor] = {}  # of a LoRA: what training goes on with
        self.most = min(max(1, config.batch_size // config.accumulation), _MOST)

    @torch.no_grad()
    def show(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Give the student these weights, until `rest`."""
        unet = self.student.pipeline.unet
        own = dict(unet.named_parameters())
        self._learning = {name: p.detach().clone() for name, p in learning(unet)}
        for name, value in weights.items():
            if name in own:
                own[name].copy_(value)

    @torch.no_grad()
    def losses(self, at_step: int) -> dict:
        """A line of metrics.jsonl: every term over the held-back pictures, in all and per quarter of the timesteps."""
        unet, residence = self.student.pipeline.unet, self.teacher.library.residence
        residence.bring([self.step.teacher, unet])
        device = residence.device
        quarter = NUM_TIMESTEPS // BUCKETS
        buckets: dict[str, dict[str, float]] = {}
        half = torch.autocast(device.type, unet.dtype, enabled=unet.dtype != torch.float32)  # data come in fp32
        with self.step.hooked(unet) as losses_of:
            for bucket in range(BUCKETS):
                sums, count = {}, 0
                for size, rows in self._batches():
                    self.between()
                    batch = self.data.validation_batch(size, rows, [0.0] * len(rows))
                    source = generator("validation", bucket, size, rows[0])
                    low = bucket * quarter
                    draws = Draws(
                        noise=torch.randn(batch.latents.shape, generator=source),
                        timesteps=torch.randint(low, low + quarter, (len(rows),), generator=source),
                        picks=(),
                    )
                    with half:
                        losses = losses_of(unet, batch, draws)
                    losses.check(at_step)
                    for name, value in {"loss": losses.total, **losses.terms}.items():
                        sums[name] = sums.get(name, 0.0) + value.item() * len(rows)
                    count += len(rows)
                buckets[f"{low}-{low + quarter - 1}"] = {name: total / count for name, total in sums.items()}
        names = next(iter(buckets.values()))
        means = {name: sum(b[name] for b in buckets.values()) / BUCKETS for name in names}
        return {"kind": "validation", "step": at_step, **means, "timesteps": buckets}

    def _batches(self) -> Iterator[tuple[tuple[int, int], list[int]]]:
        """The held-back pictures, no more at once than a training pass takes."""
        for size, rows in self.data.validation():
            for start in range(0, len(rows), self.most):
                yield size, rows[start : start + self.most]

    @torch.no_grad()
    def rest(self) -> None:
        """Leave on the device only what training needs: the teacher, and where it is the student too, as it was."""
        self.teacher.library.residence.bring([self.step.teacher])
        if not self.config.lora_rank:
            return
        unet = self.student.pipeline.unet
        for parameter in unet.parameters():
            if parameter.is_inference():  # moved while drawing: training could not learn through it
                parameter.data = parameter.data.clone()
        own = dict(unet.named_parameters())
        for name, value in self._learning.items():
            own[name].copy_(value)
        self._learning = {}

    def pictures(self, prefix: str, *, of_teacher: bool = False) -> None:
        """samples/PREFIX-K.png for the K-th prompt, from the noise of seed K; none of them where it is interrupted."""
        if not self.config.validation_prompts:
            return
        model = self.teacher if of_teacher else self.student
        self.run.write_prompts(self.config.validation_prompts)
        guidance = self.config.validation_guidance or None
        side = self.config.resolution or None
        requests = [
            resolve(
                GenerationRequest(
                    model=model.card.name, prompt=text, seed=k, guidance=guidance, width=side, height=side
                ),
                model.card,
            )
            for k, text in enumerate(self.config.validation_prompts)
        ]
        drawn = []
        try:
            for batch in drawing.batches(requests, None):
                self.between()
                with without(model.pipeline.unet) if of_teacher else nullcontext():
                    results = drawing.draw(model, batch)
                for request, result in zip(batch, results, strict=True):
                    drawn.append(self.run.samples / f"{prefix}-{request.seed}.png")
                    with new_file(drawn[-1]) as file:
                        result.images[0].save(file, "PNG")
        except Interrupted:
            for file in drawn:
                file.unlink(missing_ok=True)
            raise

    def score(self, at_step: int) -> dict:
        """A line of metrics.jsonl: the share of prompts of the shapes world with every claim right, per suite."""
        suites = ("one_object", "two_objects")
        count = self.config.score_prompts
        report = shapes.evaluate(self.student, count=count, suites=suites, on_batch=lambda *_: self.between())
        return {"kind": "score", "step": at_step, **{s: report["scores"][s]["all"]["rate"] for s in suites}}
