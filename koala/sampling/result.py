"""GenerationResult, and the PNG that carries its whole request, written and read back."""

import hashlib
import io
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePath

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from koala.errors import UserError
from koala.files.outputs import new_file
from koala.hardware.memory_plan import Plan
from koala.request import MAX_SIDE, GenerationRequest, Timing
from koala.sampling.previews import Frame

KEY = "koala"  # the PNG text chunk that holds the JSON; "parameters" holds the same as text, for users and other UIs


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """Pictures of one request, with everything that made them. Picture k has seed request.seed + k."""

    request: GenerationRequest  # with every default filled in
    images: tuple[Image.Image, ...]
    timing: Timing
    parameters: int  # of the U-Net
    revision: str  # hub commit, or "local"
    dtype: str
    device: str
    runtime: str = "torch"  # or "onnx"
    versions: dict[str, str] = field(default_factory=dict)
    lora_sha256: str | None = None  # of the LoRA's file
    lora_layers: str | None = None  # how many of the LoRA's layers this model has
    weights_sha256: str | None = None  # of a model folder's files, for folders of pictures
    unread: dict[str, str] = field(default_factory=lambda: {"prompt": "", "negative_prompt": ""})  # ends of the prompts
    plan: Plan | None = None  # how it was placed in memory; None where another runtime decides
    frames: tuple[Frame, ...] = ()  # of the first picture, after every step that showed a preview; empty without them

    @property
    def asked(self) -> str:
        """The prompt as far as the text encoders read it, without a word that was cut in two."""
        unread = self.unread["prompt"]
        read = self.request.prompt.removesuffix(unread)
        if unread[:1].isalnum() and read[-1:].isalnum():
            read = read.rstrip("".join({letter for letter in read if letter.isalnum()}))
        return read

    def metadata(self, index: int, compared: tuple[GenerationRequest, ...] = ()) -> dict:
        """What picture `index` carries: its own one-picture request, and those of a comparison that it was part of."""

        return {
            "request": asdict(shared(self.request)) | {"seed": self.request.seed + index, "images": 1},
            "folders": [folder_mark(r.model) for r in (self.request, *compared)],
            "weights_sha256": self.weights_sha256,
            "lora_sha256": self.lora_sha256,
            "unread": self.unread,
            "revision": self.revision,
            "dtype": self.dtype,
            "device": self.device,
            "runtime": self.runtime,
            "versions": self.versions,
            "compared": [asdict(shared(c)) for c in compared],
        }

    def png(self, index: int = 0, compared: tuple[GenerationRequest, ...] = ()) -> bytes:
        """Picture `index` as a PNG file with its metadata."""
        metadata = self.metadata(index, compared)
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text(KEY, json.dumps(metadata))  # ASCII: \u escapes keep any prompt whole in a tEXt chunk
        chunks.add_itxt("parameters", parameters_text(metadata))
        buffer = io.BytesIO()
        self.images[index].save(buffer, "PNG", pnginfo=chunks)
        return buffer.getvalue()

    def save(self, path: Path, compared: tuple[GenerationRequest, ...] = ()) -> list[Path]:
        """Write one PNG per picture: `path`, then `path` with -2, -3 ... before its ending."""
        paths = [path.with_stem(f"{path.stem}-{k + 1}") if k else path for k in range(len(self.images))]
        for index, target in enumerate(paths):
            with new_file(target) as file:
                file.write_bytes(self.png(index, compared))
        return paths


def shared(request: GenerationRequest) -> GenerationRequest:
    """The request as stored in a picture, which may be published: models and LoRAs by name, without local folders."""
    model = PurePath(request.model).name if PurePath(request.model).is_absolute() else ""
    lora = request.lora and PurePath(request.lora).name
    return replace(request, model=model or request.model, lora=lora)


def folder_mark(model: str) -> str | None:
    """A mark that tells folders of one name apart without revealing their paths; None for a model's name."""
    return hashlib.sha256(os.fsencode(model)).hexdigest()[:16] if PurePath(model).is_absolute() else None


def _quoted(value: object) -> str:
    """A setting of the `parameters` text, quoted as AUTOMATIC1111's readers expect where it holds their marks."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if {",", ":", "\n"} & {*text} else text


def parameters_text(metadata: dict) -> str:
    """The `parameters` text that other picture tools read: prompt, negative prompt, then one line of settings."""
    request = metadata["request"]
    lines = [request["prompt"]]
    if request["negative_prompt"]:
        lines.append(f"Negative prompt: {request['negative_prompt']}")
    settings = {
        "Steps": request["steps"],
        "Sampler": request["scheduler"],
        "CFG scale": request["guidance"],
        "Seed": request["seed"],
        "Size": f"{request['width']}x{request['height']}",
        "Model": request["model"],
        **({"Preset": request["preset"]} if request["preset"] != "quality" else {}),
        **({"LoRA": f"{request['lora']} ({request['lora_strength']:g})"} if request["lora"] else {}),
        "Model revision": metadata["revision"],
        "Dtype": metadata["dtype"],
        **({"Runtime": metadata["runtime"]} if metadata["runtime"] != "torch" else {}),
        **{f"{name} version": version for name, version in metadata["versions"].items()},
    }
    return "\n".join([*lines, ", ".join(f"{k}: {_quoted(v)}" for k, v in settings.items())])


def _are_marks(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(mark, str | None) for mark in values)


def read_png(source: Path | str | bytes) -> dict:
    """Metadata of a PNG that this project wrote: "request" and "compared" are GenerationRequests again.

    Raises UserError for a file that is broken, no PNG, or carries no request of ours.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=("PNG",)) as picture:
            if max(picture.size) > MAX_SIDE:  # not one of ours, and its pixels might fill the memory
                raise ValueError(f"it has {picture.width}x{picture.height} px, pictures from here at most {MAX_SIDE}")
            picture.load()
            text = picture.text.get(KEY)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"this file is not a readable PNG ({error}); choose the original file, not a copy") from error
    if text is None:
        raise UserError(
            "this PNG carries no KOALA settings; choose a picture that was saved here, "
            "as the file itself and not as a screenshot"
        )
    try:
        metadata = json.loads(text)
        metadata["request"] = GenerationRequest.from_dict(metadata["request"])
        for name in ("lora_sha256", "weights_sha256"):
            if not isinstance(metadata.setdefault(name, None), str | None):
                raise TypeError("a hash is text")
        metadata.setdefault("runtime", "torch")
        if not _are_marks(metadata.setdefault("folders", [])):
            raise TypeError("folders are marked by text")
        metadata["compared"] = [GenerationRequest.from_dict(c) for c in metadata.get("compared", [])]
    except UserError as error:
        raise UserError(f"the settings in this PNG cannot be used: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError("the settings in this PNG are damaged; choose the original file") from error
    return metadata
