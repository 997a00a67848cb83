"""Questions that documents answer by themselves: a title, or the first sentence, asks for the rest.

>>> from passband.data.documents.collection import Document, Listed
>>> corpus = Listed([Document("a", "Rivers of ice.", title="Glacier"), Document("b", "Geysers.")])
>>> [(example.query, example.positives) for example in headings(corpus)]
[('Glacier', ('Rivers of ice.', 'Glacier Rivers of ice.'))]

For a corpus that has few judged queries, or none: titles and their texts are among the pairs that
published retrievers are trained on as well.
"""

from __future__ import annotations

import re

import numpy as np

from passband.data.documents.collection import Corpus, Document, Example

MOST = 100_000  # documents whose texts are held in memory
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n\s*\n")


def headings(corpus: Corpus, most: int = MOST) -> list[Example]:
    """An example for each document that has a heading and something below it.

    most  documents that are asked, evenly spaced in a larger corpus

    The positives are the rest alone and the whole document, as it is indexed: so the document is
    no negative of its own heading, and learning does not end with the words that both share.
    """
    found = []
    for place in np.unique(np.linspace(0, len(corpus) - 1, min(most, len(corpus))).astype(int)):
        document = corpus[int(place)]
        heading, rest = parted(document)
        if heading and rest:
            found.append(Example(heading, (rest, document.full)))
    return found


def parted(document: Document) -> tuple[str, str]:
    """(title, text), or (first sentence, the rest) where there is no title.

    >>> parted(Document("a", "Melts when warm. Floats."))
    ('Melts when warm.', 'Floats.')
    """
    if document.title.strip():
        return document.title.strip(), document.text.strip()
    first, *rest = _SENTENCE.split(document.text.strip(), maxsplit=1)
    return first.strip(), "".join(rest).strip()
