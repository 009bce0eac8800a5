"""Pages for a browser: one HTML file that needs nothing else, runs nothing, and asks nobody."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Iterator, Sequence

from vmstackctl.report.pictures import Picture, as_svg
from vmstackd.version import VERSION

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #595959; --paper: #fafafa; --line: #d0d0d0 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --soft: #b4b4b4; --paper: #161616; --line: #444444 }
}
body { margin: 0 auto; max-width: 75rem; padding: 1.5rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, "DejaVu Sans", sans-serif }
h1 { font-size: 1.6rem; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem }
p { max-width: 46rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem }
dt, footer { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
.wide { overflow-x: auto }
.wide + .wide { margin-top: 1.5rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: bottom }
th:first-child { text-align: left }
img { display: block; box-sizing: border-box; width: 100%; height: auto; padding: .5rem; background: #ffffff;
  border: 1px solid var(--line); border-radius: 6px }
footer { margin-top: 3rem; font-size: .85rem }
"""


def framed(title: str, program: str, body: Iterable[str]) -> str:
    """The whole page, with the title as its first heading. body: lines of HTML; title and program: text."""
    return "".join(f"{line}\n" for line in _lines(html.escape(title), program, body))


def facts(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Terms and what is to be said of each, as text."""
    yield "<dl>"
    for term, text in pairs:
        yield f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>"
    yield "</dl>"


def table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """All as text; the first cell of a row is its heading."""
    yield '<div class="wide"><table>'
    yield "<thead><tr>" + "".join(f'<th scope="col">{html.escape(head)}</th>' for head in heads) + "</tr></thead>"
    yield "<tbody>"
    for first, *others in rows:
        rest = "".join(f"<td>{html.escape(cell)}</td>" for cell in others)
        yield f'<tr><th scope="row">{html.escape(first)}</th>{rest}</tr>'
    yield "</tbody>"
    yield "</table></div>"


def shown(picture: Picture) -> Iterator[str]:
    """With its heading and text, or why it is left out."""
    yield f"<h2>{html.escape(picture.heading)}</h2>"
    if picture.missing:
        yield f"<p>Left out. {html.escape(picture.missing)}</p>"
        return
    data = base64.b64encode(as_svg(picture)).decode()
    yield f"<p>{html.escape(picture.text)}</p>"
    yield f'<img src="data:image/svg+xml;base64,{data}" alt="{html.escape(picture.alt)}">'


def _lines(title: str, program: str, body: Iterable[str]) -> Iterator[str]:
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    yield "<!DOCTYPE html>"
    yield '<html lang="en">'
    yield "<head>"
    yield '<meta charset="utf-8">'
    yield (
        '<meta http-equiv="Content-Security-Policy" '
        f"content=\"default-src 'none'; img-src data:; style-src 'sha256-{digest}'\">"
    )
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title>"
    yield f"<style>{_STYLE}</style>"
    yield "</head>"
    yield "<body>"
    yield f"<h1>{title}</h1>"
    yield from body
    yield f"<footer>{html.escape(program)}, version {html.escape(VERSION)}</footer>"
    yield "</body>"
    yield "</html>"
