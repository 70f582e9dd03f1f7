"""Where a model's files are: an embedded or named folder, or the hub's cache on this machine."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from koala.registry import ModelCard
from koala.request import RequestError

# One weights file per component, in the order in which we would rather have it.
_WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
_SMALL = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{part}/config.json" for part in _WEIGHTS),
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer_2/vocab.json",
    "tokenizer_2/merges.txt",
)


class NotOnThisMachine(RequestError):
    """The model is known but its files are not here; the message says how to get them."""


@dataclass(frozen=True, kw_only=True)
class Location:
    """A diffusers folder, with the half-precision variant or without, at one revision."""

    folder: Path
    variant: str | None
    revision: str  # hub commit, or "local"

    def weights(self, component: str) -> Path:
        """The one safetensors file of a component."""
        ending = f".{self.variant}.safetensors" if self.variant else ".safetensors"
        return self.folder / component / f"{_WEIGHTS[component]}{ending}"


def _missing(folder: Path, variant: str | None) -> list[str]:
    ending = f".{variant}.safetensors" if variant else ".safetensors"
    wanted = [*_SMALL, *(f"{part}/{stem}{ending}" for part, stem in _WEIGHTS.items())]
    return [name for name in wanted if not (folder / name).is_file()]


def _folder(folder: Path, name: str) -> Location:
    missing, variant = min(((_missing(folder, v), v) for v in (None, "fp16")), key=lambda found: len(found[0]))
    if missing:
        raise RequestError(
            f"{name} is not a whole SDXL folder: {missing[0]} is missing"
            + (f", and {len(missing) - 1} more files" if len(missing) > 1 else "")
            + ". Save it again with pipeline.save_pretrained(folder, safe_serialization=True), or copy what is missing"
        )
    return Location(folder=folder, variant=variant, revision="local")


def locate(card: ModelCard) -> Location:
    """The model's files on this machine.

    Raises NotOnThisMachine with the command that fetches them, RequestError for a folder that is not whole.
    """
    if Path(card.source).is_absolute():
        return _folder(Path(card.source), card.name)
    index = try_to_load_from_cache(card.source, "model_index.json")
    if not isinstance(index, str):
        raise NotOnThisMachine(
            f"{card.name} is not on this machine. With a network, fetch it once: "
            f"hf download {card.source} --include '*.json' '*.txt' '*.fp16.safetensors'"
        )
    found = _folder(Path(index).parent, card.name)
    return Location(folder=found.folder, variant=found.variant, revision=found.folder.name)


def replacements(card: ModelCard) -> dict[str, Path]:
    """Component -> file in the hub's cache that replaces the source's own U-Net or VAE."""
    found = {}
    if card.unet_file:
        repo, _, file = card.unet_file.rpartition("/")
        path = try_to_load_from_cache(repo, file)
        if not isinstance(path, str):
            raise NotOnThisMachine(f"{card.name} needs its own U-Net; fetch it once: hf download {repo} {file}")
        found["unet"] = Path(path)
    if card.vae:
        path = try_to_load_from_cache(card.vae, "diffusion_pytorch_model.safetensors")
        if not isinstance(path, str):
            raise NotOnThisMachine(f"{card.name} needs the VAE {card.vae}; fetch it once: hf download {card.vae}")
        found["vae"] = Path(path)
    return found


def availability(card: ModelCard) -> tuple[bool, str]:
    """Whether the model can run here now, and what it needs if not."""
    try:
        locate(card)
        replacements(card)
    except RequestError as error:
        return False, str(error)
    return True, "on this machine"
