"""Captures are kept in bounded memory."""

from types import SimpleNamespace

import pytest

from koala.errors import UserError
from koala.ui.attention.recording import Store


def capture(size: int):
    return SimpleNamespace(bytes=size)


def test_the_store_lets_go_of_what_was_not_looked_at_for_longest():
    store = Store(limit=100)
    first, second = store.add(capture(40)), store.add(capture(40))
    store.get(first)
    third = store.add(capture(40))
    assert store.bytes == 80 and store.get(first) and store.get(third)
    with pytest.raises(UserError, match="capture it again"):
        store.get(second)
    store.drop(first)
    store.drop(first)
    store.drop("")
    assert store.bytes == 40
    assert store.get(store.add(capture(500)))  # the newest stays, whatever its size
    assert store.bytes == 500
