"""The page: whole in itself, readable on a telephone, and with everything escaped."""

import base64
import re
from html.parser import HTMLParser

from virnucpro_pl.plot.page import Picture, make_page

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


def page():
    picture = Picture("a", "T<1>", 'shows "a" & b', b"\x89PNG")
    tables = {"Counts": {"records": 12345, "rate": 0.5, "on": True, "off": None}, "None": {}}
    return make_page("Title & <b>", "Lead.", [picture], tables, ["Beware <x>"], ["No y."], "1.2")


def test_page_holds_its_pictures_with_words_for_them():
    [image] = [attributes for tag, attributes in Balanced(page()).seen if tag == "img"]
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == b"\x89PNG"
    assert image["alt"] == 'shows "a" & b'


def test_page_loads_nothing_and_is_made_for_small_screens():
    text, seen = page(), Balanced(page()).seen
    assert not re.search(r"https?:|//|<script|<link|@import|url\(", text.partition("base64")[0])
    viewport = [a["content"] for tag, a in seen if tag == "meta" and a.get("name") == "viewport"]
    assert viewport == ["width=device-width, initial-scale=1"]
    assert ("html", {"lang": "en"}) in seen
    assert re.search(r"img \{[^}]*width: 100%[^}]*height: auto", text)


def test_page_escapes_and_shows_values():
    text = page()
    for part in ("<h1>Title &amp; &lt;b&gt;</h1>", "<h2>T&lt;1&gt;</h2>", "Beware &lt;x&gt;",
                 "<td>12,345</td>", "<td>0.5</td>", "<td>yes</td>", "<td>none</td>", "<p>No y.</p>",
                 "virnucpro-pl 1.2"):  # fmt: skip
        assert part in text
    assert "<h2>None</h2>" not in text
