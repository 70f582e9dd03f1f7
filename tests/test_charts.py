"""What charts are built of: text stays text, values lie where their numbers say, ticks are round."""

import math
import xml.etree.ElementTree as ElementTree

import jinja2
import pytest

from koala.charts import Frame, Markup, Scale, element, join, legend, line, marker, text, ticks_around

HOSTILE = """</text><script>"x" & 'y'</script>"""


def test_text_and_attributes_are_escaped_and_elements_are_not():
    root = ElementTree.fromstring(element("g", text(HOSTILE, 1, 2), HOSTILE, aria_label=HOSTILE, class_="a", x=None))
    assert root.attrib == {"aria-label": HOSTILE, "class": "a"}
    assert [child.tag for child in root] == ["text"] and root[0].text == HOSTILE and root[0].tail == HOSTILE


def test_jinja_takes_markup_as_it_is_and_escapes_the_rest():
    template = jinja2.Environment(autoescape=True).from_string("{{ chart }}{{ words }}")
    assert template.render(chart=element("g", "<"), words="<") == "<g>&lt;</g>&lt;"
    assert isinstance(join([element("g"), element("g")]), Markup)


@pytest.mark.parametrize("log", [False, True])
def test_a_scale_ends_where_its_pixels_end(log):
    scale = Scale(least=1, most=100, low=40, high=240, log=log)
    assert (scale(1), scale(100)) == (40, 240)
    assert scale(10) == pytest.approx(140 if log else 40 + 200 * 9 / 99)
    assert Scale(least=3, most=3, low=0, high=10)(3) == 5


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ((0, 10), [0, 2.5, 5, 7.5, 10]),
        ((0, 2000), [0, 1000, 2000]),
        ((-1.1, 2.1), [-1, 0, 1, 2]),
        ((7, 7), [7]),
        ((0.5, 200, True), [1, 10, 100]),
        ((2, 4, True), [2, 3, 4]),
        ((1e-30, 1e30, True), None),
    ],
)
def test_ticks_are_round_and_lie_on_the_axis(scale, expected):
    least, most, *log = scale
    ticks = Scale(least=least, most=most, low=0, high=1, log=bool(log)).ticks()
    print(ticks)
    assert expected is None or ticks == pytest.approx(expected)
    assert 1 <= len(ticks) <= 5 and all(least - 1e-9 <= t <= most + 1e-9 for t in ticks)


@pytest.mark.parametrize(("low", "high"), [(0.31, 1.42), (24.9, 31.6), (28.1, 28.1), (0.0, 0.0), (-0.02, 0.3)])
def test_ticks_around_hold_all_values_between_them(low, high):
    ticks = ticks_around(low, high)
    print(ticks)
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    assert 2 <= len(ticks) <= 7
    digits = {f"{t / 10 ** math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9):.6f}".split(".")[1] for t in ticks}
    assert digits == {"000000"}, "whole multiples of the step's power of ten"


def test_a_frame_keeps_its_margins():
    frame = Frame(width=100, height=80, left=20, right=10, top=5, bottom=15)
    x, y = frame.across(0, 1), frame.up(0, 1)
    assert (x(0), x(1), y(0), y(1)) == (20, 90, 65, 5)
    rule, label = ElementTree.fromstring(element("g", frame.grid(y, [0.5], "{:.0%}".format)))
    assert rule.get("d") == "M20 35.0H90" and label.text == "50%" and label.get("text-anchor") == "end"
    assert float(ElementTree.fromstring(frame.below("a", 20)).get("y")) == 65 + 17
    assert ElementTree.fromstring(frame.svg("what it shows")).get("viewBox") == "0 0 100 80"


def test_points_lines_and_keys_lie_where_they_are_put():
    circle = ElementTree.fromstring(marker("circle", 3, 4, tip="a tip", fill="red"))
    assert (circle.get("cx"), circle.get("cy"), circle.get("fill")) == ("3.0", "4.0", "red")
    assert circle.find("title").text == "a tip"
    for shape in ("square", "triangle"):
        assert ElementTree.fromstring(marker(shape, 3, 4)).find("title") is None
    assert ElementTree.fromstring(line([(0, 1), (2.25, 3)], class_="a")).attrib == {
        "class": "chart-line a",
        "points": "0.0,1.0 2.2,3.0",
    }
    keys = ElementTree.fromstring(element("g", legend([(element("i"), n, 50) for n in "ab"], x=7, y=9, gap=4)))
    assert [key.get("transform") for key in keys] == ["translate(7 9)", "translate(57 9)"]


def test_a_file_holds_its_panels_side_by_side():
    frame = Frame(width=100, height=80, left=20, right=10, top=5, bottom=15)
    file = frame.file(
        "T <", [element("a"), element("b")], text("note", 0, 0), label="L", style="", width=216, height=90
    )
    svg = ElementTree.fromstring(file)
    groups = svg.findall("{http://www.w3.org/2000/svg}g")
    assert [g.get("transform") for g in groups] == ["translate(8 34)", "translate(108 34)"]
    assert svg.get("aria-label") == "L" and (svg.get("width"), svg.get("height")) == ("216", "90")
