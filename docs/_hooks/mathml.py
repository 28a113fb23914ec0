"""Turn the LaTeX of a page into MathML when the site is built: no script, no network, readable.

``$…$`` and ``$$…$$`` reach this hook as arithmatex spans; browsers show MathML as it is.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_SPAN = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\s*(?P<open>\\\(|\\\[)(?P<latex>.*?)(?:\\\)|\\\])\s*'
    r"</(?P=tag)>",
    flags=re.S,
)


def on_page_content(text: str, **_: Any) -> str:
    """Replace every formula of a page."""
    return _SPAN.sub(_mathml, text)


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match["open"] == r"\[" else "inline"
    return convert(html.unescape(match["latex"]), display=display)
