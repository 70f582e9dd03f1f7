"""What Stop finds: the page's own run, once, also when it was closed, and never that of an earlier click."""

from koala.ui.under_way import UnderWay


def test_stop_takes_the_pages_own_run_once():
    runs = UnderWay()
    runs.begin("one", "first")
    runs.begin("two", "other")
    assert runs.take("one") == "first"
    assert runs.take("one") is None and runs.take("two") == "other"


def test_a_run_that_ended_is_gone_and_a_later_one_is_not():
    runs, first, later = UnderWay(), object(), object()
    runs.begin("one", first)
    runs.begin("one", later)
    runs.end("one", first)
    assert runs.take("one") is later
    runs.begin("one", first)
    runs.end("one", first)
    assert runs.take("one") is None


def test_of_pages_that_were_left_the_oldest_go():
    runs = UnderWay()
    for k in range(100):
        runs.begin(str(k), k)
    assert len(runs) == 64
    assert runs.take("35") is None and runs.take("36") == 36 and runs.take("99") == 99
