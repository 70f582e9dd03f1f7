"""A teacher's text encoders and VAE without its U-Net: captions and pictures -> what the U-Net reads."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline

from koala.files.hashing import digest
from koala.finite import require_finite
from koala.hardware.device import give_back
from koala.models.from_torch import load_part
from koala.models.locate import Location, locate
from koala.models.reading import from_files, load_noising, load_tokenizer
from koala.models.registry import find
from koala.models.semantics import zeros_for_empty
from koala.sampling.decoding import scaled
from koala.sampling.nan_causes import check_picture

TEXT = ("text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")
_PIXELS = 4 * 1024**2  # that the VAE encodes at once: about 5 GB in half precision
_PIXELS_ON_CPU = 256**2  # what stays in its caches: batches of 32 take 1.7 times as long per picture
_LARGEST = 32  # pictures of a batch, however small
_CAPTIONS = 64  # of a batch


class Encoders:
    """The text encoders and VAE of a pipeline that needs no U-Net, on `device`."""

    def __init__(self, pipeline: StableDiffusionXLPipeline, device: torch.device | str):
        self.pipeline, self.device = pipeline.to(device), torch.device(device)

    @torch.no_grad()
    def captions(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts -> context (B, 77, C) and pooled (B, P), exactly as the pipeline encodes them.

        An empty text is the negative prompt of guidance: zeros, if the pipeline is configured so.
        """
        context, pooled = [], []
        for start in range(0, len(texts), _CAPTIONS):
            some = list(texts[start : start + _CAPTIONS])
            with _silent_about_length():
                embeds, _, pooled_embeds, _ = self.pipeline.encode_prompt(
                    some, device=self.device, do_classifier_free_guidance=False
                )
            if self.pipeline.config.force_zeros_for_empty_prompt:
                empty = [k for k, text in enumerate(some) if not text]
                embeds[empty] = 0
                pooled_embeds[empty] = 0
            context.append(embeds)
            pooled.append(pooled_embeds)
        embeddings = torch.cat(context), torch.cat(pooled)
        for values in embeddings:
            require_finite(
                values, "what the teacher's text encoders make of a caption", "copy or download their files again"
            )
        return embeddings

    @torch.no_grad()
    def pictures(self, batch: np.ndarray) -> torch.Tensor:
        """Pixels (B, H, W, 3) uint8 -> latents (B, 4, H / 8, W / 8) in the U-Net's scale, the posterior's mode."""
        vae = self.pipeline.vae
        pixels = torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2)
        latents = vae.encode(pixels.to(vae.dtype) / 127.5 - 1).latent_dist.mode()
        check_picture(latents, vae)
        return scaled(vae, latents)

    def batch_size(self, width: int, height: int) -> int:
        """The best batch size of `pictures` for this size in px."""
        pixels = _PIXELS_ON_CPU if self.device.type == "cpu" else _PIXELS
        return max(1, min(_LARGEST, pixels // (width * height)))

    def release(self) -> None:
        """Free the memory; nothing can be encoded afterwards."""
        self.pipeline = None
        give_back()


@contextmanager
def _silent_about_length() -> Iterator[None]:
    """Without a warning for every caption of more than 77 tokens: of detailed ones that is nearly each."""
    talkers = [
        logging.getLogger("diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl"),
        logging.getLogger("transformers.tokenization_utils_base"),
    ]
    before = [talker.level for talker in talkers]
    try:
        for talker in talkers:
            talker.setLevel(logging.ERROR)
        yield
    finally:
        for talker, level in zip(talkers, before, strict=True):
            talker.setLevel(level)


@dataclass(frozen=True, kw_only=True)
class EncoderFiles:
    """The files of a teacher's encoders, and the precision that they are to run in."""

    name: str
    location: Location
    dtype: torch.dtype

    @property
    def identity(self) -> dict:
        """JSON that changes whenever what they make of a picture or a caption does."""
        files = {}
        for part in (*TEXT, "vae"):
            hashes = [digest(file) for file in self.location.files(part)]
            files[part] = hashes[0] if len(hashes) == 1 else hashes
            files[f"{part}/config"] = digest(self.location.configured(part) / "config.json")
        for part in TOKENIZERS:
            for file in sorted((self.location.folder / part).iterdir()):
                if file.suffix in (".json", ".txt"):
                    files[f"{part}/{file.name}"] = digest(file)
        return {"files": files, "zeros_for_empty_prompt": self._zeros, "dtype": str(self.dtype).removeprefix("torch.")}

    @property
    def _zeros(self) -> bool:
        return zeros_for_empty(self.location.folder / "model_index.json")

    def load(self, device: torch.device | str) -> Encoders:
        """Read them into memory. UserError for files that cannot be read."""
        location = self.location
        folder = location.folder
        with from_files(f"the encoders of {self.name}", folder):
            text = {n: load_part(n, location, self.dtype) for n in TEXT}
            words = [part.config.vocab_size for part in text.values()]
            upcast = AutoencoderKL.load_config(location.configured("vae")).get(
                "force_upcast", True
            )  # it overflows in fp16
            pipeline = StableDiffusionXLPipeline(
                unet=None,
                vae=load_part("vae", location, torch.float32 if upcast else self.dtype),
                scheduler=load_noising(folder / "scheduler"),
                force_zeros_for_empty_prompt=self._zeros,
                add_watermarker=False,
                **text,
                **{n: load_tokenizer(folder / n, count) for n, count in zip(TOKENIZERS, words, strict=True)},
            )
        return Encoders(pipeline, device)


def encoder_files(teacher: str, device: torch.device | str) -> EncoderFiles:
    """Those of a model by name, in half precision on a GPU. UserError where the model is not on this machine."""
    card = find(teacher)
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.float16
    return EncoderFiles(name=card.name, location=locate(card), dtype=dtype)
