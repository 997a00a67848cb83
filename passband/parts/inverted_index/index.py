"""An index over sparse vectors: search, explain, append.

>>> documents = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0], [0.0, 1.0, 1.0]])
>>> index = InvertedIndex.of(documents)
>>> index.search(np.array([[0.0, 1.0, 1.0]]), k=2)
TopK(places=array([[1, 0]]), scores=array([[3., 2.]], dtype=float32))
>>> index.explain(np.array([[0.0, 1.0, 1.0]]), 2)
[(1, 1.0), (2, 1.0)]

    Q queries, N documents, V vocabulary, k hits

The score of a document is the sum of its query's terms in rising order, in float32: the same to
the last bit whatever engine, number of threads, segments or shards. Equal scores: lower place
first. A document that has none of a query's terms never appears: where fewer than k have any, the
rest of the row is place -1 and score -inf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from passband.errors import DataError
from passband.parts.inverted_index import engines, files
from passband.parts.inverted_index.engines import Engine
from passband.parts.inverted_index.join import Joined, joined
from passband.parts.inverted_index.rows import SparseRows, as_rows
from passband.parts.inverted_index.segment import Quantise, Segment, steps
from passband.parts.segment_store import SegmentStore
from passband.parts.topk import TopK, merge

Beside: TypeAlias = Callable[[int], Mapping[str, NDArray[Any]]]
KIND = "sparse"


class InvertedIndex:
    """Segments of postings over one vocabulary; `append` adds one and changes none.

    engine    "auto", "numba" or "numpy"
    threads   for many queries at once; None: all processors, at most OMP_NUM_THREADS
    skip      leave out postings of documents that can't be among the k best (MaxScore): the same
              results. Of use where a few terms of a query far outweigh the rest; on drawn
              documents, up to a million, reading everything was faster.
    quantise  8-bit weights for what is added: "term", or a step for all terms; None: float32.
              Steps by term are each segment's own.
    """

    def __init__(
        self, segments: Sequence[Segment] = (), vocabulary: int | None = None, *,
        engine: Engine = "auto", threads: int | None = None, quantise: Quantise = None,
        skip: bool = False, store: SegmentStore | None = None,
    ) -> None:
        if vocabulary is None and not segments:
            raise DataError("an index without documents", expected="the vocabulary's size")
        self.vocabulary = segments[0].vocabulary if vocabulary is None else vocabulary
        self.segments: list[Segment] = list(segments)
        self.engine, self.threads, self.quantise = engine, threads, quantise
        self.skip, self.store = skip, store
        engines.chosen(engine)

    @classmethod
    def of(
        cls, documents: SparseRows, vocabulary: int | None = None, *, engine: Engine = "auto",
        threads: int | None = None, quantise: Quantise = None,
    ) -> InvertedIndex:
        """An index in memory.

        documents  CSR [N, V], or (indptr, terms, weights) with `vocabulary`; float32, any sign
        """
        rows = as_rows(documents, vocabulary)
        return cls([Segment.of(rows, quantise)], engine=engine, threads=threads, quantise=quantise)

    @classmethod
    def create(
        cls, folder: str | Path | None, blocks: Iterable[SparseRows],
        vocabulary: int | None = None, *, beside: Beside | None = None,
        facts: Mapping[str, Any] | None = None, memory: int = files.MEMORY,
        engine: Engine = "auto", threads: int | None = None, quantise: Quantise = None,
    ) -> InvertedIndex:
        """An index from blocks of documents, in a folder or (None) in memory.

        folder  new, empty or that of an index, which stays readable until this one is whole
        beside  called with the number of documents when all are read; the arrays that it gives are
                kept with theirs. Along the first axis they are put behind one another by `compact`.
        facts   JSON kept in the manifest
        memory  bytes that a build on disk takes, about, besides a block: the corpus may be larger

        >>> index = InvertedIndex.create("index", [np.eye(3), np.eye(3)])
        >>> InvertedIndex.open("index").search(np.eye(3)[:1], k=5).places
        array([[ 0,  3, -1, -1, -1]])
        """
        options: dict[str, Any] = {"engine": engine, "threads": threads, "quantise": quantise}
        engines.chosen(engine)
        steps(np.zeros(0, np.float32), quantise)
        if folder is None:
            parts = [Segment.of(as_rows(block, vocabulary)) for block in blocks]
            if not parts and vocabulary is None:
                raise DataError("no documents to index", expected="at least one block")
            whole = joined(parts, quantise) if parts else None
            return cls([whole] if whole else [], vocabulary, **options)
        store = SegmentStore.create(folder, KIND)
        with store.writing():
            with store.segment() as new:
                count = files.write_blocks(
                    new, blocks, vocabulary, quantise=quantise, memory=memory
                )
                for name, array in (beside(count) if beside else {}).items():
                    new.save(name, array)
            store.commit([new], facts={**(facts or {}), "quantise": quantise})
        return cls(**_loaded(store), **options, store=store)

    @classmethod
    def open(
        cls, folder: str | Path, *, engine: Engine = "auto", threads: int | None = None
    ) -> InvertedIndex:
        """The index in a folder, mapped into memory; `CheckpointError` where there is none."""
        store = SegmentStore.open(folder, KIND)
        quantise = store.facts.get("quantise")
        return cls(
            **_loaded(store), engine=engine, threads=threads, quantise=quantise, store=store
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What `create` was given."""
        return self.store.facts if self.store else {}

    def beside(self, name: str) -> list[NDArray[Any]]:
        """An array of that name beside each segment on disk."""
        return [self.store.arrays(each)[name] for each in self.store.segments] if self.store else []

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around what reads the index to decide what is appended: nobody else writes meanwhile."""
        if self.store is None:
            yield
            return
        with self.store.writing():
            if self.store.reload():
                self.segments = _loaded(self.store)["segments"]
            yield

    def __len__(self) -> int:
        return sum(segment.count for segment in self.segments)

    @property
    def nbytes(self) -> int:
        return sum(segment.nbytes for segment in self.segments)

    @property
    def offsets(self) -> list[int]:
        """The place of each segment's first document."""
        counts = [segment.count for segment in self.segments]
        return list(accumulate(counts, initial=0))[:-1]

    def append(
        self, documents: SparseRows, beside: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        """Add documents [n, V] behind those that are here: exact, the old ones are not touched.

        On disk a kill leaves the index with all of them or none. `beside`: see `create`.
        """
        segment = Segment.of(as_rows(documents, self.vocabulary), self.quantise)
        if self.store is None:
            self.segments.append(segment)
            return
        with self.writing():
            with self.store.segment() as new:
                files.write(new, segment)
                for name, array in (beside or {}).items():
                    new.save(name, array)
            self.store.commit([new], keep=list(self.store.segments))
            self.segments.append(_segment(self.store, new.folder.name))

    def compact(self, memory: int = files.MEMORY) -> None:
        """Join the segments to one: the same results, faster after many appends."""
        if self.store is None:
            self.segments = [joined(self.segments, self.quantise)]
            return
        with self.writing():
            old = [self.store.arrays(name) for name in self.store.segments]
            with self.store.segment() as new:
                files.write_joined(new, Joined(self.segments, self.quantise), memory)
                for name in old[0].keys() - new.sizes.keys():
                    new.save(name, np.concatenate([arrays[name] for arrays in old]))
            self.store.commit([new])
            self.segments = _loaded(self.store)["segments"]

    def search(self, queries: SparseRows, k: int) -> TopK:
        """The k best documents (at most N) of each query [Q, V].

        Raises `DataError` for another vocabulary, NaN and k < 1.
        """
        rows = self._queries(queries)
        if k < 1:
            raise DataError(f"k = {k}", expected="1 or more hits")
        k = min(k, len(self))
        found = [TopK(np.empty((rows.shape[0], 0), np.int64),
                      np.empty((rows.shape[0], 0), np.float32))]
        for offset, segment in zip(self.offsets, self.segments, strict=True):
            part = engines.search(
                segment, scaled(rows, segment), min(k, segment.count), self.engine, self.threads,
                self.skip,
            )
            found.append(TopK(np.where(part.places < 0, -1, part.places + offset), part.scores))
        return found[1] if len(found) == 2 else merge(found, k)

    def score(self, queries: SparseRows, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores [Q, m] of given documents [Q, m]; -inf where one has none of the query's terms.

        A place of -1 stands for nothing, as in the results of `search`.
        """
        rows = self._queries(queries)
        places = np.ascontiguousarray(places, dtype=np.int64)
        if places.ndim != 2 or len(places) != rows.shape[0]:
            raise DataError(
                f"places of the shape {places.shape} for {rows.shape[0]} queries",
                expected="a row of places for each query",
            )
        if places.size and not (places.min() >= -1 and places.max() < len(self)):
            raise DataError(
                f"places from {places.min()} to {places.max()}", expected=f"below {len(self)}"
            )
        scores = np.full(places.shape, -np.inf, np.float32)
        for offset, segment in zip(self.offsets, self.segments, strict=True):
            here = (places >= offset) & (places < offset + segment.count)
            local = np.where(here, places - offset, -1)
            part = engines.given(
                segment, scaled(rows, segment), local, self.engine, self.threads
            )
            scores[here] = part[here]
        return scores

    def two_phase(
        self, queries: SparseRows, k: int, *, ratio: float = 0.4, expansion: float = 5.0
    ) -> TopK:
        """Search with the heavy terms only, then score what was found with all.

        ratio      terms of at least this share of the query's largest weight are heavy; 0: all
        expansion  expansion * k candidates are scored in full

        Approximate: a document without a heavy term is never found. Scores are exact.
        """
        first, scores = self.phases(queries, k, ratio=ratio, expansion=expansion)
        return merge([TopK(first.places, scores)], min(k, len(self)))

    def phases(
        self, queries: SparseRows, k: int, *, ratio: float = 0.4, expansion: float = 5.0
    ) -> tuple[TopK, NDArray[np.float32]]:
        """What `two_phase` chooses from: candidates by the heavy terms, their scores by all."""
        rows = self._queries(queries)
        if not 0 <= ratio <= 1 or expansion < 1:
            raise DataError(
                f"ratio = {ratio}, expansion = {expansion}",
                expected="a ratio from 0 to 1, an expansion of 1 or more",
            )
        first = self.search(heavy(rows, ratio), expanded(k, expansion))
        return first, self.score(rows, first.places)

    def explain(self, query: SparseRows, place: int) -> list[tuple[int, float]]:
        """What each term adds to the score of a document, largest first: (term, contribution)."""
        rows = self._queries(query)
        if rows.shape[0] != 1:
            raise DataError(f"{rows.shape[0]} queries", expected="one query to explain")
        if not 0 <= place < len(self):
            raise DataError(f"place {place}", expected=f"from 0 to {len(self) - 1}")
        number = int(np.searchsorted(self.offsets, place, side="right")) - 1
        segment, local = self.segments[number], place - self.offsets[number]
        found = []
        for term, weight in zip(rows.indices, scaled(rows, segment).data, strict=True):
            start, stop = segment.indptr[term : term + 2]
            at = start + np.searchsorted(segment.documents[start:stop], local)
            if at < stop and segment.documents[at] == local:
                found.append((int(term), float(weight * np.float32(segment.weights[at]))))
        return sorted(found, key=lambda pair: -pair[1])

    def rows(self) -> sparse.csr_array:
        """All vectors [N, V] as float32 CSR."""
        if not self.segments:
            return sparse.csr_array((0, self.vocabulary), dtype=np.float32)
        stacked = sparse.vstack([segment.rows() for segment in self.segments], format="csr")
        return as_rows(stacked)

    def take(self, places: NDArray[np.int64]) -> sparse.csr_array:
        """The vectors [n, V] of some documents: a pass over all postings, whatever their number."""
        found = []
        for offset, segment in zip(self.offsets, self.segments, strict=True):
            here = np.flatnonzero((places >= offset) & (places < offset + segment.count))
            found.append((here, segment.take(places[here] - offset)))
        if not found:
            return sparse.csr_array((0, self.vocabulary), dtype=np.float32)
        stacked = sparse.vstack([rows for _, rows in found], format="csr")
        return stacked[np.argsort(np.concatenate([here for here, _ in found]))]

    def warm_up(self) -> None:
        """Compile the search loops now: the first search need not wait for it."""
        signed = any(segment.signed for segment in self.segments)
        engines.warm_up(self.engine, self.quantise, signed)

    def _queries(self, queries: SparseRows) -> sparse.csr_array:
        return as_rows(queries, self.vocabulary, what="queries")


def _segment(store: SegmentStore, name: str) -> Segment:
    return files.read(store.arrays(name), store.segments[name])


def _loaded(store: SegmentStore) -> dict[str, Any]:
    return {"segments": [_segment(store, name) for name in store.segments]}


def scaled(queries: sparse.csr_array, segment: Segment) -> sparse.csr_array:
    """Queries whose weights have the segment's quantisation steps in them."""
    weights = queries.data * segment.scales[queries.indices]
    return sparse.csr_array((weights, queries.indices, queries.indptr), shape=queries.shape)


def expanded(k: int, expansion: float) -> int:
    """Candidates of the first of two phases for k hits."""
    return max(1, round(expansion * k))


def heavy(queries: sparse.csr_array, ratio: float) -> sparse.csr_array:
    """The terms of at least `ratio` of each query's largest weight."""
    counts = np.diff(queries.indptr)
    top = np.zeros(queries.shape[0], np.float32)
    filled = counts > 0
    if filled.any():
        top[filled] = np.maximum.reduceat(queries.data, queries.indptr[:-1][filled])
    kept = queries.data >= ratio * np.repeat(top, counts)
    indptr = np.concatenate([[0], np.cumsum(kept)])[queries.indptr]
    return sparse.csr_array(
        (queries.data[kept], queries.indices[kept], indptr), shape=queries.shape
    )
