"""Numbers and lists as text: the examples are written by hand, at the borders between units."""

import pytest

from koala import words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (words.megabytes(1_234_500_000), "1,234.5 MB"),
        (words.megabytes(83_049_000, 0), "83 MB"),
        (words.gigabytes(5_140_000_000), "5.1 GB"),
        (words.gigabytes(5_140_000_000, 2), "5.14 GB"),
        (words.size(999_999_999), "1,000.0 MB"),
        (words.size(10**9), "1.00 GB"),
        (words.size(10**8, first_gb=1e8), "0.10 GB"),
        (words.size(2_345_678, mb=2), "2.35 MB"),
        (words.parameters_text(999), "999"),
        (words.parameters_text(782_100_000), "782.1 M"),
        (words.parameters_text(1_160_000_000), "1.16 B"),
        (words.flops_text(2_390_000_000_000), "2.39 TFLOP"),
        (words.flops_text(2_390_000_000_000_000), "2390.0 TFLOP"),
        (words.many(1, "picture"), "1 picture"),
        (words.many(2000, "picture"), "2,000 pictures"),
        (words.many(0, "picture"), "0 pictures"),
        (words.listed(["a"]), "a"),
        (words.listed(["a", "b"]), "a and b"),
        (words.listed(["a", "b", "c"], "or"), "a, b or c"),
    ],
)
def test_bytes_counts_and_lists(text, expected):
    assert text == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (words.duration(999.4), "999 ms"),
        (words.duration(1000), "1.00 s"),
        (words.span(45.4), "45 s"),
        (words.span(125), "2 min 5 s"),
        (words.span(3600), "1 h"),
        (words.span(12_000), "3 h 20 min"),
        (words.span(187_200), "2 d 4 h"),
        (words.clock_time(65.9), "1:05"),
        (words.seconds_or_minutes(89), "89 s"),
        (words.seconds_or_minutes(180), "3 min"),
        (words.up_to_days(50), "50 seconds"),
        (words.up_to_days(7140), "119 minutes"),
        (words.up_to_days(7200), "2 hours"),
        (words.up_to_days(259_200), "3 days"),
    ],
)
def test_times(text, expected):
    assert text == expected


def test_cells_and_tables_of_markdown():
    assert words.seconds_cell(12_345) == "12.3" and words.seconds_cell(1_234_567) == "1235"
    assert words.gigabytes_cell(5_140_000_000) == "5.14" and words.gigabytes_cell(None) == "-"
    assert words.markdown_table(["model", "s"], [["KOALA", "1.2"]]) == "| model | s |\n| :-- | --: |\n| KOALA | 1.2 |"
