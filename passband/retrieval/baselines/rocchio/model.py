"""Rocchio: the query moves towards the mean of what it found.

    q' = alpha q + beta mean of the k documents' vectors                 sparse or dense

    sparse  of the mean only its n largest entries are added

>>> queries = scipy.sparse.csr_array(np.float32([[1, 0, 0]]))
>>> found = [scipy.sparse.csr_array(np.float32([[4, 2, 1], [0, 2, 1]]))]
>>> rocchio(queries, found, alpha=1.0, beta=0.5, terms=2).toarray()
array([[2., 1., 0.]], dtype=float32)

Source: J. Rocchio, 1971; for dense vectors H. Li et al., TOIS 2022 (vector PRF).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse


def rocchio(
    queries: Any, found: Sequence[Any], *, alpha: float, beta: float, terms: int | None = None
) -> Any:
    """queries [Q, D], found Q matrices [k, D]; CSR or arrays as given. k = 0: the query alone.

    terms  entries of a sparse mean that are added; None: all
    """
    if not scipy.sparse.issparse(queries):
        means = [f.mean(0) if len(f) else q / max(beta, 1e-9) * (1 - alpha)
                 for q, f in zip(queries, found, strict=True)]
        return np.asarray(alpha * queries + beta * np.stack(means), dtype=np.float32)
    rows = []
    for row, documents in enumerate(found):
        query = queries[[row]]
        if not documents.shape[0]:
            rows.append(query)
            continue
        mean = scipy.sparse.csr_array(documents.sum(0)[None] / documents.shape[0])
        rows.append(alpha * query + beta * largest(mean, terms))
    return scipy.sparse.vstack(rows, format="csr").astype(np.float32)


def largest(row: Any, terms: int | None) -> Any:
    """A sparse row [1, V] with its largest entries only; of equal ones the first."""
    if terms is None or row.nnz <= terms:
        return row
    kept = np.sort(np.argsort(-row.data, kind="stable")[:terms])
    entries = (row.data[kept], row.indices[kept], np.array([0, len(kept)]))
    return scipy.sparse.csr_array(entries, shape=row.shape)
