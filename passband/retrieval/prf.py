"""Search twice: what the first search found revises the query for the second.

>>> system = create("rocchio", beta=1.0)
>>> _ = system.index(["ice melts in spring", "spring water and moss", "moss and fern"])
>>> found = system.search_prf("ice", k=3, feedback=1)
>>> found.first.ids, found.second.ids
([['0']], [['0', '1']])
>>> found.difference(0).added[0][0]
'melt'

A subclass gives `stage`, whose vectors stay as they are, and `revise`. Both rankings come from the
same index. Nothing is taken out of the second one, so passages that were read may lead it again;
`residual` leaves them out.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

from passband.bench.system import Monitor
from passband.data.documents.collection import Corpus
from passband.errors import ConfigError, DataError, PassbandWarning
from passband.retrieval.first_stage import FirstStage
from passband.retrieval.retriever import BLOCK, Documents, Retriever, Vectors, corpus_of

if TYPE_CHECKING:
    from passband.retrieval.hits import Hits
    from passband.retrieval.index import Index


@dataclass(frozen=True)
class Difference:
    """What the revision did to a sparse query: (term, weight after - weight before) each.

    added, removed  terms that the query did not have before, or has no more
    changed         terms of both
    """

    added: list[tuple[str, float]]
    removed: list[tuple[str, float]]
    changed: list[tuple[str, float]]


@dataclass(frozen=True)
class Revised:
    """Two searches for Q queries.

    first, second  rankings before and after
    before, after  vectors of the queries, [Q, V] CSR or [Q, D] arrays
    read           ids of the passages that each revision read, best first
    terms          names of a sparse vector's entries
    """

    first: Hits
    second: Hits
    before: Vectors
    after: Vectors
    read: list[list[str]]
    terms: Sequence[str] | None = None

    def difference(self, query: int, n: int = 20) -> Difference:
        """The n largest of each kind for one query; `ConfigError` for dense vectors."""
        if not scipy.sparse.issparse(self.after):
            raise ConfigError(
                "dense vectors have no terms", expected="a sparse index",
                mend="the vectors themselves are in `before` and `after`",
            )
        before, after = (_entries(v, query) for v in (self.before, self.after))
        change = {c: after.get(c, 0.0) - before.get(c, 0.0) for c in before.keys() | after.keys()}

        def named(columns: set[int]) -> list[tuple[str, float]]:
            order = sorted(columns, key=lambda c: (-abs(change[c]), c))[:n]
            return [(self.terms[c] if self.terms else str(c), change[c]) for c in order]

        return Difference(
            added=named(after.keys() - before.keys()), removed=named(before.keys() - after.keys()),
            changed=named(before.keys() & after.keys()),
        )

    def residual(self) -> list[list[str]]:
        """Ids of the second ranking without the passages that were read."""
        return [
            [i for i in ids if i not in set(read)]
            for ids, read in zip(self.second.ids, self.read, strict=True)
        ]


@dataclass(frozen=True)
class Found:
    """What each of Q queries is revised by.

    places  of the passages to read, best first; none: the query alone
    scores  of these passages in the first search
    """

    places: list[list[int]]
    scores: list[np.ndarray[Any, Any]]


class FeedbackRetriever(Retriever):
    """Base of the systems that search twice. Their configuration has a field `feedback`."""

    _corpus: Corpus | None = None

    @property
    @abstractmethod
    def stage(self) -> FirstStage:
        """What makes the vectors of documents and of plain queries."""

    @abstractmethod
    def revise(self, queries: Sequence[str], found: Found, index: Index) -> Vectors:
        """Vectors of revised queries, [Q, V] CSR or [Q, D]."""

    # ---- the first search --------------------------------------------------------------------

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        return self.stage.documents(texts)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Queries as the first search asks them."""
        return self.stage.queries(texts)

    def term(self, number: int) -> str:
        terms = self.stage.terms()
        return terms[number] if terms else str(number)

    def index(
        self, documents: Documents, folder: str | Path | None = None,
        monitor: Monitor | None = None,
    ) -> Index:
        corpus = corpus_of(documents)
        made = super().index(corpus, folder, monitor)
        self._corpus = corpus
        return made

    def index_shards(
        self, documents: Documents, folders: Sequence[str | Path], monitor: Monitor | None = None
    ) -> list[Index]:
        corpus = corpus_of(documents)
        made = super().index_shards(corpus, folders, monitor)
        self._corpus = corpus
        return made

    def prepare(self, corpus: Corpus, folder: Path | None) -> None:
        self.stage.prepare(blocks(corpus))

    def attach(self, documents: Documents) -> None:
        """The texts of an index that was opened from a folder: feedback reads them."""
        self._corpus = corpus_of(documents)

    def texts(self, places: Sequence[int], index: Index) -> list[str]:
        """What the passages at these places of the index say."""
        corpus = self._corpus
        if corpus is None:
            raise ConfigError(
                "the texts of the index are not known, and feedback reads them",
                expected="the corpus that was indexed",
                mend="call attach(documents) with it, or index(documents) again",
            )
        if len(corpus) != len(index):
            raise DataError(
                f"{len(corpus)} texts and an index of {len(index)} documents",
                expected="the corpus that was indexed", mend="call attach(documents) with it",
            )
        return [corpus[int(place)].full for place in places]

    def first_search(self, queries: Sequence[str], k: int, index: Index) -> Hits:
        """By the queries as they are."""
        return super().search(queries, k, index)

    # ---- both searches -----------------------------------------------------------------------

    def search(
        self, queries: str | Sequence[str], k: int = 10, index: Index | str | Path | None = None,
    ) -> Hits:
        """The k best documents by the revised queries: see `Retriever.search`."""
        return self.search_prf(queries, k, index=index).second

    def search_prf(
        self, queries: str | Sequence[str], k: int = 1000, feedback: int | None = None,
        index: Index | str | Path | None = None,
    ) -> Revised:
        """Search, read the best passages, search again with what came of it.

        feedback  passages to read; None: as configured; 0: the query alone. Where fewer were
                  found, those are read: `read` says which, and a number asked for here is warned
                  of.

        A blank query finds nothing; one that finds nothing at first is revised without feedback.
        """
        texts = [queries] if isinstance(queries, str) else list(queries)
        most = self.config.feedback if feedback is None else feedback
        if most < 0:
            raise ConfigError(f"feedback of {most} passages", expected="0 or more")
        chosen = self._chosen(index)
        first = self.first_search(texts, max(k, most, 1), chosen)
        found = [[int(p) for p in places[:most]] for places in first.places]
        short = sum(len(f) < min(most, len(chosen)) for f in found)
        if short and feedback is not None:
            warnings.warn(
                f"{short} of {len(texts)} queries found fewer than the {most} passages asked for; "
                "what was found is read", PassbandWarning, stacklevel=2,
            )
        scores = [np.asarray(s[: len(f)]) for s, f in zip(first.scores, found, strict=True)]
        after = self.revise(texts, Found(found, scores), chosen)
        second = self.find(chosen, after, k)
        blank = [not text.strip() for text in texts]
        return Revised(
            cut(first, [k] * len(texts)), cut(second, [0 if b else k for b in blank]),
            self.encode_queries(texts), after,
            read=[first.ids[i][: len(f)] for i, f in enumerate(found)], terms=self.stage.terms(),
        )

    def explain(
        self, query: str, document: str, index: Index | str | Path | None = None
    ) -> list[tuple[str, float]]:
        """Shares of the second search's score: see `Retriever.explain`."""
        chosen = self._chosen(index)
        after = self.search_prf(query, 1, index=chosen).after
        return [(name if isinstance(name, str) else self.term(name), share)
                for name, share in chosen.explain(after, document)]


def blocks(corpus: Corpus, size: int = BLOCK) -> Iterator[list[str]]:
    """Texts of a corpus in blocks."""
    texts = (document.full for document in corpus)
    while block := list(islice(texts, size)):
        yield block


def _entries(vectors: Any, row: int) -> dict[int, float]:
    start, end = vectors.indptr[row], vectors.indptr[row + 1]
    return {int(c): float(w) for c, w in zip(
        vectors.indices[start:end], vectors.data[start:end], strict=True
    ) if w}


def cut(hits: Hits, most: Sequence[int]) -> Hits:
    """The first so many of each query."""
    from passband.retrieval.hits import Hits

    return Hits(*(
        [found[:k] for found, k in zip(part, most, strict=True)]
        for part in (hits.ids, hits.scores, hits.places)
    ))
