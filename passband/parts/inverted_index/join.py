"""Several segments as one: each term's postings behind one another, a range of terms at a time.

>>> from passband.parts.inverted_index.rows import as_rows
>>> parts = [Segment.of(as_rows(np.array([row]))) for row in ([1.0, 2.0], [0.0, 3.0])]
>>> whole = joined(parts)
>>> whole.indptr, whole.documents, whole.weights
(array([0, 1, 3]), array([0, 0, 1], dtype=int32), array([1., 2., 3.], dtype=float32))

Documents of a later segment have higher places: behind one another means rising, without a sort.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from passband.errors import DataError
from passband.parts.inverted_index.segment import LEVELS, Quantise, Segment, steps, to_levels

PIECE = 1 << 22  # postings joined at a time: some 100 MB


class Piece(NamedTuple):
    documents: NDArray[np.int32]
    weights: NDArray[Any]


class Joined:
    """The segment that several make, read in pieces of neighbouring terms.

    Weights that are quantised are so with the largest of all segments; those that were before are
    rounded a second time.
    """

    def __init__(self, parts: Sequence[Segment], quantise: Quantise = None) -> None:
        self.parts = parts
        self.count = sum(part.count for part in parts)
        if self.count > np.iinfo(np.int32).max:
            raise DataError(
                f"{self.count} documents", expected="below 2^31 in an index",
                mend="several indexes, searched by passband.retrieval.shards",
            )
        self.indptr: NDArray[np.int64] = np.zeros_like(parts[0].indptr)
        for part in parts:
            self.indptr = self.indptr + part.indptr
        self.signed = any(part.signed for part in parts)
        top = np.max([part.maxima for part in parts], axis=0).astype(np.float32)
        self.scales = steps(top, quantise, self.signed)
        self.quantised = quantise is not None
        self.maxima = top
        if self.quantised:
            levels = np.maximum(np.rint(top / self.scales), (top > 0).astype(np.float32))
            self.maxima = np.minimum(levels, LEVELS).astype(np.float32) * self.scales

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if self.quantised else np.float32)

    def pieces(self, size: int = PIECE) -> Iterator[Piece]:
        """All postings in order, about `size` of them at a time."""
        term = 0
        while term < len(self.indptr) - 1:
            end = int(np.searchsorted(self.indptr, self.indptr[term] + size, side="right")) - 1
            end = max(end, term + 1)
            yield self._piece(term, end)
            term = end

    def _piece(self, first: int, last: int) -> Piece:
        base = self.indptr[first]
        documents = np.empty(self.indptr[last] - base, np.int32)
        weights = np.empty(len(documents), np.float32)
        free, offset = self.indptr[first:last] - base, 0
        for part in self.parts:
            begin, end = part.indptr[first], part.indptr[last]
            counts = np.diff(part.indptr[first : last + 1])
            at = np.repeat(free - (part.indptr[first:last] - begin), counts)
            at += np.arange(end - begin)
            documents[at] = part.documents[begin:end] + np.int32(offset)
            weights[at] = part.weights[begin:end] * np.repeat(part.scales[first:last], counts)
            free = free + counts
            offset += part.count
        if not self.quantised:
            return Piece(documents, weights)
        scales = np.repeat(self.scales[first:last], np.diff(self.indptr[first : last + 1]))
        return Piece(documents, to_levels(weights, scales))


def joined(parts: Sequence[Segment], quantise: Quantise = None) -> Segment:
    """The same in memory."""
    whole = Joined(parts, quantise)
    documents = np.empty(whole.indptr[-1], np.int32)
    weights = np.empty(whole.indptr[-1], whole.dtype)
    start = 0
    for piece in whole.pieces():
        end = start + len(piece.documents)
        documents[start:end], weights[start:end] = piece
        start = end
    return Segment(
        whole.indptr, documents, weights, whole.scales, whole.maxima, whole.count, whole.signed
    )
