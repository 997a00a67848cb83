"""Real text with known answers: find a function by what its first line says.

>>> data = pydocs(size="smoke")
>>> len(data.test.corpus), len(data.train.queries) > 200, len(data.test.queries) > 50
(300, True, True)

A query is the first paragraph of a docstring (4 to 30 words), its document the rest (30 words or
more, the first 2,000 characters). Packages that are installed are parsed, about half a minute
once. Where first paragraphs are equal, all their documents are relevant; equal documents are kept
once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Literal

from passband.data.cache import digest
from passband.data.documents.collection import Collection, Document, Listed
from passband.data.documents.docstrings import Documented, docstrings, here
from passband.data.documents.parts import Parts, split
from passband.errors import UnknownNameError

SHORTEST_QUERY, LONGEST_QUERY = 4, 30  # words
SHORTEST_DOCUMENT = 30  # words
LONGEST_DOCUMENT = 2000  # characters
# size -> documents at most, queries of valid and of test at most
SIZES: dict[str, tuple[int, int, int]] = {
    "full": (10**9, 1000, 2500), "small": (12_000, 300, 600), "smoke": (300, 30, 60),
}


def pydocs(
    seed: int = 0, size: str = "small", packages: Sequence[str] | None = None, *,
    by: Literal["query", "package"] = "query",
) -> Parts:
    """Collections of docstrings.

    seed      which queries are for training, validation and test; the corpus is the same
    size      "full", "small" (at most 12,000 documents) or "smoke" (300)
    packages  installed ones; None: all of `docstrings.PACKAGES` that are
    by        "package": queries of test come from packages that have none in training

    Raises `DataError` where no package is installed, `UnknownNameError` for size and by.
    """
    if size not in SIZES:
        raise UnknownNameError("size", size, SIZES)
    documents, valid, test = SIZES[size]
    whole = _collection(documents, here(packages))
    if by not in ("query", "package"):
        raise UnknownNameError("way to split", by, ("query", "package"))
    return split(whole, seed, valid, test, group=_package if by == "package" else None)


@cache
def _collection(most: int, packages: tuple[str, ...]) -> Collection:
    texts: dict[str, Documented] = {}
    for one in docstrings(packages):
        document = one.whole[:LONGEST_DOCUMENT]
        if (SHORTEST_QUERY <= len(one.first.split()) <= LONGEST_QUERY
                and len(document.split()) >= SHORTEST_DOCUMENT):
            texts.setdefault(" ".join(document.split()), one)
    return collect(
        ((one, one.whole[:LONGEST_DOCUMENT]) for one in sample(texts.values(), most)), packages
    )


def sample(found: Iterable[Documented], most: int) -> list[Documented]:
    """The first of a fixed shuffle, put back into the order of the ids."""
    shuffled = sorted(found, key=lambda one: digest([one.id]))[:most]
    return sorted(shuffled, key=lambda one: one.id)


def collect(
    found: Iterable[tuple[Documented, str]], packages: Sequence[str],
    judgements: Mapping[str, Mapping[str, int]] | None = None,
) -> Collection:
    """A collection of (docstring, text of its document), every first paragraph a query.

    judgements  None: a query's documents are those with its first paragraph
    """
    pairs = list(found)
    queries: dict[str, str] = {}
    relevant: dict[str, dict[str, int]] = {}
    first: dict[str, str] = {}  # paragraph -> id of the query
    for one, _ in pairs:
        # No id of a document: queries that are documents are taken out of their rankings.
        query = first.setdefault(one.first, f"query:{one.id}")
        queries[query] = one.first
        relevant.setdefault(query, {})[one.id] = 1
    if judgements is not None:
        queries = {one.id: one.first for one, _ in pairs if one.id in judgements}
    return Collection(
        Listed(Document(one.id, text) for one, text in pairs), queries,
        relevant if judgements is None else judgements, about={"packages": tuple(packages)},
        queries_are_documents=judgements is not None,
    )


def _package(id: str) -> str:
    return id.removeprefix("query:").split(".", 1)[0]
