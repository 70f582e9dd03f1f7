"""A model's recommended settings, from a folder's koala.json or a single file's header."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from koala.errors import UserError
from koala.files.fields import Fields
from koala.request import GenerationRequest

SETTINGS = ("scheduler", "steps", "guidance", "width", "height")
NOISINGS = ("ddpm", "straight")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Recommended settings; every field is empty where the file does not give it."""

    defaults: Mapping[str, object] = field(default_factory=dict)  # of SETTINGS: all or none
    noising: str = ""
    negative_prompt: str = ""  # a suggestion
    teacher: str = ""

    @property
    def settings(self) -> dict[str, object]:
        """The fields of a ModelCard that it sets."""
        if not self.defaults:
            return {}
        noising = {"noising": self.noising} if self.noising else {}
        return {**self.defaults, "negative_prompt": self.negative_prompt, **noising}


def read_drawing(own: Fields) -> Drawing:
    """The fields of a JSON object, each checked; UserError for one that no model could be drawn with."""
    return Drawing(
        defaults=read_defaults(own.object("defaults")) if own.values.get("defaults") else {},
        noising=own.text("noising", "", of=("", *NOISINGS)),
        negative_prompt=own.text("negative_prompt", "", like=r"[\s\S]*"),
        teacher=own.text("teacher", ""),
    )


def read_defaults(own: Fields) -> dict[str, object]:
    """A model's default settings, checked as a request's are."""
    own.only(SETTINGS)
    for name in SETTINGS:
        if own.values.get(name) is None:
            raise own.wrong(name, "a setting")
    try:
        GenerationRequest(model="any", prompt="any", **own.values)
    except UserError as error:
        raise UserError(f"{own.file} is damaged: in its defaults {error}; {own.remedy}") from error
    return dict(own.values)
