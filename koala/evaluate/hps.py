"""HPSv2.1: predicted human preference for a picture given its prompt (arXiv 2306.09341), on open_clip's ViT-H/14.

The score's own package pins old libraries and also loads its base model's weights, which the checkpoint replaces;
here open_clip builds the network and the checkpoint fills it. B pictures or texts.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image

from koala.errors import UserError
from koala.finite import require_finite

REPOSITORY, FILE = "xswu/HPSv2", "HPS_v2.1_compressed.pt"
ARCHITECTURE = "ViT-H-14"


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """HPSv2.1 in memory."""

    model: torch.nn.Module
    picture: Callable[[Image.Image], torch.Tensor]  # -> (3, 224, 224)
    tokens: Callable[[list[str]], torch.Tensor]  # -> (B, 77)
    device: torch.device

    @torch.inference_mode()
    def score(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
        """100 cos of each picture with its own prompt, (B,)."""
        pixels = torch.stack([self.picture(p) for p in pictures]).to(self.device)
        seen = self.model.encode_image(pixels, normalize=True)
        read = self.model.encode_text(self.tokens(list(texts)).to(self.device), normalize=True)
        scores = 100 * (seen * read).sum(1).float()
        require_finite(
            scores, "the score of HPSv2.1", f"remove its weights and fetch them again: hf download {REPOSITORY} {FILE}"
        )
        return scores.cpu()


def load(device: torch.device) -> Scorer:
    """Load the scorer from this machine; UserError gives the command that fetches what is missing."""
    try:
        import open_clip
    except ImportError as error:
        raise UserError("the suite hpsv2 needs open_clip: pip install open_clip_torch") from error
    weights = try_to_load_from_cache(REPOSITORY, FILE)
    if not isinstance(weights, str):
        raise UserError(
            f"the weights of HPSv2.1 (2 GB) are not on this machine. With a network, fetch them once: "
            f"hf download {REPOSITORY} {FILE}"
        )
    # the checkpoint holds tensors only: open_clip reads it with torch's weights-only reader, which runs no code
    try:
        model, picture = open_clip.create_model_from_pretrained(
            ARCHITECTURE, pretrained=weights, image_resize_mode="longest", device=device
        )
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise UserError(
            f"the weights of HPSv2.1 at {weights} cannot be read ({error}); remove the file and fetch it again: "
            f"hf download {REPOSITORY} {FILE}"
        ) from error
    return Scorer(model=model.eval(), picture=picture, tokens=open_clip.get_tokenizer(ARCHITECTURE), device=device)
