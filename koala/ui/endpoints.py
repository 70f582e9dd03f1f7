"""The named endpoints /generate and /compare: typed, documented, the same core that the buttons call."""

import dataclasses
from collections.abc import Sequence
from contextlib import closing

import gradio as gr

from koala.request import GenerationRequest, RequestError
from koala.ui import stage
from koala.ui.messages import complain
from koala.ui.session import Session


def _draw(session: Session, requests: Sequence[GenerationRequest]) -> tuple[list, list[list[dict]]]:
    """Results and their PNG files, in the order of the requests."""
    results = {}
    with closing(session.run(requests)) as updates:
        for update in updates:
            results |= update.results
    ordered = [results[k] for k in sorted(results)]
    compared = [r.request for r in ordered] if len(ordered) > 1 else ()
    return ordered, [stage.save(r, compared) for r in ordered]


def _fields(values: dict) -> dict:
    """Those of a function's arguments that are fields of a request."""
    return {f.name: values[f.name] for f in dataclasses.fields(GenerationRequest) if f.name in values}


def add_endpoints(session: Session) -> None:
    """Add both endpoints to the Blocks that is being built."""

    def generate(
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
            request = session.check(GenerationRequest(**given))
            results, files = _draw(session, [request])
        except Exception as error:
            raise complain(error) from None
        from koala import report

        return [stage.file_data(p) for p in files[0]], report.entry(results[0], [p.name for p in files[0]])

    def compare(
        models: list[str],
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
        """Draw the same prompt with several models on the same noise. Returns all PNG files, model by model, and JSON
        with every model's times, the judge's claims and the speed-up against the first model."""
        given = _fields(locals())
        try:
            if not isinstance(models, list):
                raise RequestError('models must be a list of names, for example ["tiny-sdxl", "tiny-koala-700m"]')
            requests = [GenerationRequest(model=m, **given) for m in models]
            for request in requests:
                session.check(request)
            if len(requests) < 2:
                from koala.compare import same_noise

                same_noise(requests)  # says what a comparison needs
            results, files = _draw(session, requests)
        except Exception as error:
            raise complain(error) from None
        from koala import report

        names = [[p.name for p in paths] for paths in files]
        return [stage.file_data(p) for paths in files for p in paths], report.comparison(results, names)

    for function in (generate, compare):
        gr.api(function, concurrency_id="gpu", concurrency_limit=1)
