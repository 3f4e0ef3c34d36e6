"""HTML: pages, sections, tables, escaped text. Only `text` and `block` put untrusted text on the page."""

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

# Control characters, marks that hide or reorder text, and lone surrogates, which UTF-8 cannot write.
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ud800-\udfff]")
_MAX_BLOCK = 3_000


def visible(words: str) -> str:
    """The words, with U+FFFD in place of each invisible character."""
    return _INVISIBLE.sub("\ufffd", words)


def text(words: str) -> str:
    """The words, escaped for HTML and `visible`."""
    return html.escape(visible(words))


def block(code: str, keep_end: bool = False) -> str:
    """`text` of at most 3,000 characters: the first ones, or with `keep_end` the last ones."""
    left_out = len(code) - _MAX_BLOCK
    if left_out <= 0:
        return text(code)
    note = f"[{left_out} characters left out]"
    return text(f"{note}\n{code[-_MAX_BLOCK:]}" if keep_end else f"{code[:_MAX_BLOCK]}\n{note}")


def page(title: str, body: str) -> str:
    """A whole page that fetches nothing: its style is inline, and its content policy forbids scripts and fetches."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body><main>
{body}</main></body>
</html>
"""


def section(title: str, body: str, anchor: str = "", level: int = 2) -> str:
    """A section under a heading of `level`; links lead to its anchor."""
    place = f' id="{anchor}"' if anchor else ""
    return f"<section{place}><h{level}>{title}</h{level}>\n{body}</section>\n"


def figure(svg: str, caption: str) -> str:
    return f"<figure>{_scrollable('figure', svg)}<figcaption>{caption}</figcaption></figure>\n"


def folded(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n{body}</details>\n"


def table(kind: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of class `kind`; the first cell of each row is its header. Cells are HTML: escape them first."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = ""
    for first, *rest in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        body += f'<tr><th scope="row">{first}</th>{cells}</tr>\n'
    parts = f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>"
    return _scrollable("table", f'<table class="{kind}">{parts}</table>') + "\n"


def preformatted(body: str, kind: str = "") -> str:
    """Preformatted HTML of class `kind`, which the arrow keys can scroll."""
    of_kind = f' class="{kind}"' if kind else ""
    return f'<pre tabindex="0"{of_kind}>{body}</pre>'


def _scrollable(label: str, body: str) -> str:
    """A region that scrolls sideways if it is too wide, with the arrow keys too."""
    return f'<div class="wide" role="region" aria-label="{label}" tabindex="0">{body}</div>'
