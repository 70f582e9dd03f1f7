"""A model's address as pasted from the hub's pages: "https://huggingface.co/owner/name/tree/main"."""

import os
import re
from urllib.parse import unquote, urlsplit

from koala.errors import UserError
from koala.models.layout import STEMS, TOKENIZERS

_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_BARE = re.compile(r"(?i)(https?|hf)://|(www\.)?(huggingface\.co|hf\.co)/")
_KINDS = ("datasets", "spaces", "collections", "models", "docs", "papers", "blog")


def hub_id(text: str) -> str | None:
    """owner/name, or owner/name@revision, of an address of the hub; None for text that is not an address.

    UserError for the address of something else than a model.
    """
    if not _BARE.match(text):
        return None
    scheme, separator, rest = text.partition("://")
    if scheme.lower() == "hf" and separator:
        path = rest
    else:
        parts = urlsplit(text if separator else f"https://{text}")
        own = urlsplit(os.environ.get("HF_ENDPOINT") or "").netloc.lower()
        if parts.netloc.lower() not in (*_HOSTS, own):
            raise UserError(
                f"{text} is not an address of {_HOSTS[0]}; download the file there yourself and name it, or give a "
                "hub id (owner/name) or a folder"
            )
        path = parts.path
    names = [unquote(name) for name in path.split("/") if name]
    if names[:1] == ["models"] and len(names) > 2:  # as hf:// addresses may begin
        names = names[1:]
    if len(names) < 2 or names[0] in _KINDS:
        raise UserError(f"{text} is not the address of a model; a model's is https://{_HOSTS[0]}/owner/name")
    return _repository(text, names)


def _repository(text: str, names: list[str]) -> str:
    """The model and its revision, out of the parts of an address' path."""
    owner, name, *more = names
    if not more or more[0] not in ("tree", "blob", "resolve", "raw", "commit"):
        return f"{owner}/{name}"  # its card, its discussions and the like
    kind, *rest = more
    if rest[:1] == ["refs"]:  # of a pull request: refs/pr/3
        rest = ["/".join(rest[:3]), *rest[3:]]
    if kind in ("blob", "resolve", "raw") and len(rest) > 1 and rest[-1] not in ("model_index.json", "README.md"):
        raise UserError(
            f"{text} is one file; a model is a whole repository in diffusers' layout: {owner}/{name}. Download the "
            "file and name it where a U-Net alone will do: python -m koala compress --teacher FILE"
        )
    if kind == "tree" and len(rest) > 1 and rest[1] not in (*STEMS, *TOKENIZERS, "scheduler"):
        raise UserError(
            f"{text} is a folder inside {owner}/{name}; only the files at the top of a repository are fetched. "
            "Download that folder and name it"
        )
    revision = rest[0] if rest else "main"
    return f"{owner}/{name}" if revision == "main" else f"{owner}/{name}@{revision}"
