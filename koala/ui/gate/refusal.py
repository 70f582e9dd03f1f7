"""Refusals of requests before Gradio sees them: one sentence, in the form that Gradio's page and clients read."""

from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Scope

UPLOAD = "/gradio_api/upload"


def refused(scope: Scope, status: int, sentence: str) -> Response:
    """The answer with this status. The page shows `detail`, or the whole text for an upload."""
    if path_of(scope) == UPLOAD:
        return PlainTextResponse(sentence, status)
    return JSONResponse({"detail": sentence}, status)


def invalid(sentence: str, parameter: str = "data") -> Response:
    """A 422 in the form of Gradio's own validation, the only one whose message gradio_client passes on."""
    detail = {"__type__": "validate", "is_valid": False, "message": sentence, "parameter_name": parameter}
    return JSONResponse({"detail": [detail]}, 422)


def path_of(scope: Scope) -> str:
    """The path without a trailing slash: Gradio serves both."""
    return scope["path"].rstrip("/")
