"""The limits of a public app, where others wait for the same device, and the labels that state them."""

from collections.abc import Sequence

from koala.benchmark.matrix import Matrix
from koala.errors import UserError
from koala.models.cards import ModelCard
from koala.request import MAX_IMAGES, MAX_SIDE, MAX_STEPS, GenerationRequest

PUBLIC_STEPS = 50
PUBLIC_PICTURES = 4  # in one request, of the model's own size; fewer of a larger one
PUBLIC_MODELS = 4  # of one comparison
PUBLIC_UPLOAD = 10  # MB
PUBLIC_SECONDS = 30  # of one benchmark
OWN_MACHINE = "; on your own machine there is no such limit"


def most_steps(*, local: bool) -> int:
    """The largest number of steps."""
    return MAX_STEPS if local else PUBLIC_STEPS


def most_pictures(*, local: bool) -> str:
    """How many pictures one request may have, and how large they may be."""
    if local:
        return f"At most {MAX_IMAGES} images, {MAX_SIDE} px wide and high."
    return f"At most {PUBLIC_PICTURES} images of the first model's size on this server, or fewer larger ones."


def largest_picture(*, local: bool) -> str:
    """How large the picture of each model may be."""
    if local:
        return f"At most {MAX_SIDE} px wide and high."
    return f"At most {PUBLIC_PICTURES} times the pixels of the first model's size on this server."


def largest_upload(*, local: bool) -> str:
    """The end of an upload's label."""
    return "" if local else f", at most {PUBLIC_UPLOAD} MB"


def check_public(request: GenerationRequest, card: ModelCard) -> None:
    """UserError for a request that takes too long for a public app, with the limit."""
    steps = card.steps if request.steps is None else request.steps
    if steps > PUBLIC_STEPS:
        raise UserError(f"this public server draws at most {PUBLIC_STEPS} steps, not {steps}{OWN_MACHINE}")
    width, height = request.width or card.width, request.height or card.height
    if request.images * width * height > PUBLIC_PICTURES * card.width * card.height:
        raise UserError(
            f"this public server draws at most {PUBLIC_PICTURES} pictures of {card.width}x{card.height} px with "
            f"{card.title} at once, or fewer larger ones, not {request.images} of {width}x{height} px{OWN_MACHINE}"
        )


def check_public_models(names: Sequence[str]) -> None:
    """UserError for a comparison of too many models for a public app."""
    if len(names) > PUBLIC_MODELS:
        raise UserError(
            f"this public server compares at most {PUBLIC_MODELS} models at once, not {len(names)}{OWN_MACHINE}"
        )


def check_public_benchmark(matrix: Matrix, cards: Sequence[ModelCard]) -> None:
    """UserError for a benchmark that takes a public app's device for too long, or draws more than a request may."""
    limit = matrix.time_limit
    if limit is None or not limit <= PUBLIC_SECONDS:  # NaN is within no limit
        asked = "as long as it likes" if limit is None else f"{limit:g} s"
        raise UserError(f"this public server measures for at most {PUBLIC_SECONDS} s, not {asked}{OWN_MACHINE}")
    check_public_models(matrix.models)
    for card in cards:
        for size in matrix.sizes or (None,):
            for images in matrix.batch:
                check_public(matrix.request(card.name, size, images), card)
