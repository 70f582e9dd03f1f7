"""Which weights a measurement was made with: what every report says of them, in one form."""

from collections.abc import Iterable
from pathlib import Path

from koala.files.hashing import digest
from koala.models.cards import ModelCard
from koala.models.export_manifest import MANIFEST
from koala.models.locate import locate
from koala.models.registry import find

RANDOM = "random"  # in place of hashes: drawn at random, since what was measured does not depend on them
NONE = "none"  # nothing was computed with weights


def weights(models: Iterable[str | Path | ModelCard]) -> dict[str, dict[str, str]]:
    """Model -> file within its folder -> SHA-256. A path is cut to its last name: reports hold no local paths."""
    hashes = {}
    for model in models:
        model = model if isinstance(model, ModelCard) else str(model)
        called = model.name if isinstance(model, ModelCard) else model
        folder = Path(called)
        name = folder.name if folder.exists() else called
        name = f"{folder.parent.name}/{name}" if name in hashes else name  # every run's student has the same
        if folder.is_dir() and not any((folder / index).is_file() for index in ("model_index.json", MANIFEST)):
            files = sorted(folder.rglob("*.safetensors"))  # a U-Net alone, say
            hashes[name] = {file.relative_to(folder).as_posix(): digest(file) for file in files}
        else:
            hashes[name] = locate(find(model)).hashes()
    return hashes
