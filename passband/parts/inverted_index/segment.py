"""Postings: for each term the documents that have it, in rising order, with their weights.

>>> rows = as_rows(np.array([[0.0, 2.0], [1.0, 3.0]]))
>>> segment = Segment.of(rows)
>>> segment.indptr, segment.documents, segment.weights
(array([0, 1, 3]), array([1, 0, 1], dtype=int32), array([1., 2., 3.], dtype=float32))

Turning rows into columns is a counting sort over the terms (scipy's), O(nnz + V).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from passband.errors import DataError
from passband.parts.inverted_index.rows import as_rows

# "term": 8 bits a weight, a step for each term; a number: one step for all, such as the 1.0 of
# impacts that are whole numbers from 1 to 255 already.
Quantise: TypeAlias = Literal["term"] | float | None
LEVELS = 255


@dataclass(frozen=True)
class Segment:
    """A part of an index that is never changed: its documents are numbered from 0.

    indptr     [V + 1] int64: postings of term j lie from indptr[j] to indptr[j + 1]
    documents  [nnz] int32
    weights    [nnz] float32, or uint8 in steps of `scales`
    scales     [V] float32, all one for float32 weights
    maxima     [V] float32: the largest weight of each term, 0 without postings
    count      documents, those without a term too
    signed     some weights are negative
    """

    indptr: NDArray[np.int64]
    documents: NDArray[np.int32]
    weights: NDArray[np.float32] | NDArray[np.uint8]
    scales: NDArray[np.float32]
    maxima: NDArray[np.float32]
    count: int
    signed: bool

    @classmethod
    def of(cls, rows: sparse.csr_array, quantise: Quantise = None) -> Segment:
        """The postings of checked rows [N, V], see `as_rows`."""
        columns = rows.tocsc()
        indptr = columns.indptr.astype(np.int64)
        weights, scales = quantised(columns.data, indptr, quantise)
        return cls(
            indptr, columns.indices.astype(np.int32, copy=False), weights, scales,
            largest(weights, indptr) * scales, rows.shape[0], bool((columns.data < 0).any()),
        )

    @property
    def vocabulary(self) -> int:
        return len(self.indptr) - 1

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept on disk."""
        return {
            "indptr": self.indptr, "documents": self.documents, "weights": self.weights,
            "scales": self.scales, "maxima": self.maxima,
        }

    def term(self, term: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Documents of a term, and their weights."""
        part = slice(self.indptr[term], self.indptr[term + 1])
        return self.documents[part], self.weights[part] * self.scales[term]

    def rows(self) -> sparse.csr_array:
        """The vectors [N, V] that the segment was made of (up to quantisation)."""
        weights = self.weights * np.repeat(self.scales, np.diff(self.indptr))
        columns = sparse.csc_array(
            (weights.astype(np.float32, copy=False), self.documents, self.indptr),
            shape=(self.count, self.vocabulary),
        )
        return as_rows(columns.tocsr())

    def take(self, places: NDArray[np.int64]) -> sparse.csr_array:
        """The vectors [n, V] of some of the documents."""
        chosen, inverse = np.unique(places, return_inverse=True)
        row = np.full(self.count, -1, np.int64)
        row[chosen] = np.arange(len(chosen))
        at = np.flatnonzero(row[self.documents] >= 0)
        terms = np.searchsorted(self.indptr, at, side="right") - 1
        weights = self.weights[at] * self.scales[terms]
        rows = sparse.coo_array(
            (weights.astype(np.float32), (row[self.documents[at]], terms)),
            shape=(len(chosen), self.vocabulary),
        ).tocsr()
        return as_rows(rows[inverse])


def quantised(
    weights: NDArray[np.float32], indptr: NDArray[np.int64], quantise: Quantise
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Weights as they are stored, and each term's step."""
    signed = bool(len(weights) and weights.min() < 0)
    scales = steps(largest(weights, indptr), quantise, signed)
    if quantise is None:
        return weights, scales
    return to_levels(weights, np.repeat(scales, np.diff(indptr))), scales


def steps(
    top: NDArray[np.float32], quantise: Quantise, signed: bool = False
) -> NDArray[np.float32]:
    """[V] steps for terms whose largest weights are `top`; all one where nothing is quantised."""
    if quantise is None:
        return np.ones(len(top), np.float32)
    if signed:
        raise DataError("weights below 0 can't be quantised", mend="leave `quantise` out")
    if quantise == "term":
        return np.where(top > 0, top / LEVELS, 1).astype(np.float32)
    if isinstance(quantise, str) or not quantise > 0:
        raise DataError(f"quantise = {quantise!r}", expected="'term' or a step above 0")
    return np.full(len(top), quantise, np.float32)


def to_levels(
    weights: NDArray[np.float32], scales: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Rounded to the nearest of 255 levels, never down to 0: a document keeps all its terms."""
    levels: NDArray[np.float32] = np.rint(weights / scales)
    if len(levels) and levels.max() > LEVELS:
        raise DataError(
            f"a weight of {weights.max():g} is above {LEVELS} steps of {scales.max():g}",
            mend="a larger step, or 'term'",
        )
    stored: NDArray[np.uint8] = np.maximum(levels, 1).astype(np.uint8)
    return stored


def largest(weights: NDArray[Any], indptr: NDArray[np.int64]) -> NDArray[np.float32]:
    """[V] the largest weight of each term; 0 for a term without postings."""
    found = np.zeros(len(indptr) - 1, np.float32)
    filled = np.diff(indptr) > 0
    if filled.any():
        # From each start to the next: terms without postings have to be left out.
        found[filled] = np.maximum.reduceat(weights, indptr[:-1][filled])
    return found
