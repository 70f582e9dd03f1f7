"""A dropped PNG restores its settings; anything else is answered in words."""

import gradio as gr
import pytest

from koala.ui.compare.tab import Compare
from koala.ui.session import Session


@pytest.mark.parametrize("sent", [None, ""], ids=["nothing", "an empty name"])
def test_an_upload_without_a_file_says_so(sent):
    """Symptom: a program that sent null got "the run failed", and the log a traceback."""
    with gr.Blocks():
        answers = Compare(Session()).restore(sent)
    assert next(answers)[-1] is None  # the drop zone is emptied
    with pytest.raises(gr.Error, match="No file was sent; choose a picture that was saved here"):
        next(answers)
