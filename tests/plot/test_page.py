"""The page: whole in itself, readable on a telephone, and with everything escaped."""

import base64
import re
from html.parser import HTMLParser

import pytest

from virnucpro_pl.plot.page import Listing, Picture, make_page

VOID = {"meta", "img"}


class Balanced(HTMLParser):
    """Collects tags and attributes, and checks that what is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.seen = [], []
        self.feed(text)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def page(svg=b"<svg/>"):
    picture = Picture("a", "T<1>", 'shows "a" & b', b"\x89PNG is long", svg)
    of_run = Picture("b", "Phases", "shows b", b"\x89PNG is long", svg, of_run=True)
    tables = {"Counts": {"records": 12345, "rate": 0.5, "on": True, "off": None}, "None": {}}
    listing = Listing(
        "Best <i>",
        ("Record", "Bases", "Call"),
        [("<x>", 1234, "viral"), ("n" * 60 + "&" * 60, 5, "NA")],
        {"<x>": "a"},
    )
    pictures, warnings = [picture, of_run], ["Beware <x>"]
    return make_page("Title & <b>", "Lead.", pictures, tables, warnings, ["No y."], "1.2", listing)


@pytest.mark.parametrize(
    ("svg", "kind", "shown"),
    [(b"<svg/>", "svg+xml", b"<svg/>"), (b"<svg>" * 9, "png", b"\x89PNG is long")],
)
def test_page_holds_the_smaller_file_of_its_pictures_with_words_for_them(svg, kind, shown):
    image, _ = [attributes for tag, attributes in Balanced(page(svg)).seen if tag == "img"]
    head, _, data = image["src"].partition(",")
    assert head == f"data:image/{kind};base64"
    assert base64.b64decode(data) == shown
    assert image["alt"] == 'shows "a" & b'


def test_page_loads_nothing_and_is_made_for_small_screens():
    text, seen = page(), Balanced(page()).seen
    assert not re.search(r"https?:|//|<script|<link|@import|url\(", text.partition("base64")[0])
    viewport = [a["content"] for tag, a in seen if tag == "meta" and a.get("name") == "viewport"]
    assert viewport == ["width=device-width, initial-scale=1"]
    assert ("html", {"lang": "en"}) in seen
    assert re.search(r"img \{[^}]*width: 100%[^}]*height: auto", text)
    assert re.search(r"\.records \{ overflow-x: auto", text)
    assert "prefers-color-scheme: dark" in text


def test_page_escapes_and_shows_values():
    text = page()
    for part in ("<h1>Title &amp; &lt;b&gt;</h1>", "<h2>T&lt;1&gt;</h2>", "Beware &lt;x&gt;",
                 "<td>12,345</td>", "<td>0.5</td>", "<td>yes</td>", "<td>none</td>", "<p>No y.</p>",
                 "virnucpro-pl 1.2", "<h2>Best &lt;i&gt;</h2>"):  # fmt: skip
        assert part in text
    assert "<h2>None</h2>" not in text


def test_records_are_listed_with_links_to_their_pictures_and_long_names_cut():
    seen = Balanced(page()).seen
    assert [attributes["href"] for tag, attributes in seen if tag == "a"] == ["#a"]
    assert ("figure", {"id": "a"}) in seen
    [whole] = [attributes["title"] for tag, attributes in seen if tag == "span"]
    assert whole == "n" * 60 + "&" * 60
    text = page()
    assert '<td><a href="#a">&lt;x&gt;</a></td><td class="number">1,234</td><td>viral</td>' in text
    assert f">{'n' * 20}…{'&amp;' * 19}</span></td>" in text


def test_the_run_is_folded_away_at_the_end():
    shown, _, folded = page().partition("<details>")
    assert "Phases" not in shown
    assert "T&lt;1&gt;" not in folded
    assert folded.index("Phases") < folded.index("12,345") < folded.index("</details>")
    bare = make_page("t", "l", [], {}, [], [], "1")
    assert "<details>" not in bare
    assert "<table>" not in bare
