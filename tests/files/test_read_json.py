"""A file that is no JSON is refused by name, with what is wrong and the remedy."""

import json

import pytest

from koala.errors import UserError
from koala.files.reading import LARGEST, read_json, read_object

DAMAGED = {
    "empty": b"",
    "cut off": b'{"a": [1, 2',
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "nested too deeply": b"[" * 200_000,
    "a number with too many digits": b"1" * 5_000,
    "two values": b"{} {}",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_json_is_refused_by_name(tmp_path, content):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is damaged: .+; take another") as output:
        read_json(file, "take another")
    assert "\n" not in str(output.value)


def test_a_file_that_cannot_be_opened_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json is missing; copy the file again"):
        read_json(tmp_path / "absent.json")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_json(tmp_path)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    file = tmp_path / "huge.json"
    with file.open("wb") as sparse:
        sparse.truncate(LARGEST + 1)
    with pytest.raises(UserError, match="100 MB, far too much"):
        read_json(file)


@pytest.mark.parametrize("value", [[1], 1, "text", None, True])
def test_what_is_no_object_is_refused_where_one_is_needed(tmp_path, value):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(value))
    assert read_json(file) == value
    with pytest.raises(UserError, match=f"it holds a {type(value).__name__}, not an object"):
        read_object(file)


def test_a_byte_order_mark_is_passed_over(tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(b'\xef\xbb\xbf{"name": "K\xc3\xb6nig"}')
    assert read_object(file) == {"name": "König"}
