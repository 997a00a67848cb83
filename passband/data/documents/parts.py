"""Queries of one corpus in three parts.

>>> from passband.data.documents.collection import Document, Listed
>>> corpus = Listed([Document(f"d{i}", "text") for i in range(20)])
>>> queries = {f"q{i}": "text" for i in range(20)}
>>> whole = Collection(corpus, queries, {f"q{i}": {f"d{i}": 1} for i in range(20)})
>>> parts = split(whole, seed=0, valid=2, test=4)
>>> [len(part.queries) for part in (parts.train, parts.valid, parts.test)]
[14, 2, 4]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from passband.data.cache import digest
from passband.data.documents.collection import Collection
from passband.errors import DataError


@dataclass(frozen=True)
class Parts:
    """Collections with queries apart, most often over one corpus."""

    train: Collection
    valid: Collection
    test: Collection


def split(
    whole: Collection, seed: int, valid: int, test: int,
    group: Callable[[str], str] | None = None,
) -> Parts:
    """Train, valid and test by a shuffle of the queries that depends on their ids and the seed.

    valid, test  queries at most; never more than a tenth and a fifth of all
    group        of a query's id: groups in test are in neither of the others
    """
    order = sorted(whole.queries, key=lambda q: (
        digest([str(seed), group(q)]) if group else "", digest([str(seed), q])
    ))
    valid, test = min(valid, len(order) // 10), min(test, len(order) // 5)
    if min(valid, test) < 1:
        raise DataError(
            f"{len(order)} queries", expected="at least 10 to split", mend="give more of them",
        )
    held = {group(q) for q in order[:test]} if group else set()
    rest = [q for q in order[test:] if not group or group(q) not in held]
    return Parts(
        whole.part(rest[valid:], learn=True), whole.part(rest[:valid]), whole.part(order[:test]),
    )
