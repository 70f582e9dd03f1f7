"""What a folder holds (pictures, tables, shards or several of them), which is used, and a description of both."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from koala.distill.config import DistillConfig
from koala.distill.data.files import NOTHING, Absent, Between, Listing, ending, is_file, is_shard, match, nothing
from koala.distill.data.folder import Pictures
from koala.distill.data.parquet import columns_in, has_pictures, parquet_source
from koala.distill.data.pictures import ENDINGS
from koala.distill.data.samples import Source
from koala.distill.data.webdataset import webdataset_source
from koala.errors import UserError
from koala.words import many, plural

_MOST = 6  # kinds of files that are named as left out


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way in which a folder can be read."""

    name: str  # "the pictures"
    files: list[Path]
    described: str  # "6 pictures with .txt"
    setting: str  # what chooses it
    source: Callable[[], Source]


def folder_source(
    config: DistillConfig, folder: Path, listing: Listing, between: Between = nothing, absent: Absent = NOTHING
) -> Source:
    """What a folder is best read as: pictures with captions before tables, tables before shards.

    UserError where it holds none of them, or none that can be used.
    """
    bare, tables = [], []
    for file in (file for file in listing.files if ending(file) == "parquet"):
        (tables if has_pictures(file, config) else bare).append(file)
    forms = list(_forms(config, folder, listing, tables, between, absent))
    if not forms:
        raise UserError(_nothing_there(folder, listing, bare))
    chosen, source = _choose(config, forms)
    return replace(source, about=_about(chosen, source, forms, bare, listing))


def pictures_only(
    config: DistillConfig, folder: Path, listing: Listing, pictures: list[Path], between: Between, absent: Absent
) -> Source:
    """The pictures that a pattern names, whatever else their folder holds."""
    form = _pictures(config, folder, listing, pictures, between, absent)
    source = form.source()
    return replace(source, about=_about(form, source, [form], [], listing))


def _forms(
    config: DistillConfig, folder: Path, listing: Listing, tables: list[Path], between: Between, absent: Absent
) -> Iterator[Form]:
    """The ways in which the folder can be read, the first choice first."""
    if pictures := [file for file in listing.files if ending(file) in ENDINGS]:
        yield _pictures(config, folder, listing, pictures, between, absent)
    shards = [file for file in listing.files if is_shard(file)]
    read_table = partial(parquet_source, config, tables, folder, between, absent)
    read_shard = partial(webdataset_source, config, shards, folder, between)
    for what, files, source in (("table", tables, read_table), ("shard", shards, read_shard)):
        if files:
            yield Form(
                name=f"the {plural(len(files), what)}",
                files=files,
                described=many(len(files), what),
                setting=_setting(folder, files),
                source=source,
            )


def _pictures(
    config: DistillConfig, folder: Path, listing: Listing, pictures: list[Path], between: Between, absent: Absent
) -> Form:
    those = Pictures(folder=folder, pictures=pictures, files=listing.files)
    return Form(
        name="the pictures",
        files=pictures,
        described=those.described(),
        setting=_setting(folder, pictures),
        source=lambda: those.source(config, between, absent),
    )


def _choose(config: DistillConfig, forms: Sequence[Form]) -> tuple[Form, Source]:
    """The form that is used. A few stray files do not outweigh many others, nor what the config asks for by name."""
    order = list(forms)
    first, *others = order
    asked = config.image_column != DistillConfig.image_column
    if first.name == "the pictures" and others:
        named = asked and any(
            match(config.image_column, columns_in(file))
            for form in others
            if "table" in form.name
            for file in form.files
        )
        if named or any(len(form.files) > len(first.files) for form in others):
            order = [*others, first]
    errors = []
    for form in order:
        try:
            return form, form.source()
        except UserError as error:
            errors.append(error)
    raise errors[0]


def _about(chosen: Form, source: Source, forms: Sequence[Form], bare: Sequence[Path], listing: Listing) -> str:
    descriptions = [form.described for form in forms]
    if bare:
        descriptions.append(f"{many(len(bare), 'table')} without pictures")
    text = ", ".join(descriptions)
    if len(descriptions) > 1:
        text += f": using {chosen.name}"
        if others := [form.setting for form in forms if form is not chosen]:
            text += f"; to use another, set {' or '.join(others)}"
    text += f"; {source.about}"
    used = {*source.used, *bare, *(file for form in forms for file in form.files)}
    left = Counter(
        f".{ending(file)}" if file.suffix else "without an ending" for file in listing.files if file not in used
    )
    if left:
        named = [f"{count:,} {name}" for name, count in left.most_common(_MOST)]
        text += f". Left out: {', '.join(named)}" + (" and others" if len(left) > _MOST else "")
    if listing.closed:
        text += f". Folders that cannot be opened: {', '.join(listing.closed[:_MOST])}"
    return text


def _nothing_there(folder: Path, listing: Listing, bare: Sequence[Path]) -> str:
    kinds = Counter(ending(file) for file in listing.files if ending(file))
    text = f"{folder} holds no pictures ({', '.join(ENDINGS)}), no .tar file and no .parquet file"
    if bare:
        columns = ", ".join(sorted(columns_in(bare[0])))
        text += f" with pictures ({bare[0].name} has the columns {columns}; set image_column if one of them is)"
    if kinds:
        text += f"; it holds {', '.join(f'{n:,} .{name}' for name, n in kinds.most_common(_MOST))}"
    return f"{text}; give a folder that does, or data=shapes"


def _setting(folder: Path, files: Sequence[Path]) -> str:
    """What names these files and no others of their folder."""
    if len(files) == 1 and is_file(files[0]) and ending(files[0]) not in ENDINGS:
        return shlex.quote(f"data={files[0]}")
    endings = Counter(ending(file) for file in files)
    pictures = endings.keys() <= set(ENDINGS)
    common = endings.most_common(1)[0][0]
    if common == "gz":
        common = "tar.gz"
    return shlex.quote(f"data={folder}/**/*.{'*' if pictures and len(endings) > 1 else common}")
