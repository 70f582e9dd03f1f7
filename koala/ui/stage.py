"""The data of the stage widget (compare/stage.js) as JSON, built up during a run."""

import base64
import copy
import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradio.utils import get_upload_folder
from PIL import Image

from koala.files.outputs import new_file
from koala.models.cards import ModelCard
from koala.request import GenerationRequest
from koala.ui.settings import to_query

if TYPE_CHECKING:
    from koala.sampling.generate import Step
    from koala.sampling.result import GenerationResult

PREVIEW_SIDE = 384  # px
THUMBNAIL = 72  # px


def data_url(picture: Image.Image, side: int, quality: int = 80) -> str:
    """A picture as a small WebP data URL, scaled down to fit `side`."""
    small = picture.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def file_name(model: str, seed: int) -> str:
    """The file name of a downloaded picture, with the last part of the model's folder or hub id."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", model.rstrip("/").rpartition("/")[2]) or "model"
    return f"koala-{plain}-{seed}.png"


def save(result: "GenerationResult", compared: Sequence[GenerationRequest]) -> list[Path]:
    """The result's pictures as PNG files with metadata, in the folder that Gradio serves and cleans."""
    paths = []
    for index in range(len(result.images)):
        name = file_name(result.request.model, result.request.seed + index)
        paths.append(keep(result.png(index, tuple(compared)), name))
    return paths


def keep(content: bytes, name: str) -> Path:
    """A file in the folder that Gradio serves and cleans."""
    folder = Path(get_upload_folder()) / hashlib.sha256(content).hexdigest()
    path = folder.resolve() / name
    with new_file(path, durable=False) as file:
        file.write_bytes(content)
    return path


def file_data(path: Path) -> dict:
    """A PNG or WebP picture's file as Gradio passes files to a browser or a client; Gradio fills in the URL."""
    return {
        "path": str(path),
        "url": None,
        "orig_name": path.name,
        "mime_type": f"image/{path.suffix[1:]}",
        "size": path.stat().st_size,
        "meta": {"_type": "gradio.FileData"},
    }


class Stage:
    """One run on the stage."""

    def __init__(self, requests: Sequence[GenerationRequest], cards: Sequence[ModelCard]):
        first = requests[0]
        self._status = self._step = ""
        self._value = {
            "phase": "running",
            "prompt": first.prompt,
            "seed": first.seed,
            "link": to_query(requests),
            "width": first.width,
            "height": first.height,
            "models": [
                {"name": c.name, "title": c.title, "step": 0, "steps": r.steps, "preview": None, "images": []}
                for r, c in zip(requests, cards, strict=True)
            ],
        }

    @property
    def value(self) -> dict:
        """The stage as it is now; later steps do not change this copy."""
        return copy.deepcopy(self._value) | {"status": self._status}

    def say(self, status: str, phase: str = "running") -> dict:
        """Set the status line; the phases are running, done, stopped and failed."""
        self._status = status
        self._value["phase"] = phase
        if phase != "running":
            for model in self._value["models"]:
                model["preview"] = None if model["images"] else model["preview"]
        return self.value

    def stopped(self) -> dict:
        """The visitor pressed Stop: say so, with the last step if there was one."""
        return self.say(f"Stopped at {self._step}." if self._step else "Stopped.", "stopped")

    def step(self, position: int, step: "Step") -> None:
        """The model at `position` finished a step; its last preview stays if this step has none."""
        model = self._value["models"][position]
        model["step"], model["steps"] = step.index, step.total
        if step.preview:
            model["preview"] = data_url(step.preview, PREVIEW_SIDE)
        self._status = self._step = f"{model['title']}: step {step.index} of {step.total}"

    def result(
        self, position: int, result: "GenerationResult", files: Sequence[Path], denoising: dict | None = None
    ) -> None:
        """The model at `position` is done: its pictures, one file each, replace the preview; its time in seconds, and
        its denoising strip (compare/denoising.py)."""
        model = self._value["models"][position]
        model["step"], model["preview"] = model["steps"], None
        model["images"] = [
            {"src": file_data(path), "file": path.name, "seed": result.request.seed + k} for k, path in enumerate(files)
        ]
        model["seconds"] = round(result.timing.total_ms / 1000, 1)
        model["denoising"] = denoising
