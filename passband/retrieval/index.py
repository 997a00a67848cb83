"""Documents' vectors with their ids: what a retriever searches, in memory or in a folder.

>>> index = DenseIndex.create("stones", [np.eye(3)[:2], np.eye(3)[2:]], ["ruby", "jade", "opal"])
>>> index.search(np.array([[0.1, 0.9, 0.0]]), k=2).ids
[['jade', 'ruby']]
>>> index.append(np.array([[0.0, 2.0, 0.0]]), ["onyx"])
>>> Index.open("stones").search(np.array([[0.1, 0.9, 0.0]]), k=2).ids
[['onyx', 'jade']]

    Q queries, N documents, V vocabulary, d width, k hits

`SparseIndex`: rows of term weights in an inverted index; a document without any of a query's terms
is never a hit. `DenseIndex`: vectors and inner products. Both are exact; equal scores come in the
order of the documents. On disk all is memory-mapped, and a kill while building or appending leaves
what was there before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from scipy import sparse

from passband.errors import CheckpointError, DataError, UnknownNameError
from passband.parts.inverted_index import InvertedIndex, SparseRows
from passband.parts.segment_store import SegmentStore
from passband.parts.topk import TopK, longest_norm, merge, topk
from passband.retrieval.hits import Hits
from passband.retrieval.ids import BYTES, LENGTHS, Ids

Array = np.ndarray[Any, Any]


class Index(ABC):
    """Base. `ids` are the documents' ids by place; `ids.place(id)` is the other way."""

    kind: ClassVar[str]
    ids: Ids

    @classmethod
    @abstractmethod
    def create(
        cls, folder: str | Path | None, blocks: Iterable[Any], ids: Iterable[str], *,
        about: Mapping[str, Any] | None = None, **options: Any,
    ) -> Index:
        """Build from blocks of vectors, in a folder or (None) in memory.

        folder  new, empty, or that of an index, which is replaced when this one is whole
        ids     one for each document, in the order of the blocks
        about   JSON to be kept: where the texts lie, which system made the vectors
        options see the kinds

        Raises `DataError` for an id that comes twice and for more or fewer ids than documents.
        """

    @staticmethod
    def open(folder: str | Path, **options: Any) -> Index:
        """The index in a folder, of whatever kind; `CheckpointError` where there is none."""
        while True:
            store = SegmentStore.open(folder)
            try:
                return KINDS[store.kind]._opened(Path(folder), **options)
            except CheckpointError:
                if not store.reload():
                    raise  # else another process has joined the segments just now: look again

    @classmethod
    @abstractmethod
    def _opened(cls, folder: Path, **options: Any) -> Index: ...

    @abstractmethod
    def append(self, vectors: Any, ids: Iterable[str]) -> None:
        """Add documents behind those that are here; on disk all of them or, killed, none."""

    @abstractmethod
    def compact(self) -> None:
        """Join what was appended: the same results from fewer parts."""

    @abstractmethod
    def find(self, vectors: Any, k: int) -> TopK:
        """Places and scores [Q, k] of the k best documents, at most N; -1 where there are fewer."""

    def search(self, vectors: Any, k: int) -> Hits:
        """The k best documents of each query's vector, best first."""
        return Hits.of(self.find(vectors, k), self.ids)

    @abstractmethod
    def explain(self, vectors: Any, document: str) -> list[tuple[Any, float]]:
        """What makes up the score of one query's vector and a document: (term, share)."""

    @abstractmethod
    def vectors(self, places: Array) -> Any:
        """The vectors of documents, CSR [n, V] or array [n, d]."""

    @property
    @abstractmethod
    def width(self) -> int:
        """V or d."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the vectors."""

    @property
    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What `create` was given."""

    def __len__(self) -> int:
        return len(self.ids)

    def place(self, document: str) -> int:
        """The number of a document; `UnknownNameError` with the nearest ids."""
        return self.ids.place(document)


class SparseIndex(Index):
    """Rows of term weights. `postings` is the inverted index.

    options of `create`: vocabulary (asked for where there may be no block), quantise ("term" or a
    step: 8 bits a weight), engine ("auto", "numba", "numpy"), threads, memory (bytes of a build on
    disk); those of `open`: engine, threads.

    >>> rows = sparse.csr_array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
    >>> index = SparseIndex.create(None, [rows], ["a", "b"])
    >>> index.search(rows[:1], k=2).ids, index.explain(rows[:1], "a")
    ([['a']], [(2, 4.0), (0, 1.0)])
    """

    kind = "sparse"

    def __init__(self, postings: InvertedIndex, ids: Ids, about: Mapping[str, Any]) -> None:
        self.postings, self.ids, self._about = postings, ids, dict(about)

    @classmethod
    def create(
        cls, folder: str | Path | None, blocks: Iterable[SparseRows], ids: Iterable[str], *,
        about: Mapping[str, Any] | None = None, **options: Any,
    ) -> SparseIndex:
        arrays = Ids().checked(ids)
        postings = InvertedIndex.create(
            folder, blocks, beside=lambda count: _matched(arrays, count),
            facts={"about": dict(about or {})}, **options,
        )
        _matched(arrays, len(postings))
        return cls(postings, Ids([arrays]), about or {})

    @classmethod
    def _opened(cls, folder: Path, **options: Any) -> SparseIndex:
        postings = InvertedIndex.open(folder, **options)
        return cls(postings, _ids(postings.store), postings.facts.get("about", {}))

    def append(self, vectors: SparseRows, ids: Iterable[str]) -> None:
        with self.postings.writing():
            if len(self.ids) != len(self.postings):  # another process has appended
                self.ids = _ids(self.postings.store)
            arrays = self.ids.checked(ids)
            count = vectors.shape[0] if hasattr(vectors, "shape") else len(vectors[0]) - 1
            self.postings.append(vectors, _matched(arrays, count))
            self.ids.append(arrays)

    def compact(self) -> None:
        self.postings.compact()

    def find(self, vectors: SparseRows, k: int) -> TopK:
        return self.postings.search(vectors, k)

    def two_phase(
        self, vectors: SparseRows, k: int, *, ratio: float = 0.4, expansion: float = 5.0
    ) -> Hits:
        """Search by the heavy terms, then by all among what was found: faster, not exact."""
        return Hits.of(
            self.postings.two_phase(vectors, k, ratio=ratio, expansion=expansion), self.ids
        )

    def explain(self, vectors: SparseRows, document: str) -> list[tuple[int, float]]:
        return self.postings.explain(vectors, self.place(document))

    def vectors(self, places: Array) -> sparse.csr_array:
        return self.postings.take(places)

    @property
    def width(self) -> int:
        return self.postings.vocabulary

    @property
    def nbytes(self) -> int:
        return self.postings.nbytes

    @property
    def about(self) -> dict[str, Any]:
        return self._about


@dataclass
class Part:
    """Vectors [n, d] that are never changed, with the largest of their norms.

    A search needs it to know how far its float32 products may be off. None: of an index that was
    written without it, read off the vectors by the first search.
    """

    vectors: Array
    longest: float | None = None

    def search(self, queries: Array, k: int) -> TopK:
        if self.longest is None:
            self.longest = longest_norm(self.vectors)
        return topk(queries, self.vectors, k, longest=self.longest)


class DenseIndex(Index):
    """Vectors and inner products.

    option of `create`: dtype, "float32" or "float16" (half the bytes; scores of what is stored)
    """

    kind = "dense"

    def __init__(
        self, parts: list[Part], ids: Ids, about: Mapping[str, Any],
        store: SegmentStore | None = None,
    ) -> None:
        self.parts, self.ids, self._about, self.store = parts, ids, dict(about), store

    @classmethod
    def create(
        cls, folder: str | Path | None, blocks: Iterable[Array], ids: Iterable[str], *,
        about: Mapping[str, Any] | None = None,
        dtype: Literal["float32", "float16"] = "float32", **options: Any,
    ) -> DenseIndex:
        _none(options)
        if dtype not in ("float32", "float16"):
            raise DataError(f"dtype = {dtype!r}", expected="'float32' or 'float16'")
        arrays = Ids().checked(ids)
        count = len(arrays[LENGTHS])
        iterator = iter(blocks)
        first = next(iterator, None)
        if first is None:
            raise DataError("no documents to index", expected="at least one block")
        width = _checked(first, None, dtype).shape[1]
        pieces = (_checked(block, width, dtype) for block in chain([first], iterator))
        if folder is None:
            whole = np.concatenate(list(pieces))
            _matched(arrays, len(whole))
            return cls([Part(whole, longest_norm(whole))], Ids([arrays]), about or {})
        store = SegmentStore.create(folder, cls.kind)
        with store.writing():
            with store.segment() as new:
                with new.stream("vectors", dtype, (count, width)) as stream:
                    longest = 0.0
                    for piece in pieces:
                        longest = max(longest, longest_norm(piece))
                        stream.write(piece)
                    _matched(arrays, stream.rows)
                new.facts["longest"] = longest
                for name, array in arrays.items():
                    new.save(name, array)
            store.commit([new], facts={"about": dict(about or {}), "dtype": dtype})
        return cls(_parts(store), Ids([arrays]), about or {}, store)

    @classmethod
    def _opened(cls, folder: Path, **options: Any) -> DenseIndex:
        _none(options)
        store = SegmentStore.open(folder, cls.kind)
        return cls(_parts(store), _ids(store), store.facts.get("about", {}), store)

    def append(self, vectors: Array, ids: Iterable[str]) -> None:
        rows = _checked(vectors, self.width, str(self.dtype))
        longest = longest_norm(rows)
        if self.store is None:
            arrays = _matched(self.ids.checked(ids), len(rows))
            self.parts.append(Part(rows.copy(), longest))  # the caller may change theirs
            self.ids.append(arrays)
            return
        with self.store.writing():
            if self.store.reload():  # another process has appended
                self.parts, self.ids = _parts(self.store), _ids(self.store)
            arrays = _matched(self.ids.checked(ids), len(rows))
            with self.store.segment({"longest": longest}) as new:
                for name, array in {"vectors": rows, **arrays}.items():
                    new.save(name, array)
            self.store.commit([new], keep=list(self.store.segments))
            self.parts = _parts(self.store)
            self.ids.append(arrays)

    def compact(self) -> None:
        if self.store is None:
            whole = np.concatenate([part.vectors for part in self.parts])
            self.parts = [Part(whole, _longest(self.parts))]
            return
        with self.store.writing():
            if self.store.reload():
                self.parts, self.ids = _parts(self.store), _ids(self.store)
            old = [self.store.arrays(name) for name in self.store.segments]
            count = sum(len(part.vectors) for part in self.parts)
            with self.store.segment({"longest": _longest(self.parts)}) as new:
                with new.stream("vectors", self.dtype, (count, self.width)) as stream:
                    for part in self.parts:
                        stream.write(part.vectors)
                for name in (BYTES, LENGTHS):
                    new.save(name, np.concatenate([arrays[name] for arrays in old]))
            self.store.commit([new])
            self.parts = _parts(self.store)

    def find(self, vectors: Array, k: int) -> TopK:
        found, offset = [], 0
        for part in self.parts:
            if len(part.vectors):
                places, scores = part.search(vectors, k)
                found.append(TopK(places + offset, scores))
                offset += len(part.vectors)
        return found[0] if len(found) == 1 else merge(found, min(k, len(self)))

    def explain(self, vectors: Array, document: str) -> list[tuple[str, float]]:
        """Dense vectors have no terms: the one share is the score."""
        rows = np.asarray(vectors, dtype=np.float32)
        place = self.place(document)
        score = topk(rows, self.vectors(np.array([place])), 1).scores[0, 0]
        return [("inner product", float(score))]

    def vectors(self, places: Array) -> Array:
        places = np.asarray(places)
        found = np.empty((len(places), self.width), np.float32)
        offset = 0
        for part in self.parts:
            here = (places >= offset) & (places < offset + len(part.vectors))
            found[here] = part.vectors[places[here] - offset]
            offset += len(part.vectors)
        return found

    @property
    def width(self) -> int:
        return int(self.parts[0].vectors.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.parts[0].vectors.dtype

    @property
    def nbytes(self) -> int:
        return sum(part.vectors.nbytes for part in self.parts)

    @property
    def about(self) -> dict[str, Any]:
        return self._about


KINDS: dict[str, type[Index]] = {"sparse": SparseIndex, "dense": DenseIndex}


def _none(options: Mapping[str, Any]) -> None:
    if options:
        raise UnknownNameError("option of a dense index", next(iter(options)), ["dtype"])


def _ids(store: SegmentStore | None) -> Ids:
    return Ids(store.arrays(name) for name in store.segments) if store else Ids()


def _parts(store: SegmentStore) -> list[Part]:
    return [
        Part(store.arrays(name)["vectors"], facts.get("longest"))
        for name, facts in store.segments.items()
    ]


def _longest(parts: list[Part]) -> float | None:
    """Of all parts; None where one isn't known."""
    known = [part.longest for part in parts if part.longest is not None]
    return max(known) if len(known) == len(parts) else None


def _matched(arrays: dict[str, Array], count: int) -> dict[str, Array]:
    if len(arrays[LENGTHS]) != count:
        raise DataError(
            f"{len(arrays[LENGTHS])} ids for {count} documents", expected="one for each"
        )
    return arrays


def _checked(block: Any, width: int | None, dtype: str) -> Array:
    rows = np.asarray(block)
    if rows.ndim != 2 or (width is not None and rows.shape[1] != width):
        raise DataError(
            f"vectors of the shape {rows.shape}",
            expected="a row for each document" + (f" of {width} numbers" if width else ""),
            mend="encode all documents with the same system",
        )
    with np.errstate(over="ignore"):  # told below
        rows = np.ascontiguousarray(rows, dtype=dtype)
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
        raise DataError(
            f"vector {bad} of a block has NaN or infinite numbers",
            expected=f"finite numbers within {dtype}",
        )
    return rows
