"""How soon the Compare tab answers: the slowest run counts against each bar."""

from recipes.measure.compare_speed import within


def test_the_slowest_run_counts_and_a_picture_before_any_preview_counts_as_one():
    quick = {"first_preview_s": [0.6, None], "picture_s": [4.0, 0.3]}
    slow = {"first_preview_s": [0.9, 0.2], "picture_s": [6.5, 1.4]}
    assert {name: (one["slowest"], one["kept"]) for name, one in within([quick, slow]).items()} == {
        "student_picture_s": (1.4, True),
        "pair_s": (6.5, False),
        "previews_s": (0.9, True),
    }
