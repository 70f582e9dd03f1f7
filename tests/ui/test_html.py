"""Templates: what a visitor wrote stays text, and a template's own lines do not reach the page."""

import pytest
from jinja2 import DictLoader, UndefinedError

from koala.ui import html

HOSTILE = """<script>alert(1)</script> "double" 'single' & {{ 7 * 6 }}"""
TEMPLATE = """
{% macro item(name) %}
  <li title="{{ name }}">
    {{ name }}
  </li>
{% endmacro %}
{% macro all(names) %}
  <ul>
    {% for name in names %}
      {{ item(name) }}
    {% endfor %}
  </ul>
{% endmacro %}
{% macro missing() %}{{ nothing }}{% endmacro %}
{% macro called(ms) %}{{ duration(ms) }}{% endmacro %}
"""


@pytest.fixture
def shown(monkeypatch):
    monkeypatch.setattr(html, "ENVIRONMENT", html.ENVIRONMENT.overlay(loader=DictLoader({"own.html": TEMPLATE})))
    return html.macros("own.html", duration=lambda ms: f"<{ms} ms")


def test_text_is_escaped_once_also_through_a_second_macro(shown):
    text = "&lt;script&gt;alert(1)&lt;/script&gt; &#34;double&#34; &#39;single&#39; &amp; {{ 7 * 6 }}"
    assert shown.item(HOSTILE) == f'<li title="{text}">{text}</li>'
    assert shown.all([HOSTILE, "b"]) == f'<ul><li title="{text}">{text}</li><li title="b">b</li></ul>'
    assert shown.called(3) == "&lt;3 ms"


def test_html_is_plain_text_to_python(shown):
    html = shown.item("b")
    assert type(html) is str and html + "<hr>" == '<li title="b">b</li><hr>'


def test_a_missing_value_is_an_error(shown):
    with pytest.raises(UndefinedError, match="nothing"):
        shown.missing()


def test_every_template_of_the_app_escapes():
    assert html.ENVIRONMENT.autoescape is True
