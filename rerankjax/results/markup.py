"""HTML fragments: escaped text, sections and tables. Only `text` and `block` let strangers' words onto the page."""

import html
import re
from collections.abc import Iterable, Sequence

# Control characters, marks that hide or reorder text, and lone surrogates, which UTF-8 cannot write.
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ud800-\udfff]")
_MAX_BLOCK = 3_000


def text(words: str) -> str:
    """Escaped, with each invisible character shown as U+FFFD."""
    return html.escape(_INVISIBLE.sub("\ufffd", words))


def block(code: str, keep_end: bool = False) -> str:
    """As `text`, at most 3,000 characters of it: the first, or with `keep_end` the last."""
    left_out = len(code) - _MAX_BLOCK
    if left_out <= 0:
        return text(code)
    note = f"[{left_out} characters left out]"
    return text(f"{note}\n{code[-_MAX_BLOCK:]}" if keep_end else f"{code[:_MAX_BLOCK]}\n{note}")


def section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>\n{body}</section>\n"


def figure(svg: str, caption: str) -> str:
    return f'<figure><div class="wide">{svg}</div><figcaption>{caption}</figcaption></figure>\n'


def folded(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n{body}</details>\n"


def table(kind: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of class `kind`; the first cell of each row is its header. Cells are HTML: escape them first."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = ""
    for first, *rest in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        body += f'<tr><th scope="row">{first}</th>{cells}</tr>\n'
    parts = f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>"
    return f'<div class="wide"><table class="{kind}">{parts}</table></div>\n'
