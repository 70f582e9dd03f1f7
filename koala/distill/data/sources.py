"""The config's `data` -> a source of pictures and captions."""

from dataclasses import replace
from pathlib import Path

from koala.distill.config import DistillConfig
from koala.distill.data.files import (
    NOTHING,
    Absent,
    Between,
    base_of,
    ending,
    is_pattern,
    is_shard,
    look_through,
    matching,
    nothing,
)
from koala.distill.data.forms import folder_source, pictures_only
from koala.distill.data.metadata import unlisted
from koala.distill.data.parquet import parquet_source
from koala.distill.data.pictures import ENDINGS
from koala.distill.data.samples import HUB, Source, chosen
from koala.distill.data.shapes import shapes_source
from koala.distill.data.webdataset import braces, webdataset_source
from koala.errors import UserError


def source_for(config: DistillConfig, resolution: int, between: Between = nothing, absent: Absent = NOTHING) -> Source:
    """Where the pictures come from; UserError where there are none, or their captions are missing.

    A large folder is looked through for minutes; `between` is called between two files, and may raise to stop. Of more
    pictures than `num_pictures` the seed chooses. With `absent`, what an earlier run found: to be told by its
    identity, not to be read.
    """
    if config.data == "shapes":
        return shapes_source(config, resolution)
    if config.data.startswith(HUB):
        from koala.distill.data.hub import hub_source  # `datasets` is slow to import, and not in the Space

        return chosen(hub_source(config, between), config.num_pictures, config.seed)
    path = Path(config.data).expanduser()
    source = (_folder if path.is_dir() else _files)(config, path, between, absent)
    return chosen(source, config.num_pictures, config.seed)


def _folder(config: DistillConfig, path: Path, between: Between, absent: Absent) -> Source:
    listing = unlisted(look_through(path, between), absent.unlisted, path)
    source = folder_source(config, path, listing, between, absent)
    return replace(source, about=f"{path}: {source.about}")


def _files(config: DistillConfig, path: Path, between: Between, absent: Absent) -> Source:
    """A file, or several by * and ? or by {000..099}."""
    if is_pattern(str(path)):
        return _pattern(config, path, between, absent)
    if is_shard(path):
        source = webdataset_source(config, [Path(name) for name in braces(str(path))], path.parent, between)
    elif ending(path) == "parquet" and path.is_file():
        source = parquet_source(config, [path], path.parent, between, absent)
    elif path.is_file():
        raise UserError(
            f"{path} is neither a .parquet nor a .tar file; give the folder that it is in, data={path.parent}, "
            "with pictures, a .parquet or a .tar file in it"
        )
    else:
        raise _nothing(config)
    return replace(source, about=f"{config.data}: {source.about}")


def _pattern(config: DistillConfig, path: Path, between: Between, absent: Absent) -> Source:
    base = base_of(path)
    if not base.is_dir():
        raise _nothing(config)
    listing = unlisted(look_through(base, between), absent.unlisted, base)
    files = matching(path, listing.files)
    if is_shard(path):
        source = webdataset_source(config, files, base, between) if files else None
    elif ending(path) == "parquet":
        source = parquet_source(config, files, base, between, absent) if files else None
    else:
        pictures = [file for file in files if ending(file) in ENDINGS]
        source = pictures_only(config, base, listing, pictures, between, absent) if pictures else None
    if source is None:
        raise _nothing(config)
    return replace(source, about=f"{config.data}: {source.about}")


def _nothing(config: DistillConfig) -> UserError:
    return UserError(
        f"there is no data at {config.data!r}; give shapes, a folder of pictures, a .parquet file or a folder of "
        "them, WebDataset shards (path/{000..099}.tar), or hub:OWNER/NAME"
    )
