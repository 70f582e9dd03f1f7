"""Where a model's files are on this machine: an embedded or named folder, or the hub's cache. Never the network."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from koala.errors import UserError
from koala.files.hashing import digest
from koala.files.reading import read_object
from koala.files.tensorfiles import Streamed, stored_in
from koala.models.cards import CARDS, ModelCard
from koala.models.export_manifest import Exported
from koala.models.layout import CONFIGS, STEMS, TOKENIZERS, Weights, check_pipeline, choose, listing, needed, weights
from koala.models.registry import find
from koala.models.semantics import check_settings
from koala.models.shipped import check_shipped
from koala.models.single_file.header import Header, read_words, settings_folder
from koala.models.single_file.reading import SingleFile, read_single_file
from koala.unet.config import from_config
from koala.unet.part_configs import check_pipeline_configs
from koala.unet.specs import UNetSpec
from koala.words import gigabytes

log = logging.getLogger(__name__)
_MOST_NEIGHBOURS = 100  # folders next to a single file that are searched


class NotOnThisMachine(UserError):
    """The model is known, but its files are missing here or incomplete; the message says how to get them."""


class NoSettings(UserError):
    """This machine has no SDXL folder that could supply a single file's tokenizers and settings."""


@dataclass(frozen=True, kw_only=True)
class Location:
    """A diffusers folder, with the half-precision variant or without, at one revision; or an export; or one file."""

    folder: Path  # of a single file: where its settings lie
    chosen: Mapping[str, Weights]  # of the components that the folder itself gives
    replaced: Mapping[str, Path]  # component -> the file of another repository that replaces it
    revision: str  # hub commit, or "local"; commits of replaced components follow
    exported: Exported | None = None  # of a folder that holds ONNX files instead of torch's weights
    single: SingleFile | None = None
    lent: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)  # component -> files of another model
    giver: str = ""  # that model, whose tokenizers a single file takes as well

    @property
    def variant(self) -> str | None:
        """Of the folder's own U-Net, as diffusers' from_pretrained expects it."""
        return self.chosen["unet"].variant if "unet" in self.chosen else None

    def files(self, component: str) -> tuple[Path, ...]:
        """The safetensors of a component: one file, or its shards."""
        if self.exported:
            raise UserError(
                f"{self.folder} is an export: ONNX files, no weights for torch; name the model that it was made of: "
                f"{self.exported.model}"
            )
        if self.single:
            return self.lent.get(component) or (self.single.path,)
        if component in self.replaced:
            return (self.replaced[component],)
        return tuple(self.folder / name for name in self.chosen[component].files)

    def stored(self, component: str) -> dict[str, Streamed]:
        """The tensors of a component by name, not yet read; of a single file under diffusers' names."""
        files = self.files(component)
        if self.single and component not in self.lent:
            return dict(self.single.unet if component == "unet" else self.single.parts[component])
        return stored_in(files)

    def hashes(self, components: Iterable[str] | None = None) -> dict[str, str]:
        """Files of weights, or an export's graphs -> SHA-256, by their place in a pipeline's folder."""
        if self.exported:
            return {name: sha256 for one in self.exported.components.values() for name, sha256 in one.files.items()}
        parts = STEMS if self.single else (*self.chosen, *self.replaced)
        chosen = sorted(set(parts if components is None else components))
        return {f"{part}/{file.name}": digest(file) for part in chosen for file in self.files(part)}

    def configured(self, component: str) -> Path:
        """The folder of a component's config.json: the pipeline's own, or that of a VAE from another repository."""
        own = component != "vae" or self.single
        return self.folder / component if own else self.files(component)[0].parent

    def place(self, component: str) -> Path:
        """The folder or file that an error about a component's weights names."""
        return self.files(component)[0] if self.single else self.configured(component)

    @property
    def configs(self) -> dict[str, Path]:
        """Every config that says how the model is used, by its place in a pipeline."""
        files = {name: self.folder / name for name in CONFIGS}
        return files | {"vae/config.json": self.configured("vae") / "config.json"}


def own_parts(card: ModelCard) -> list[str]:
    """The components that come from the card's source, not from a replacement."""
    replaced = {"unet": card.unet_file, "vae": card.vae}
    return [part for part in STEMS if not replaced.get(part)]


def _absent(card: ModelCard, why: str) -> NotOnThisMachine:
    size = f" ({gigabytes(card.download_bytes)})" if card.download_bytes else ""
    return NotOnThisMachine(
        f"{card.name} {why}. With a network, fetch it once{size}: python -m koala fetch {card.name}"
    )


def _whole(card: ModelCard, file: Path) -> None:
    """Raise for a file that is cut off or is not safetensors; only its header and its length are read."""
    try:
        with safe_open(file, framework="numpy"):
            return
    except (SafetensorError, OSError) as error:
        where = f"{file.parent.name}/{file.name} is not a whole safetensors file ({error})"
        if card.on_hub:
            raise _absent(card, f"is damaged on this machine: {where}") from error
        raise UserError(f"{card.name} is damaged: {where}; copy or save the file again") from error


def _snapshot(card: ModelCard) -> Path:
    index = try_to_load_from_cache(card.source, "model_index.json", revision=card.revision)
    if not isinstance(index, str):
        raise _absent(card, "is not on this machine")
    return Path(index).parent


def _cached(card: ModelCard, what: str, repo: str, name: str) -> Path:
    path = try_to_load_from_cache(repo, name)
    if not isinstance(path, str):
        raise _absent(card, f"needs the {what} of {repo}, which is not on this machine")
    if name.endswith(".safetensors"):
        _whole(card, Path(path))
    return Path(path)


def _component(card: ModelCard, what: str, repo: str) -> Path:
    """The weights of a repository that holds one component; its config is next to them."""
    folder = _cached(card, what, repo, "config.json").parent
    chosen = weights(listing(folder), STEMS["vae"])
    return _cached(card, what, repo, chosen.files[0] if chosen else f"{STEMS['vae']}.safetensors")


def _replacements(card: ModelCard) -> dict[str, Path]:
    files = {}
    if card.unet_file:
        repo, _, name = card.unet_file.rpartition("/")
        files["unet"] = _cached(card, "U-Net", repo, name)
    if card.vae:
        files["vae"] = _component(card, "VAE", card.vae)
    return files


def locate(card: ModelCard, base: str | None = None) -> Location:
    """The model's files on this machine, replacements of its U-Net or VAE among them.

    `base` is the model whose tokenizers and settings a single file takes; without one it is looked for. Raises
    NotOnThisMachine with the command that fetches them, UserError for a folder that is not whole.
    """
    if card.single_file:
        return _of_file(card, base)
    folder = _snapshot(card) if card.on_hub else Path(card.source)
    if card.runtime == "onnx":
        exported = Exported.read(folder)
        return Location(folder=folder, chosen={}, replaced={}, revision=exported.revision, exported=exported)
    index = folder / "model_index.json"
    try:
        if index.is_file() and not card.embedded:  # report a wrong kind of model before missing files
            check_pipeline(index, card.name)
        chosen = choose(listing(folder), own_parts(card), card.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); choose a folder that you may read") from error
    except UserError as error:
        if card.on_hub:
            raise _absent(card, "is only partly on this machine") from error
        raise
    if card.embedded:
        check_shipped(folder)
        check_pipeline(index, card.name)
    replaced = _replacements(card)
    location = Location(
        folder=folder,
        chosen=chosen,
        replaced=replaced,
        revision=", ".join([folder.name, *(f"{part} {file.parent.name}" for part, file in replaced.items())])
        if card.on_hub
        else "local",
    )
    check_settings(location.configs)
    _check_configs(card, folder, replaced)
    for part in chosen:
        for file in location.files(part):
            _whole(card, file)
    return location


def _of_file(card: ModelCard, base: str | None) -> Location:
    """A single file's settings and weights; parts that it lacks are those of the model that gives its settings."""
    file = read_single_file(Path(card.source))
    header = read_words(file)
    giver, source = _giver(file, header, base)
    small = {n: source.folder / n for n in needed(listing(source.folder), {}) if n.startswith(TOKENIZERS)}
    folder = settings_folder(file, header, small | source.configs)
    lent = {part: source.files(part) for part in STEMS if part != "unet" and part not in file.parts}
    if lent:
        _say_lent(file.path, tuple(lent), giver.name)
    location = Location(
        folder=folder,
        chosen={},
        replaced={},
        revision=", ".join(["local", *(f"{part} of {giver.title}" for part in lent)]),
        single=file,
        lent=lent,
        giver=giver.name if giver.on_hub or giver.embedded else giver.title,
    )
    check_settings(location.configs)
    check_pipeline_configs(folder)
    return location


@lru_cache(maxsize=64)
def _say_lent(path: Path, parts: tuple[str, ...], giver: str) -> None:
    """Once per process."""
    log.warning("%s has no %s of its own; taken from %s", path, " and no ".join(parts), giver)


def _giver(file: SingleFile, header: Header, base: str | None) -> tuple[ModelCard, Location]:
    """The model on this machine that supplies a file's tokenizers and missing parts.

    It is the one that is asked for, else the one that the file was written of, one of the same depths, its teacher, any
    of the same family, and last a folder next to the file.
    """
    if base is not None:
        card = find(base)
        if card.single_file or not _same_family(file.spec, card.spec):
            raise UserError(f"{base} is not a folder of {file.path.name}'s family; name an SDXL model's folder")
        return card, locate(card)
    for card in _givers(file, header):
        try:
            return card, locate(card)
        except UserError:
            continue
    raise NoSettings(
        f"{file.path} holds weights alone, and no SDXL model is on this machine to take tokenizers and settings from; "
        "fetch one: python -m koala fetch sdxl-base; or put the folder of one, in diffusers' layout, next to the file"
    )


def _givers(file: SingleFile, header: Header) -> Iterator[ModelCard]:
    family = [card for card in CARDS.values() if _same_family(file.spec, card.spec)]
    for name in (header.model, header.drawing.teacher):
        if CARDS.get(name) in family:
            yield CARDS[name]
    yield from (card for card in family if card.spec.notation == file.spec.notation)
    yield from family
    try:
        folders = sorted(place for place in file.path.parent.iterdir() if (place / "model_index.json").is_file())
    except OSError:  # a folder that may be entered but not listed
        folders = []
    for folder in folders[:_MOST_NEIGHBOURS]:
        try:
            card = find(str(folder))
        except UserError:
            continue
        if _same_family(file.spec, card.spec):
            yield card


def _same_family(one: UNetSpec, other: UNetSpec | None) -> bool:
    """Whether two U-Nets take the same text encoders and VAE."""
    return other is not None and (one.cross_attention_dim, one.pooled_dim) == (
        other.cross_attention_dim,
        other.pooled_dim,
    )


def _check_configs(card: ModelCard, folder: Path, replaced: Mapping[str, Path]) -> None:
    """UserError for an invalid config, or for an embedded model's that does not match its card."""
    file = folder / "unet" / "config.json"
    spec = from_config(read_object(file), card.name, str(file))
    if card.embedded and spec != card.spec:
        raise UserError(f"{file} is damaged: it describes another network than {card.name}; copy the file again")
    check_pipeline_configs(folder, replaced["vae"].parent if "vae" in replaced else None)


def tiny_vae(card: ModelCard) -> Path | None:
    """The folder of the card's tiny VAE (diffusers' AutoencoderTiny); None where it has none or it is not here."""
    if card.tiny_vae is None:
        return None
    try:
        return _component(card, "tiny VAE", card.tiny_vae).parent
    except NotOnThisMachine:
        return None


def availability(card: ModelCard) -> tuple[bool, str]:
    """Whether the model can run here now, and what it needs if not."""
    try:
        locate(card)
    except UserError as error:
        return False, str(error)
    return True, "on this machine"
