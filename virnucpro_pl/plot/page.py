"""One HTML page with the pictures inside it: it can be sent, and opened without a network."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

MADE_BY = "virnucpro-pl "
"""In the footer of every page, before the version."""
_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: #fff; color: #1a1a1a;
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
main { display: grid; gap: 1.5rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
figure, section { margin: 0; min-width: 0; }
img { display: block; width: 100%; max-width: 45rem; height: auto; }
figcaption { font-size: .9rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0;
  border-bottom: 1px solid #d0d0d0; overflow-wrap: anywhere; }
th { font-weight: 600; width: 45%; }
.warning { border-left: .4rem solid #b00020; background: #fdecee; padding: .5rem .75rem; }
footer { margin-top: 2rem; font-size: .85rem; color: #555; }
"""


class Picture(NamedTuple):
    """A picture as it is shown."""

    name: str
    """Name of its file, without `.png`."""
    title: str
    """Heading above it."""
    alt: str
    """What it shows, for those who cannot see it."""
    png: bytes


def make_page(
    title: str,
    lead: str,
    pictures: Sequence[Picture],
    tables: Mapping[str, Mapping[str, Any]],
    warnings: Iterable[str],
    notes: Iterable[str],
    version: str,
) -> str:
    """Make the page.

    Args:
        title: Its heading.
        lead: What is shown, in a sentence or two.
        pictures: The pictures, in their order.
        tables: By heading, names and values.
        warnings: What a reader must know before anything else.
        notes: What is not there, and why.
        version: Of this package.
    """
    figures = "\n".join(map(_figure, pictures))
    sections = "\n".join(_section(name, rows) for name, rows in tables.items() if rows)
    first = "\n".join(f'<p class="warning">{escape(text)}</p>' for text in warnings)
    last = "\n".join(f"<p>{escape(text)}</p>" for text in notes)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{first}
<p>{escape(lead)}</p>
<main>
{figures}
{sections}
</main>
<footer>
{last}
{MADE_BY}{escape(version)}
</footer>
</body>
</html>
"""


def _figure(picture: Picture) -> str:
    image = b64encode(picture.png).decode()
    alt = escape(picture.alt)
    return f"""<figure>
<h2>{escape(picture.title)}</h2>
<img src="data:image/png;base64,{image}" alt="{alt}">
<figcaption>{alt}</figcaption>
</figure>"""


def _section(name: str, rows: Mapping[str, Any]) -> str:
    lines = "\n".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(_shown(value))}</td></tr>'
        for key, value in rows.items()
    )
    return f"<section>\n<h2>{escape(name)}</h2>\n<table>\n{lines}\n</table>\n</section>"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)
