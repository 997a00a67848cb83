"""Unicode's many quotes, dashes and blanks as the one that a keyboard has.

>>> plain_text("“a” – b…\\u00a0c\\u200b⁄d")
'"a" - b... c/d'

mContriever and question answering fold texts so; the English retrievers don't.
"""

from __future__ import annotations

import unicodedata

_SINGLE = "‘’‚‛‹›′‵＇`´ʹʼˈ"
_DOUBLE = "“”„‟«»″‶＂˝ʺ"
_DASHES = "‐‑‒–—―−﹘﹣－⁃"
_SLASHES = "⁄∕／"
_TABLE: dict[int, str] = {
    **dict.fromkeys(map(ord, _SINGLE), "'"), **dict.fromkeys(map(ord, _DOUBLE), '"'),
    **dict.fromkeys(map(ord, _DASHES), "-"), **dict.fromkeys(map(ord, _SLASHES), "/"),
    ord("…"): "...",
}
_INVISIBLE = ("Cc", "Cf", "Co", "Cs")


def plain_text(text: str) -> str:
    """Quotes, dashes, slashes and ellipses folded, control characters out, each blank a space."""
    if text.isascii() and text.isprintable():
        return text.translate(_TABLE)
    folded = text.translate(_TABLE)
    return "".join(
        " " if c.isspace() else c for c in folded
        if c.isspace() or unicodedata.category(c) not in _INVISIBLE
    )
