"""Sparse vectors as they come, checked and put in order: rows of (term, weight), terms rising.

>>> rows = as_rows((np.array([0, 2]), np.array([3, 1]), np.array([0.5, 2.0])), vocabulary=4)
>>> rows.indices.tolist(), rows.data.tolist()
([1, 3], [2.0, 0.5])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from passband.errors import DataError

# A scipy CSR matrix or array, a dense matrix, or the three arrays (indptr, terms, weights).
SparseRows: TypeAlias = "sparse.csr_array | sparse.csr_matrix | NDArray[Any] | Sequence[Any]"


def as_rows(
    vectors: SparseRows, vocabulary: int | None = None, *, what: str = "documents"
) -> sparse.csr_array:
    """The vectors as float32 CSR [N, V]: terms rising in each row, no zeros, nothing twice.

    vocabulary  V; asked for with three arrays, compared with the shape of the others
    what        what errors call the rows

    Weights of a term that comes twice in a row are added up. Raises `DataError` for another V,
    for NaN and infinite weights, for terms outside the vocabulary.
    """
    if isinstance(vectors, (tuple, list)) and len(vectors) == 3:
        vectors = _from_arrays(vectors, vocabulary, what)
    # A copy only where something changes: the caller's matrix stays as it is.
    rows = sparse.csr_array(vectors, dtype=np.float32, copy=False)
    if rows.ndim != 2 or (vocabulary is not None and rows.shape[1] != vocabulary):
        raise DataError(
            f"{what} have the shape {tuple(rows.shape)}",
            expected=f"rows of {vocabulary} terms" if vocabulary is not None else "a matrix",
            mend="encode queries and documents with the same system",
        )
    if not np.isfinite(rows.data).all():
        bad = int(np.argmin(np.isfinite(rows.data)))
        row = int(np.searchsorted(rows.indptr, bad, side="right")) - 1
        raise DataError(f"row {row} of the {what} has a weight of {rows.data[bad]}",
                        expected="finite weights")
    if not rows.has_canonical_format or not rows.data.all():
        rows = sparse.csr_array(rows, copy=True)
        rows.sum_duplicates()
        rows.eliminate_zeros()
    return rows


def _from_arrays(
    arrays: Sequence[Any], vocabulary: int | None, what: str
) -> sparse.csr_array:
    indptr, terms, weights = (np.asarray(each) for each in arrays)
    if vocabulary is None:
        raise DataError(f"{what} came as three arrays", expected="the vocabulary's size with them")
    if indptr.ndim != 1 or not len(indptr) or indptr[0] or (np.diff(indptr) < 0).any():
        raise DataError(f"the indptr of the {what} doesn't rise from 0", expected="a CSR indptr")
    if len(terms) != indptr[-1] or len(weights) != indptr[-1]:
        raise DataError(
            f"{len(terms)} terms, {len(weights)} weights and an indptr that ends with "
            f"{indptr[-1]}", expected="three arrays of one CSR matrix",
        )
    if len(terms) and not (terms.min() >= 0 and terms.max() < vocabulary):
        raise DataError(
            f"{what} have terms from {terms.min()} to {terms.max()}",
            expected=f"0 to {vocabulary - 1}",
        )
    return sparse.csr_array(
        (weights.astype(np.float32), terms, indptr), shape=(len(indptr) - 1, vocabulary)
    )
