"""The cache of encoded data: its key, what it gives back, and what survives a kill."""

from koala.distill.config import DistillConfig
from koala.distill.data.cache import encode
from koala.distill.data.encoders import encoder_files


def config(tmp_path, **values) -> DistillConfig:
    defaults = dict(cache=str(tmp_path / "cache"), resolution=128, num_pictures=12, validation_pictures=4)
    return DistillConfig(**defaults | values)


def test_rows(tmp_path):
    files = encoder_files("tiny-sdxl", "cpu")
    data = encode(config(tmp_path), files, device="cpu")
    assert data.sizes == {(128, 128): 8} and data.num_pictures == 12 and data.skipped == 0
    batch = data.batch((128, 128), [0, 3], [0.9, -1])
    assert batch.latents.shape == (2, 4, 16, 16) and batch.context.shape == (2, 77, 96)
    assert batch.time_ids.tolist() == [[128, 128, 0, 0, 128, 128]] * 2
    assert not batch.context[1].any()
