"""Captures of this process, by id, bounded in bytes: those that nobody looked at for longest go first."""

import secrets
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from koala.errors import UserError

if TYPE_CHECKING:
    from koala.attention.capture import Capture

LIMIT = 4 * 10**9  # bytes of all captures together
PUBLIC_LIMIT = 10**9  # where strangers reach the app


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
        """Of all captures that are kept; more than `limit` only where there is but one."""
        return sum(capture.bytes for capture in self._kept.values())

    def add(self, capture: "Capture") -> str:
        """Keep a capture, and let go of others until all fit."""
        key = secrets.token_hex(16)
        with self._lock:
            self._kept[key] = capture
            while self.bytes > self.limit and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return key

    def get(self, key: object) -> "Capture":
        """The capture of this id, which is now the last to go; UserError where it is gone or never was."""
        with self._lock:
            if not isinstance(key, str) or key not in self._kept:
                raise UserError("this capture is no longer kept, others needed its memory; capture it again")
            self._kept.move_to_end(key)
            return self._kept[key]

    def drop(self, key: str) -> None:
        """Let go of a capture; one that is gone already is no error."""
        with self._lock:
            self._kept.pop(key, None)
