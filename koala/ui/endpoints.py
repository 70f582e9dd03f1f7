"""The named endpoints /generate, /compare and /attention: typed, documented, the core that the buttons call."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing

import gradio as gr
from gradio.context import LocalContext

from koala.errors import UserError
from koala.request import GenerationRequest
from koala.sampling.resolve import one_each, same_noise
from koala.ui import stage
from koala.ui.attention.recording import Recording
from koala.ui.limits import check_public_models
from koala.ui.messages import complain
from koala.ui.session import Session
from koala.ui.visitors import listens


def _run(session: Session, requests: Sequence[GenerationRequest], draw: Callable | None = None, **kind: str) -> list:
    """Results in the order of the requests. A client that disconnects leaves the line or ends its run."""
    asked, results = LocalContext.request.get(None), {}
    visitor = session.device.visitor(asked) if asked else ""
    with closing(session.device.run(requests, draw=draw, visitor=visitor, **kind)) as updates:
        for update in updates:
            if not listens():
                raise UserError("the client of this request has disconnected")
            results |= update.results
    return [results[k] for k in sorted(results)]


def _draw(session: Session, requests: Sequence[GenerationRequest]) -> tuple[list, list[list[dict]]]:
    """Results and their PNG files, in the order of the requests."""
    ordered = _run(session, requests)
    compared = [r.request for r in ordered] if len(ordered) > 1 else ()
    return ordered, [stage.save(r, compared) for r in ordered]


def _fields(values: dict) -> dict:
    """The arguments of a function that are fields of a request."""
    return {f.name: values[f.name] for f in dataclasses.fields(GenerationRequest) if f.name in values}


def _captured(session: Session, requests: Sequence[GenerationRequest], stages: list[str] | None, same_input: bool):
    """The capture of these requests, which is not stored, and their results."""
    recording = Recording(stages=stages, same_input=same_input, public=not session.local)
    ((captured, results),) = _run(session, requests, recording.draw, kind="attention")
    return captured, results


class Endpoints:
    """Each method is an endpoint of the same name; its signature and docstring are its API documentation."""

    def __init__(self, session: Session):
        self.session = session

    def generate(
        self,
        model: str,
        prompt: str,
        negative_prompt: str = "",
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        scheduler: str | None = None,
        width: int | None = None,
        height: int | None = None,
        images: int = 1,
        preset: str = "quality",
        lora: str | None = None,
        lora_strength: float = 1.0,
    ) -> tuple[list[dict], dict]:
        """Draw pictures with one model. Returns the PNG files, each with its whole request, and the result as JSON."""
        given = _fields(locals())
        try:
            request = self.session.catalogue.check(GenerationRequest(**given))
            results, files = _draw(self.session, [request])
        except Exception as error:
            raise complain(error) from None
        from koala.sampling import report

        return [stage.file_data(p) for p in files[0]], report.entry(results[0], [p.name for p in files[0]])

    def compare(
        self,
        models: list[str],
        prompt: str,
        negative_prompt: str = "",
        seed: int = 0,
        steps: int | list[int] | None = None,
        guidance: float | list[float] | None = None,
        scheduler: str | None = None,
        width: int | None = None,
        height: int | None = None,
        images: int = 1,
        preset: str = "quality",
        lora: str | None = None,
        lora_strength: float = 1.0,
    ) -> tuple[list[dict], dict]:
        """Draw the same prompt with several models on the same noise. Returns all PNG files, model by model, and JSON
        with every model's times, the judge's claims and the speed-up against the first model. Steps and guidance are
        one number for all models, or a list with one for each; without them every model has its own."""
        given = _fields(locals())
        try:
            if not isinstance(models, list):
                raise UserError('models must be a list of names, for example ["tiny-sdxl", "tiny-koala-700m"]')
            if not self.session.local:
                check_public_models(models)
            own = {field: one_each(field, given.pop(field), len(models)) for field in ("steps", "guidance")}
            requests = [
                GenerationRequest(model=model, steps=steps, guidance=guidance, **given)
                for model, steps, guidance in zip(models, *own.values(), strict=True)
            ]
            for request in requests:
                self.session.catalogue.check(request)
            if len(requests) < 2:
                same_noise(requests)  # says what a comparison needs
            results, files = _draw(self.session, requests)
        except Exception as error:
            raise complain(error) from None
        from koala.sampling import report

        names = [[p.name for p in paths] for paths in files]
        return [stage.file_data(p) for paths in files for p in paths], report.comparison(results, names)

    def attention(
        self,
        models: list[str],
        prompt: str,
        stages: list[str] | None = None,
        pixel: list[float] | None = None,
        step: int | str | None = None,
        head: str | int = "mean",
        same_input: bool = False,
        negative_prompt: str = "",
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        scheduler: str | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> tuple[list[dict], dict]:
        """Draw a prompt with one model, or with two on the same noise, and show what the patch under a pixel [x, y]
        attends to: in the last self-attention layer of each stage, at a step counted from 1 or in the "mean" of all, in
        one head counted from 1 or in the "mean" or "max" of all. With two models the steps of the longer run count, and
        the other's step of the most similar noise is taken. Returns the pictures, then the figure of all stages, and
        every number as JSON. With same_input the teacher gets the input of its student."""
        given = _fields(locals())
        try:
            if not isinstance(models, list) or not 1 <= len(models) <= 2:
                raise UserError('models must be one or two names, for example ["tiny-sdxl", "tiny-koala-700m"]')
            requests = [self.session.catalogue.check(GenerationRequest(model=m, **given)) for m in models]
            capture, results = _captured(self.session, requests, stages, same_input)
            from koala.ui.attention import api as attention_api
            from koala.ui.attention.files import png

            answer = attention_api.answer(capture, pixel, step, head)
            for model, result in zip(answer["models"], results, strict=True):
                model["unread"] = result.unread
            figure = stage.keep(png(attention_api.picture(capture, answer, pixel)), "koala-attention.png")
        except Exception as error:
            raise complain(error) from None
        files = [stage.save(r, [r.request for r in results] if len(results) > 1 else ())[0] for r in results]
        return [stage.file_data(p) for p in (*files, figure)], answer


def add_endpoints(session: Session) -> None:
    """Add the endpoints to the current Blocks."""
    own = Endpoints(session)
    for function in (own.generate, own.compare, own.attention):
        gr.api(function, concurrency_limit=None)  # their runs wait in the session's own line, like the page's
