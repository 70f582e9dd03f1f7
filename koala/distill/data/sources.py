"""The config's `data` -> a source of pictures and captions."""

from pathlib import Path

from koala.distill.config import DistillConfig
from koala.distill.data.files import Between, ending, files_under, nothing
from koala.distill.data.folder import folder_source
from koala.distill.data.parquet import parquet_source
from koala.distill.data.samples import HUB, Source
from koala.distill.data.shapes import shapes_source
from koala.distill.data.webdataset import braces, webdataset_source
from koala.request import RequestError


def source_for(config: DistillConfig, resolution: int, between: Between = nothing) -> Source:
    """Where the pictures come from; RequestError where there are none, or their captions are missing.

    A large folder is looked through for minutes; `between` is called between two files, and may raise to stop.
    """
    if config.data == "shapes":
        return shapes_source(config, resolution)
    if config.data.startswith(HUB):
        from koala.distill.data.hub import hub_source  # `datasets` is slow to import, and not in the Space

        return hub_source(config, between)
    path = Path(config.data).expanduser()
    if path.name.endswith((".tar", ".tar.gz", ".tgz")):
        return webdataset_source(config, [Path(name) for name in braces(str(path))], between)
    if ending(path) == "parquet" and path.is_file():
        return parquet_source(config, [path], path.parent, between)
    if not path.is_dir():
        raise RequestError(
            f"there is no data at {config.data!r}; give shapes, a folder of pictures, a .parquet file or a folder of "
            "them, WebDataset shards (path/{000..099}.tar), or hub:OWNER/NAME"
        )
    files = files_under(path, between)
    if tables := [file for file in files if ending(file) == "parquet"]:
        return parquet_source(config, tables, path, between)
    if shards := [file for file in files if ending(file) == "tar"]:
        return webdataset_source(config, shards, between)
    return folder_source(config, path, between)
