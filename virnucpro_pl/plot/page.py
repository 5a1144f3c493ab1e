"""One HTML page with the pictures inside it: it can be sent, and opened without a network."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from virnucpro_pl.plot.names import shortened

MADE_BY = "virnucpro-pl "
"""In the footer of every page, before the version."""
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1a1a1a; --faint: #555; --line: #d0d0d0;
  --link: #0b57d0; --alarm: #b00020; --alarm-page: #fdecee; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181b; --ink: #e6e6e6; --faint: #a6a6a6; --line: #44484d;
    --link: #8ab4f8; --alarm: #ff8a80; --alarm-page: #3b1d20; } }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
a { color: var(--link); }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
main, details div { display: grid; gap: 1.5rem; align-items: start; margin: 1.5rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
figure, section { margin: 0; min-width: 0; }
img { display: block; box-sizing: border-box; width: 100%; max-width: 45rem; height: auto;
  padding: .25rem; background: #fff; }
figcaption { margin-top: .25rem; font-size: .9rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { font-weight: 600; }
th[scope=row] { width: 45%; }
.records { overflow-x: auto; }
.records :is(th, td) { white-space: nowrap; overflow-wrap: normal; padding-right: 1.25rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
summary { font-size: 1.15rem; font-weight: 600; cursor: pointer; }
.warning { border-left: .4rem solid var(--alarm); background: var(--alarm-page);
  padding: .5rem .75rem; }
footer { margin-top: 2rem; font-size: .85rem; color: var(--faint); }
"""
_NAME_LETTERS = 40


class Picture(NamedTuple):
    """A picture as it is shown."""

    name: str
    """Name of its files, without `.png` and `.svg`."""
    title: str
    """Heading above it."""
    alt: str
    """What it shows, for those who cannot see it."""
    png: bytes
    svg: bytes
    of_run: bool = False
    """Whether it is of how the run went, and not of its results."""


class Listing(NamedTuple):
    """A table, the first column what its lines are of, such as the ids of records."""

    title: str
    header: Sequence[str]
    """Names of the columns."""
    rows: Sequence[Sequence[str | int]]
    """A cell for each column; whole numbers stand on the right."""
    links: Mapping[str, str]
    """Name of its picture, for the ids that have one."""


def make_page(
    title: str,
    lead: str,
    pictures: Sequence[Picture],
    tables: Mapping[str, Mapping[str, Any]],
    warnings: Iterable[str],
    notes: Iterable[str],
    version: str,
    listing: Listing | None = None,
) -> str:
    """Make the page.

    Args:
        title: Its heading.
        lead: What is shown, in a sentence or two.
        pictures: The pictures, in their order; those of the run are folded away at the end.
        tables: By heading, names and values; folded away, too.
        warnings: What a reader must know before anything else.
        notes: What is not there, and why.
        version: Of this package.
        listing: Records or metrics, before all pictures.
    """
    figures = "\n".join(_figure(picture) for picture in pictures if not picture.of_run)
    details = [_figure(picture) for picture in pictures if picture.of_run]
    details += [_section(name, rows) for name, rows in tables.items() if rows]
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
{_listing(listing) if listing else ""}
<main>
{figures}
</main>
{_folded(details)}
<footer>
{last}
{MADE_BY}{escape(version)}
</footer>
</body>
</html>
"""


def _folded(parts: Sequence[str]) -> str:
    inside = "\n".join(parts)
    head = "<details>\n<summary>Details of the run</summary>"
    return f"{head}\n<div>\n{inside}\n</div>\n</details>" if parts else ""


def _figure(picture: Picture) -> str:
    kind, content = ("svg+xml", picture.svg)
    if len(picture.png) < len(content):  # as of many thousand points
        kind, content = ("png", picture.png)
    image = b64encode(content).decode()
    alt = escape(picture.alt)
    return f"""<figure id="{escape(picture.name)}">
<h2>{_cut(picture.title)}</h2>
<img src="data:image/{kind};base64,{image}" alt="{alt}">
<figcaption>{alt}</figcaption>
</figure>"""


def _listing(listing: Listing) -> str:
    lines = "\n".join(_record(row, listing.links.get(str(row[0]))) for row in listing.rows)
    first = listing.rows[0] if listing.rows else listing.header
    head = "".join(
        f'<th scope="col"{_aligned(value)}>{escape(name)}</th>'
        for name, value in zip(listing.header, first, strict=True)
    )
    title = escape(listing.title)
    return f"""<section>
<h2>{title}</h2>
<div class="records" role="region" aria-label="{title}" tabindex="0">
<table>
<tr>{head}</tr>
{lines}
</table>
</div>
</section>"""


def _record(row: Sequence[str | int], picture: str | None) -> str:
    name = _cut(str(row[0]))
    first = f'<a href="#{escape(picture)}">{name}</a>' if picture else name
    cells = (f"<td{_aligned(value)}>{_cut(_shown(value))}</td>" for value in row[1:])
    return f"<tr><td>{first}</td>{''.join(cells)}</tr>"


def _aligned(value: str | int) -> str:
    return "" if isinstance(value, str) else ' class="number"'


def _cut(text: str) -> str:
    """A text, if it is long cut in the middle, and then whole where one points at it."""
    short = escape(shortened(text, _NAME_LETTERS))
    whole = escape(text)
    return short if short == whole else f'<span title="{whole}">{short}</span>'


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
