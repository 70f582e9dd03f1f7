"""python app.py --auth and --auth-file: who does not say the password gets nothing."""

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AuthenticationError

from koala.ui import main as app
from tests.safety.conftest import Public
from tests.ui.conftest import places


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "users").write_text("koala:eucalyptus:leaf\n\nplatypus:river\n")
    server = Public(folder / "log.txt", "--auth-file", str(folder / "users"), **places(folder))
    yield server
    server.stop()


def test_both_users_of_the_file_may_enter(guarded):
    for user in (("koala", "eucalyptus:leaf"), ("platypus", "river")):
        client = Client(guarded.url, auth=user, verbose=False)
        assert "/generate" in client.view_api(return_format="dict", print_info=False)["named_endpoints"]


@pytest.mark.parametrize("user", [("koala", "wrong"), ("koala", ""), ("nobody", "river"), ("koala", "eucalyptus")])
def test_a_wrong_password_is_refused(guarded, user):
    with pytest.raises((AuthenticationError, ValueError, httpx.HTTPError)):
        Client(guarded.url, auth=user, verbose=False)


@pytest.mark.parametrize("path", ["config", "gradio_api/info", "gradio_api/queue/status", "gradio_api/file=app.py"])
def test_without_a_password_nothing_is_answered(guarded, path):
    assert guarded.get(path)[0] == 401


def test_without_a_password_nothing_is_called_or_uploaded(guarded):
    assert guarded.post("gradio_api/call/v2/generate", b'{"model": "tiny-sdxl", "prompt": "a star"}')[0] == 401
    assert guarded.post("gradio_api/queue/join", b"{}")[0] == 401
    boundary = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nx\r\n--b--\r\n'
    assert guarded.post("gradio_api/upload", boundary, "multipart/form-data; boundary=b")[0] == 401


def test_a_large_body_is_refused_before_the_password(guarded):
    status, answer = guarded.post("gradio_api/queue/join", b"[" + b"[]," * 10**6 + b"[]]")
    assert status == 413 and b"1 MB" in answer


def test_the_page_tells_nothing_but_asks_for_the_password(guarded):
    status, page = guarded.get("")
    assert status == 200 and b"auth_required" in page and b"k-prompt" not in page
    assert b"eucalyptus" not in page and "eucalyptus" not in guarded.log.read_text()


@pytest.mark.parametrize("auth", ["koala", ":word", "koala:", ":", ""])
def test_a_user_without_a_name_or_a_password_is_refused(auth, capsys):
    assert app.main(["--auth", auth]) == 2
    assert "USER:PASSWORD" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\n\n", b"koala\n", b"koala:leaf\nplatypus\n", b"\xff\xfe:"])
def test_a_file_of_users_that_is_no_such_file_is_refused(content, tmp_path, capsys):
    (tmp_path / "users").write_bytes(content)
    assert app.main(["--auth-file", str(tmp_path / "users")]) == 2
    output = capsys.readouterr().err
    assert "koala app: " in output and "leaf" not in output


def test_a_missing_file_of_users_is_refused(tmp_path, capsys):
    assert app.main(["--auth-file", str(tmp_path / "nothing")]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, local",
    [("127.0.0.1", True), ("localhost", True), ("127.0.0.1 --share", False), ("127.0.0.2", False), ("0.0.0.0", False)],
)
def test_only_the_default_addresses_take_visitors_for_the_user_of_this_machine(options, local):
    """SECURITY.md sends a proxy of the same machine to 127.0.0.2."""
    assert app.is_local(app.parse(["--host", *options.split()])) is local
