"""Which documents a page has room for, and the recorded queries that they serve.

>>> chosen = choose(10, [[3, 4], [5], [0, 1]], limit=4)
>>> chosen.places.tolist(), chosen.queries
([0, 3, 4, 5], [0, 1])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Chosen:
    """places: of the documents, ascending; queries: numbers of those that are fully served."""

    places: np.ndarray[Any, Any]
    queries: list[int]


def choose(documents: int, needed: Sequence[Sequence[int]], limit: int) -> Chosen:
    """At most `limit` of so many documents.

    needed  for each query the documents that it can't be shown without: hits, relevant ones

    Queries are taken in their order while there is room; the rest of the room goes to documents
    evenly over the corpus.
    """
    taken: set[int] = set()
    queries = []
    for number, places in enumerate(needed):
        if len(taken | set(places)) <= limit:
            taken |= set(places)
            queries.append(number)
    most = min(limit, documents)
    spread = np.linspace(0, documents - 1, most).round().astype(np.int64)
    others = spread[~np.isin(spread, list(taken))]  # room for the rest, or more
    places = np.linspace(0, len(others) - 1, most - len(taken)).round().astype(np.int64)
    filling = others[places]
    return Chosen(np.array(sorted({*taken, *map(int, filling)}), dtype=np.int64), queries)
