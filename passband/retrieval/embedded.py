"""The text that vocabulary and backbones are learned from where a user gives none.

>>> len(embedded_corpus("smoke")) > 30
True

Bodies of docstrings of the installed packages: what `pydocs` searches. No query is read. The size
"smoke" is docstrings of 60 modules of the standard library, parsed in under a second.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

from passband.data.documents.collection import Corpus, Document, Listed

SMOKE_MODULES = 60


@cache
def embedded_corpus(size: Literal["full", "smoke"] = "full") -> Corpus:
    """A `Corpus`; the full one is parsed once, about half a minute, then read from the cache."""
    if size == "smoke":
        from passband.data.text import docstrings

        texts = docstrings(SMOKE_MODULES).train
        return Listed(Document(str(place), text) for place, text in enumerate(texts))
    from passband.data.documents.pydocs import pydocs

    return pydocs(size="full").train.corpus
