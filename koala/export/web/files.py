"""A site's large files: compressed, named by their hash, each written once."""

import gzip
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = "files"  # of the site
_LEVEL = 6  # 9 takes three times as long for half a percent


@dataclass(frozen=True, kw_only=True)
class Files:
    """Files that the page's worker fetches, in a site that is being written."""

    site: Path
    listed: dict[str, dict[str, object]] = field(default_factory=dict)  # path -> size, compressed size, SHA-256

    def enclose(self, stem: str, content: bytes, ending: str) -> str:
        """Write a file, gzipped, unless it is there; its path in the site.

        The page unpacks it itself, so that the way is short from a host that compresses nothing, too.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        name = f"{FOLDER}/{stem}-{sha256[:12]}{ending}.gz"
        if name not in self.listed:
            packed = gzip.compress(content, _LEVEL, mtime=0)
            (self.site / FOLDER).mkdir(exist_ok=True)
            (self.site / name).write_bytes(packed)
            self.listed[name] = {"bytes": len(content), "sent": len(packed), "sha256": sha256}
        return name

    def sent(self, names: set[str]) -> int:
        """Compressed bytes of these files."""
        return sum(self.listed[name]["sent"] for name in names)
