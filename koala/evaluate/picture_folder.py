"""A folder of pictures in the layout that T2I-CompBench or GenEval reads; a stopped run resumes.

T2I-CompBench: DIR/samples/PROMPT_000000.png, numbered through all prompts; its scripts read the prompt up to the
first underscore and sort by the number. GenEval: DIR/00000/metadata.jsonl and DIR/00000/samples/00000.png.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from koala.errors import UserError
from koala.evaluate.drawing import batches, draw, how_drawn
from koala.evaluate.prompt_files import Prompt
from koala.evaluate.settings import Settings, request
from koala.files.hashing import digest
from koala.files.outputs import new_file
from koala.models.export_manifest import MANIFEST
from koala.models.layout import STEMS
from koala.models.loaded import LoadedModel
from koala.models.locate import locate
from koala.request import GenerationRequest
from koala.sampling.generate import resolve
from koala.sampling.result import folder_mark, read_png, shared

IMAGES = {"t2i-compbench": 10, "geneval": 4}  # per prompt, as the benchmarks count them
PROMPTS = 100  # of the shapes world, without a file of prompts
LONGEST = 230  # bytes of a file name: file systems allow 255, and the name is longer while the file is written


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture to draw and where it belongs."""

    request: GenerationRequest
    file: Path


def _t2i_compbench(prompts: list[Prompt], images: int) -> list[str]:
    files = []
    for number, prompt in enumerate(prompts):
        if bad := next((c for c in "/_\0" if c in prompt.text), None):
            raise UserError(f"T2I-CompBench keeps the prompt in the file name, which {bad!r} breaks: {prompt.text!r}")
        for k in range(images):
            name = f"{prompt.text}_{number * images + k:06}.png"
            if len(name.encode()) > LONGEST:
                raise UserError(
                    f"T2I-CompBench keeps the prompt in the file name, and this is too long: {prompt.text!r}"
                )
            files.append(f"samples/{name}")
    return files


def _geneval(prompts: list[Prompt], images: int) -> list[str]:
    for prompt in prompts:
        if not prompt.record or not {"tag", "include"} <= set(prompt.record):
            raise UserError(
                f'GenEval scores by the "tag" and "include" of each prompt, and {prompt.text!r} has none; '
                "give its own prompts/evaluation_metadata.jsonl with --prompts"
            )
    return [f"{number:05}/samples/{k:05}.png" for number in range(len(prompts)) for k in range(images)]


_LAYOUTS = {"t2i-compbench": _t2i_compbench, "geneval": _geneval}


def planned(model: LoadedModel, prompts: list[Prompt], settings: Settings, folder: Path) -> list[Picture]:
    """Every picture of the folder; image k of every prompt starts from the noise of the settings' seed + k."""
    images = settings.images or IMAGES[settings.layout]
    files = _LAYOUTS[settings.layout](prompts, images)
    requests = [
        resolve(request(model.card.name, prompt.text, settings, offset=k), model.card)
        for prompt in prompts
        for k in range(images)
    ]
    return [Picture(request=r, file=folder / f) for r, f in zip(requests, files, strict=True)]


def _content(model: LoadedModel) -> str | None:
    """SHA-256 of the files that define a local model; None if a revision identifies it."""
    if model.card.on_hub or model.card.embedded:
        return None
    place = locate(model.card)
    if place.exported:
        files = [place.folder / MANIFEST, *sorted(place.folder.glob("*/*.json"))]
    else:
        files = [*(file for part in STEMS for file in place.files(part)), *place.configs.values()]
    return hashlib.sha256(" ".join(map(digest, files)).encode()).hexdigest()


def _there(picture: Picture, revision: str, content: str | None) -> bool:
    """Whether the picture exists already; UserError for one that was drawn with other settings."""
    if not picture.file.exists():
        return False
    try:
        stored = read_png(picture.file)
    except UserError:
        return False  # cut off, or not ours: drawn again
    wanted, own = picture.request, stored["request"]
    others = [name for name, value in asdict(shared(wanted)).items() if value != getattr(shared(own), name)]
    if content and stored["weights_sha256"]:  # the place and name of its folder do not matter
        others = ["model"] * (stored["weights_sha256"] != content) + [name for name in others if name != "model"]
    elif next(iter(stored["folders"]), folder_mark(own.model)) != folder_mark(wanted.model):  # older ones have a path
        others = ["model", *others]
    others += ["revision"] if stored["revision"] != revision else []
    if others:
        raise UserError(
            f"{picture.file} was drawn with other settings: {', '.join(dict.fromkeys(others))}; choose a new folder "
            "with --out, the same settings, or remove the picture to have it drawn again"
        )
    return True


def draw_folder(
    model: LoadedModel, prompts: list[Prompt], settings: Settings, folder: Path, say: Callable[[str], None]
) -> dict:
    """Draw the pictures that the folder lacks; every PNG carries its request."""
    wanted = planned(model, prompts, settings, folder)
    content = _content(model)
    missing = [p for p in wanted if not _there(p, model.revision, content)]
    say(f"{len(wanted) - len(missing)} of {len(wanted)} pictures are there already")
    if settings.layout == "geneval":
        for number, prompt in enumerate(prompts):
            with new_file(folder / f"{number:05}" / "metadata.jsonl") as file:
                file.write_text(json.dumps(prompt.record))
    done = 0
    for batch in batches([p.request for p in missing], settings.batch_size):
        for picture, result in zip(missing[done : done + len(batch)], draw(model, batch), strict=True):
            with new_file(picture.file) as file:
                file.write_bytes(replace(result, weights_sha256=content).png())
        done += len(batch)
        say(f"{model.card.name}: {done} of {len(missing)} missing pictures")
    return {
        "suite": "prompts",
        "model": model.card.name,
        "layout": settings.layout,
        "folder": str(folder),
        "num_prompts": len(prompts),
        "images_per_prompt": len(wanted) // len(prompts),
        "drawn": len(missing),
        "found": len(wanted) - len(missing),
        **how_drawn([p.request for p in wanted]),
    }
