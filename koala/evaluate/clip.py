"""CLIPScore and CMMD on a plain transformers CLIPModel, and the folder of pictures that CMMD compares with.

B pictures or texts, D embedding width.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from koala.errors import UserError
from koala.finite import require_finite
from koala.models.reading import check_complete

SCORE_MODEL = "openai/clip-vit-large-patch14"
CMMD_MODEL = "openai/clip-vit-large-patch14-336"
_WEIGHTS = {CMMD_MODEL: "pytorch_model.bin"}  # its repository has no other; only tensors are read, no code runs
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A CLIP in memory. Embeddings are fp32 unit vectors on the CPU."""

    name: str
    model: CLIPModel
    pictures: CLIPImageProcessor
    tokenizer: CLIPTokenizer

    @torch.inference_mode()
    def embed_pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """(B, D): shorter side resized, centre cropped."""
        pixels = self.pictures([p.convert("RGB") for p in pictures], return_tensors="pt")["pixel_values"]
        pooled = self.model.vision_model(pixels.to(self.model.device)).pooler_output
        return self._unit(self.model.visual_projection(pooled))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(B, D): the first 77 tokens."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=77, return_tensors="pt")
        pooled = self.model.text_model(**tokens.to(self.model.device)).pooler_output
        return self._unit(self.model.text_projection(pooled))

    def _unit(self, values: torch.Tensor) -> torch.Tensor:
        require_finite(values, f"what {self.name} sees", "its files are damaged; copy or fetch them again")
        return torch.nn.functional.normalize(values.float(), dim=1).cpu()


def load(name: str, device: torch.device) -> Clip:
    """Load a CLIP by hub id or folder from this machine; UserError gives the command that fetches it."""
    try:
        model, info = CLIPModel.from_pretrained(
            name, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        check_complete(info, Path(name))
        pictures = CLIPImageProcessor.from_pretrained(name, local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(name, local_files_only=True)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if Path(name).is_dir():
            raise UserError(f"{name} is not a complete CLIP folder of transformers ({error})") from error
        raise UserError(
            f"the CLIP {name} is not on this machine. With a network, fetch it once: "
            f"hf download {name} --include '*.json' '*.txt' '{_WEIGHTS.get(name, 'model.safetensors')}'; "
            "or name a folder with --clip"
        ) from error
    return Clip(name=name, model=model.to(device).eval(), pictures=pictures, tokenizer=tokenizer)


def clip_score(pictures: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """100 max(cos, 0) of each picture with its own prompt, (B, D) and (B, D) -> (B,); without the paper's 2.5."""
    return 100 * (pictures * texts).sum(1).clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What CMMD compares with: embeddings (n, D), their source, and the files that are not readable pictures."""

    embeddings: torch.Tensor
    source: str
    broken: tuple[str, ...] = ()

    def report(self) -> dict:
        """Its source and counts, for JSON."""
        return {"source": self.source, "pictures": len(self.embeddings), "broken": list(self.broken)}


def _readable(files: Iterable[Path], broken: list[Path]) -> Iterator[Image.Image]:
    for file in files:
        try:
            with Image.open(file) as picture:
                yield picture.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            broken.append(file)


def read_reference(folder: Path, clip: Clip) -> Reference:
    """Every picture in a folder and its subfolders; broken ones are counted and named, never skipped silently."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; --reference names a folder of pictures")
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in ENDINGS)
    broken: list[Path] = []
    pictures = _readable(files, broken)
    embeddings = []
    while batch := list(islice(pictures, BATCH)):
        embeddings.append(clip.embed_pictures(batch))
    names = tuple(str(f.relative_to(folder)) for f in broken)
    if sum(map(len, embeddings)) < 2:
        trouble = (
            f"{len(names)} of its {len(files)} cannot be read, such as {names[0]}" if names else f"it has {len(files)}"
        )
        raise UserError(f"CMMD needs at least two pictures in {folder} ({', '.join(ENDINGS)}); {trouble}")
    return Reference(embeddings=torch.cat(embeddings), source=str(folder), broken=names)


# --- CMMD: the maximum mean discrepancy between the CLIP embeddings of two sets of pictures (arXiv 2401.09603)

SIGMA = 10.0
SCALE = 1000.0
ROWS = 1024  # of the kernel matrix at a time, to bound memory


@dataclass(frozen=True, kw_only=True)
class CMMD:
    """`minimum_variance` is the paper's estimate: never negative, but biased upwards for few pictures."""

    minimum_variance: float
    unbiased: float


def _kernel_sum(x: torch.Tensor, y: torch.Tensor) -> float:
    """Sum of exp(-|x_i - y_j|^2 / (2 sigma^2)) over all pairs, (n, D) and (m, D)."""
    squares = (rows.square().sum(1)[:, None] + y.square().sum(1) - 2 * rows @ y.T for rows in x.split(ROWS))  # (r, m)
    return sum(float(torch.exp(-s / (2 * SIGMA**2)).sum()) for s in squares)


def cmmd(x: torch.Tensor, y: torch.Tensor) -> CMMD:
    """Of two sets of unit embeddings (n, D) and (m, D), times 1000 (Gretton et al. 2012, eq. 5 and eq. 3)."""
    x, y = x.double().cpu(), y.double().cpu()
    n, m = len(x), len(y)
    xx, yy, xy = _kernel_sum(x, x), _kernel_sum(y, y), _kernel_sum(x, y)
    across = 2 * xy / (n * m)
    return CMMD(
        minimum_variance=SCALE * (xx / n**2 + yy / m**2 - across),
        unbiased=SCALE * ((xx - n) / (n * (n - 1)) + (yy - m) / (m * (m - 1)) - across),
    )
