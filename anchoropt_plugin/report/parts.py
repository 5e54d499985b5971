"""A page that needs no other file: the frame of all reports, and images inside it."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from string import Template

FRAME = Path(__file__).parents[1] / "assets" / "page.html"


def page_html(title: str, body: str) -> str:
    """Return a whole page; ``body`` is html, ``title`` is text."""
    frame = Template(FRAME.read_text(encoding="utf-8"))
    return frame.substitute(title=html.escape(title), body=body)


def image_html(content: bytes, kind: str, alt: str) -> str:
    """Return an image with its content inside; ``kind`` is a MIME type such as image/png."""
    coded = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(alt)}" src="data:{kind};base64,{coded}">'


def figure_html(svg: bytes, name: str, says: str) -> str:
    """Return a figure with a caption."""
    image = image_html(svg, "image/svg+xml", name)
    return f"<figure>{image}<figcaption>{html.escape(says)}</figcaption></figure>"
