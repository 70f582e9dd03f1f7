"""python app.py: every mistake on the command line is one line on stderr and exit status 2."""

import socket

import pytest

from koala.ui import main as app


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "nothing-like-it", "tiny-sdxl"], "unknown model"),
        (["--models", "tiny-sdxl"], "expected 2 arguments"),
        (["--port", "22x"], "invalid int value"),
        (["--device", "abacus"], "use cpu, cuda"),
        (["--vram", "-8"], "--vram takes gigabytes"),
        (["--frobnicate"], "--help shows"),
    ],
    ids=" ".join,
)
def test_mistakes_are_one_line(arguments, words, capsys):
    try:
        status = app.main(arguments)
    except SystemExit as ended:
        status = ended.code
    output = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[transformers]")]
    assert status == 2 and len(output) == 1 and words in output[0] and output[0].startswith("koala app: ")


def test_a_taken_port_says_what_to_type(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert app.main(["--port", str(taken.getsockname()[1])]) == 2
    assert "--port" in capsys.readouterr().err
