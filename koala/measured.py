"""Which weights a measurement was made with: what every report says of them, in one form."""

from collections.abc import Iterable
from pathlib import Path

from koala.exported import MANIFEST
from koala.hashing import digest
from koala.locate import locate
from koala.registry import find

RANDOM = "random"  # in place of hashes: drawn at random, since what was measured does not depend on them
NONE = "none"  # nothing was computed with weights


def weights(models: Iterable[str | Path]) -> dict[str, dict[str, str]]:
    """Model -> file within its folder -> SHA-256. Folders are called by their last name: reports tell no one's paths."""
    found = {}
    for model in models:
        folder = Path(model)
        if folder.is_dir() and not any((folder / name).is_file() for name in ("model_index.json", MANIFEST)):
            files = sorted(folder.rglob("*.safetensors"))  # a U-Net alone, say
            found[folder.name] = {file.relative_to(folder).as_posix(): digest(file) for file in files}
        else:
            found[folder.name if folder.is_dir() else str(model)] = locate(find(str(model))).hashes()
    return found
