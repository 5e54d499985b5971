"""A page that needs no other file: the frame of all reports, and images inside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Collection, Sequence
from pathlib import Path
from string import Template

from .figures import FORMATS

FRAME = Path(__file__).parents[1] / "assets" / "page.html"


def page_html(title: str, body: str) -> str:
    """Return a whole page; ``body`` is html, ``title`` is text."""
    frame = Template(FRAME.read_text(encoding="utf-8"))
    return frame.substitute(title=html.escape(title), body=body)


def image_html(content: bytes, kind: str, alt: str) -> str:
    """Return an image with its content inside; ``kind`` is a MIME type such as image/png."""
    coded = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(alt)}" src="data:{kind};base64,{coded}">'


def figure_html(svg: bytes, name: str, says: str, files: str) -> str:
    """Return a figure with a caption.

    Args:
        svg: the figure.
        name: what it shows, for those who do not see it.
        says: the caption.
        files: where ``write_figure`` wrote the figure, relative to the page and without suffix.
    """
    image = image_html(svg, "image/svg+xml", name)
    says = f"{says} Files: {files}.{', .'.join(FORMATS)}."
    return f"<figure>{image}<figcaption>{html.escape(says)}</figcaption></figure>"


def without_repeats(
    header: Sequence[str], rows: Sequence[Sequence[str]], always: Collection[str] = ()
) -> tuple[list[str], list[list[str]], str]:
    """Leave out the columns of a table that have the same text in all of several rows.

    Args:
        header: the names of the columns; the first one names the rows.
        rows: the texts.
        always: names of columns that stay.

    Returns:
        The header and the rows of the other columns, and a note that has those texts, or "".

    >>> without_repeats(["class", "images", "top-1"], [["cat", "9", "0.5"], ["dog", "9", "1.0"]])
    (['class', 'top-1'], [['cat', '0.5'], ['dog', '1.0']], 'In all rows: images 9.')
    """
    repeated = {
        place: rows[0][place]
        for place, name in enumerate(header)
        if place and len(rows) > 1 and name not in always and len({row[place] for row in rows}) == 1
    }
    kept = [place for place in range(len(header)) if place not in repeated]
    said = ", ".join(f"{header[place]} {text}" for place, text in repeated.items() if text)
    note = f"In all rows: {said}." if said else ""
    return [header[place] for place in kept], [[row[place] for place in kept] for row in rows], note
