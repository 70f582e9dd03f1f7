"""What the tests of training data share."""

import pytest

from koala.distill.data.encoders import EncoderFiles, encoder_files


@pytest.fixture(scope="session")
def encoders() -> EncoderFiles:
    """Those of the embedded teacher."""
    return encoder_files("tiny-sdxl", "cpu")
