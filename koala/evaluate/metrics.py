"""The metrics that draw pictures and score them: shapes, clip, hpsv2. Prepared once, then called per model and steps.

A metric's `score(model, steps, guidance)` returns a report: how the pictures were drawn, and "scores". `panels` are its
curves over the number of steps: title -> the path of the number in the scores.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import numpy as np
import torch
from PIL import Image
from scipy.stats import bootstrap

from koala.errors import UserError
from koala.evaluate import clip, hps, shapes
from koala.evaluate.clip import cmmd
from koala.evaluate.drawing import batches, draw, how_drawn, requests_for
from koala.evaluate.prompt_files import prompts_for
from koala.evaluate.settings import Settings
from koala.models.library import Library
from koala.models.loaded import LoadedModel
from koala.request import GenerationRequest
from koala.words import many

PROMPTS = 200  # of the shapes world, without a file of prompts
BOOTSTRAPS, BLOCK = 2000, 1 << 20
Say = Callable[[str], None]


def mean_and_interval(values: np.ndarray) -> dict:
    """Mean of per-picture scores with its 95 % bootstrap interval; BLOCK scores are resampled at a time."""
    mean = float(values.mean())
    if np.ptp(values) == 0:  # one score, or all equal: nothing to resample
        return {"mean": round(mean, 4), "interval": [round(mean, 4)] * 2}
    batch = max(1, BLOCK // len(values))
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=BOOTSTRAPS,
        batch=batch,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return {"mean": round(mean, 4), "interval": [round(float(x), 4) for x in interval]}


def drawn(
    model: LoadedModel, requests: list[GenerationRequest], settings: Settings, say: Say
) -> Iterator[tuple[list[Image.Image], list[str]]]:
    """Pictures and their prompts, batch by batch."""
    done = 0
    for batch in batches(requests, settings.batch_size):
        yield [r.images[0] for r in draw(model, batch)], [r.prompt for r in batch]
        done += len(batch)
        say(f"{model.card.name}, {many(batch[0].steps, 'step')}: {done} of {len(requests)} pictures")


def _guided(settings: Settings, guidance: float | None) -> Settings:
    """The settings with this guidance instead of theirs, if it is given."""
    return settings if guidance is None else replace(settings, guidance=guidance)


class Shapes:
    """Which claims hold, according to the judge."""

    panels = {
        "one object": ("one_object", "all"),
        "two objects, a relation": ("two_objects", "all"),
        "pairs never seen": ("held_out", "all"),
    }

    def __init__(self, settings: Settings, library: Library, say: Say):
        self.settings, self.say = settings, say

    def score(self, model: LoadedModel, steps: int | None = None, guidance: float | None = None) -> dict:
        """The fraction of claims that hold, by kind."""
        chosen = _guided(self.settings, guidance)
        steps = steps or (chosen.steps or (None,))[0]
        which = f"{model.card.name}, {many(steps, 'step')}" if steps else model.card.name
        return shapes.evaluate(
            model,
            count=chosen.num_prompts or 500,
            steps=steps,
            guidance=chosen.guidance,
            scheduler=chosen.scheduler,
            preset=chosen.preset or "quality",
            width=chosen.width,
            height=chosen.height,
            batch_size=chosen.batch_size,
            on_batch=lambda suite, done, total: self.say(f"{which}, {suite}: {done} of {total}"),
        )


class Clip:
    """CLIPScore, and CMMD against a folder's pictures or a teacher's of the same prompts, if either is named."""

    def __init__(self, settings: Settings, library: Library, say: Say):
        self.settings, self.library, self.say = settings, library, say
        self.scorer = clip.load(settings.clip or clip.SCORE_MODEL, library.device)
        self.embedder = None
        self.panels = {"CLIPScore": ("clip_score",)}
        if settings.reference or settings.teacher:
            self.embedder = self.scorer if settings.clip else clip.load(clip.CMMD_MODEL, library.device)
            self.panels["CMMD, unbiased"] = ("cmmd", "unbiased")
        self.reference = clip.read_reference(settings.reference, self.embedder) if settings.reference else None

    def _of_teacher(self, texts: list[str]) -> clip.Reference:
        """The teacher's pictures at its own settings, from other noise than the student's."""
        own = dict.fromkeys(("steps", "guidance", "scheduler", "preset"))
        chosen = replace(self.settings, **own, seed=(self.settings.seed or 0) + len(texts))
        teacher = self.library.get(self.settings.teacher)
        asked = requests_for(teacher, texts, chosen)
        embeddings = [self.embedder.embed_pictures(p) for p, _ in drawn(teacher, asked, chosen, self.say)]
        return clip.Reference(embeddings=torch.cat(embeddings), source=teacher.card.name)

    def score(self, model: LoadedModel, steps: int | None = None, guidance: float | None = None) -> dict:
        """How well the pictures match their prompts and, with a reference, CMMD."""
        settings = _guided(self.settings, guidance)
        texts = [p.text for p in prompts_for(model, settings.prompts, settings.num_prompts, default=PROMPTS)]
        if self.embedder and len(texts) < 2:
            raise UserError("CMMD needs at least two prompts; give more, or neither --teacher nor --reference")
        asked = requests_for(model, texts, settings, steps=steps)
        if self.embedder and self.reference is None:
            self.reference = self._of_teacher(texts)
        values, embeddings = [], []
        for pictures, prompts in drawn(model, asked, settings, self.say):
            seen = self.scorer.embed_pictures(pictures)
            values.append(clip.clip_score(seen, self.scorer.embed_texts(prompts)))
            if self.embedder:
                embeddings.append(seen if self.embedder is self.scorer else self.embedder.embed_pictures(pictures))
        scores, models = {"clip_score": mean_and_interval(torch.cat(values).numpy())}, {"clip_score": self.scorer.name}
        report = {"suite": "clip", "model": model.card.name, "num_prompts": len(texts), **how_drawn(asked)}
        report |= {"scores": scores, "clip": models}
        if self.embedder:
            scores["cmmd"] = asdict(cmmd(torch.cat(embeddings), self.reference.embeddings))
            models["cmmd"] = self.embedder.name
            report["reference"] = self.reference.report()
        return report


class HPSv2:
    """Human preference score v2.1: mean over pictures, as its benchmark prints it."""

    panels = {"HPSv2.1": ("hpsv2.1",)}

    def __init__(self, settings: Settings, library: Library, say: Say):
        self.settings, self.say = settings, say
        self.scorer = hps.load(library.device)

    def score(self, model: LoadedModel, steps: int | None = None, guidance: float | None = None) -> dict:
        """The mean preference for the pictures, with its interval."""
        settings = _guided(self.settings, guidance)
        texts = [p.text for p in prompts_for(model, settings.prompts, settings.num_prompts, default=PROMPTS)]
        asked = requests_for(model, texts, settings, steps=steps)
        values = torch.cat([self.scorer.score(*batch) for batch in drawn(model, asked, settings, self.say)])
        scores = {"hpsv2.1": mean_and_interval(values.numpy())}
        report = {"suite": "hpsv2", "model": model.card.name, "num_prompts": len(texts), **how_drawn(asked)}
        return report | {"scores": scores}


METRICS = {"shapes": Shapes, "clip": Clip, "hpsv2": HPSv2}
