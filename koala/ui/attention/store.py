"""Captures of this process by id, bounded in bytes: the least recently used are dropped first."""

import secrets
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from koala.errors import UserError

if TYPE_CHECKING:
    from koala.attention.capture import Capture

LIMIT = 4 * 10**9  # bytes of all captures together
PUBLIC_LIMIT = 10**9  # in a public app


class Store:
    """Captures under ids that cannot be guessed. Safe to use from several threads."""

    def __init__(self, limit: int = LIMIT):
        self.limit = limit
        self._kept: OrderedDict[str, Capture] = OrderedDict()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict) -> "Store":
        """Itself: Gradio copies whatever its configuration reaches for every page, and captures are large."""
        return self

    @property
    def bytes(self) -> int:
        """The size of all captures; more than `limit` only if there is a single one."""
        return sum(capture.bytes for capture in self._kept.values())

    def add(self, capture: "Capture") -> str:
        """Keep a capture, and drop others until all fit."""
        key = secrets.token_hex(16)
        with self._lock:
            self._kept[key] = capture
            while self.bytes > self.limit and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return key

    def get(self, key: object) -> "Capture":
        """The capture of this id, now the most recently used; UserError if it was dropped or never existed."""
        with self._lock:
            if not isinstance(key, str) or key not in self._kept:
                raise UserError("this capture is no longer kept, because others needed its memory; capture it again")
            self._kept.move_to_end(key)
            return self._kept[key]

    def drop(self, key: str) -> None:
        """Drop a capture; it is not an error if it is gone already."""
        with self._lock:
            self._kept.pop(key, None)
