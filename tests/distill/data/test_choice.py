"""Which pictures are held back and which are used: of more than one class, whatever the seed, and each as often."""

from collections import Counter

import pytest
import torch

from koala.distill.data.encoded import EncodedData, read_chunk
from koala.distill.data.samples import spread
from koala.distill.data.sources import source_for

from .worlds import encoded, folders, png, set_config

CLASSES = {"a": "red", "b": "green", "c": "blue"}
EACH = 4
SEEDS = range(25)


@pytest.fixture
def classes(tmp_path):
    """A folder of three class folders of four pictures."""
    for name, colour in CLASSES.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        for k in range(EACH):
            (tmp_path / "set" / name / f"{k}.png").write_bytes(png(colour))
            (tmp_path / "set" / name / f"{k}.txt").write_text(f"a {colour} picture")
    return tmp_path / "set"


def held_back(data: EncodedData, context_of: dict[str, torch.Tensor]) -> list[str]:
    """The classes of the pictures held back, by what the text encoders make of each class's caption."""
    ((bucket, rows),) = data.validation()
    context = data.validation_batch(bucket, rows, [0.0] * len(rows)).context
    return [min(context_of, key=lambda name: (context_of[name] - one).abs().max()) for one in context]


def test_the_pictures_held_back_are_of_more_than_one_class(tmp_path, encoders, classes):
    """Symptom: they were the last of the alphabet, so that its last class was never learned from."""
    captions = [f"a {colour} picture" for colour in CLASSES.values()]
    context_of = dict(zip(CLASSES, encoders.load("cpu").captions(captions)[0], strict=True))
    wanted = {seed: set_config(tmp_path, classes, validation_pictures=5, seed=seed) for seed in (3, 4)}
    by_run = {seed: held_back(encoded(config, encoders), context_of) for seed, config in wanted.items()}
    (folder,) = folders(tmp_path)
    chunk = read_chunk(folder / "pictures-0000000.0000.safetensors")
    for count in (2, 3, 5):
        known = dict(key="", num_pictures=0, held_back=count)
        choices = [
            held_back(EncodedData([chunk], folder / "empty.safetensors", seed=seed, **known), context_of)
            for seed in SEEDS
        ]
        assert all(len(names) == count and len(set(names)) >= 2 for names in choices)
        often = Counter(name for names in choices for name in names)
        print(count, dict(often))
        assert all(often[name] >= count * len(SEEDS) / 6 for name in CLASSES)  # a third each but for chance
        assert len(set(map(tuple, choices))) > 1 or count == 3  # one of each class, always
    assert by_run == {seed: choices[seed] for seed in by_run}  # a run's own seed says which


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_pictures_that_are_used_are_of_more_than_one_class(tmp_path, classes, count):
    chosen = []
    for seed in SEEDS:
        source = source_for(set_config(tmp_path, classes, num_pictures=count, seed=seed), 64)
        chosen.append([sample.key for part in source.parts for sample in part.read(0)])
    assert all(len(keys) == count and len({key.partition("/")[0] for key in keys}) > 1 for keys in chosen)
    assert Counter(key for keys in chosen for key in keys).keys() == {
        f"{name}/{k}.png" for name in CLASSES for k in range(EACH)
    }  # every picture is used by one seed or another
    assert "seed" in source.about


@pytest.mark.parametrize(
    ("total", "count"), [(12, 2), (13, 2), (2, 2), (3, 2), (12, 5), (7, 7), (5, 9), (1000, 3), (1, 1)]
)
def test_numbers_are_spread_ascending_and_none_is_preferred(total, count):
    drawn = [spread(total, count, seed, "x") for seed in range(2000)]
    for numbers in drawn:
        assert numbers == sorted(set(numbers)) and len(numbers) == min(total, count)
        assert numbers[0] >= 0 and numbers[-1] < total
        assert count != 2 or numbers[1] - numbers[0] in (total // 2, -(-total // 2))
    if total <= 13:
        often = Counter(number for numbers in drawn for number in numbers)
        expected = 2000 * min(total, count) / total
        assert all(0.7 * expected < often[n] < 1.35 * expected for n in range(total)), often
