"""The small files around a single file's weights, as the folder of a pipeline without weights.

A single file has no tokenizers and rarely says its configs. They come from its own header and from an SDXL folder, and
lie in the user's cache under a name that is made of their content.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from koala.errors import UserError
from koala.files.outputs import new_folder, user_cache
from koala.files.read_json import read_object
from koala.models.layout import TOKENIZERS
from koala.models.semantics import INDEX, SCHEDULER, TEXT, TEXT_2, UNET, VAE
from koala.models.single_file.header import Header
from koala.models.single_file.reading import SingleFile
from koala.unet.specs import SDXL

CARRIED = (SCHEDULER, UNET, VAE, TEXT, TEXT_2)  # configs that our own files' headers hold


def settings_folder(file: SingleFile, header: Header, base: Mapping[str, Path]) -> Path:
    """The folder, made now if it is not there; `base` are the small files of an SDXL pipeline by their place in it."""
    contents = {name: _encoded(config) for name, config in _configs(file, header, base).items()}
    contents |= {name: path.read_bytes() for name, path in base.items() if name.startswith(TOKENIZERS)}
    hashed = hashlib.sha256()
    for name, content in sorted(contents.items()):
        hashed.update(f"{name}:{len(content)}:".encode() + content)
    folder = user_cache() / "single-files" / hashed.hexdigest()[:24]
    if not _is_there(folder, contents):
        _write(folder, contents)
    return folder


def _configs(file: SingleFile, header: Header, base: Mapping[str, Path]) -> dict[str, dict]:
    """Place in a pipeline -> its config."""
    own = {name: header.configs.get(name) for name in CARRIED}
    configs = {name: dict(own[name] or read_object(base[name])) for name in CARRIED if name != UNET}
    prediction = "v_prediction" if header.velocity else "epsilon"
    if own[SCHEDULER] is None:
        configs[SCHEDULER] |= {"prediction_type": prediction, "rescale_betas_zero_snr": header.zero_snr}
    if own[VAE] is None and "vae" in file.parts and file.spec.channels == SDXL.channels:
        # SDXL's own VAE overflows half precision. The base's may be one that does not, which says nothing of this one.
        configs[VAE] |= {"force_upcast": True}
    given = {name: value for name, value in (own[UNET] or {}).items() if not name.startswith(("reverse_", "_"))}
    size = {"sample_size": given["sample_size"]} if given.get("sample_size") else {}
    configs[UNET] = {"_class_name": "UNet2DConditionModel"} | given | file.spec.config() | size
    index = read_object(base[INDEX])
    index |= {"_class_name": "StableDiffusionXLPipeline"} | dict(header.configs.get(INDEX, {}))
    return configs | {INDEX: index}


def _encoded(config: Mapping) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _is_there(folder: Path, contents: Mapping[str, bytes]) -> bool:
    """Whether every file is as it was written: a cache may be cut or changed."""
    try:
        return all((folder / name).read_bytes() == content for name, content in contents.items())
    except OSError:
        return False


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    try:
        with new_folder(folder, sum(map(len, contents.values())), replace=True) as partial:
            for name, content in contents.items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).write_bytes(content)
    except OSError as error:
        raise UserError(
            f"the settings of a single file are kept in {folder.parent}, which cannot be written "
            f"({error.strerror or error}); set XDG_CACHE_HOME to a folder that you may write"
        ) from error
