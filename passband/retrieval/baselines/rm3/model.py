"""RM3: the query is mixed with the words that its best passages are made of.

    p(w | R) ~ sum over passages of score(d) tf(w, d) / |d|      n likeliest words, made to sum to 1
    q'       = lambda q / |q| + (1 - lambda) p(. | R)

>>> queries = scipy.sparse.csr_array(np.float32([[1, 0, 0]]))
>>> counts = [scipy.sparse.csr_array(np.float32([[1, 1, 0], [1, 0, 3]]))]
>>> rm3(queries, counts, [np.array([3.0, 1.0])], weight=0.5, terms=2).toarray().round(3)
array([[0.769, 0.231, 0.   ]], dtype=float32)

Source: N. Abdul-Jaleel et al., TREC 2004; V. Lavrenko, W. Croft, SIGIR 2001.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse


def rm3(
    queries: Any, counts: Sequence[Any], scores: Sequence[np.ndarray[Any, Any]], *, weight: float,
    terms: int, allowed: np.ndarray[Any, Any] | None = None,
) -> Any:
    """queries CSR [Q, V] of counts, counts Q matrices [k, V], scores [k] each; k = 0: the query.

    weight   lambda, of the query itself
    allowed  [V] whether a word may be added; None: all may
    """
    rows = []
    for row, (documents, weights) in enumerate(zip(counts, scores, strict=True)):
        query = queries[[row]]
        query = query / max(float(query.sum()), 1e-9)
        model = relevance(documents, weights, terms, allowed)
        rows.append(query if model is None else weight * query + (1 - weight) * model)
    return scipy.sparse.vstack(rows, format="csr").astype(np.float32)


def relevance(
    counts: Any, scores: np.ndarray[Any, Any], terms: int,
    allowed: np.ndarray[Any, Any] | None = None,
) -> Any:
    """The relevance model of one query, a row [1, V] that sums to 1; None without passages."""
    kept = counts
    if allowed is not None:
        kept = (counts @ scipy.sparse.diags_array(allowed.astype(np.float32))).tocsr()
    lengths = np.asarray(kept.sum(1)).ravel()
    use = lengths > 0
    if not use.any():
        return None
    shares = np.where(use, scores / np.maximum(lengths, 1e-9), 0.0)
    likely = scipy.sparse.csr_array((shares @ kept)[None])
    chosen = np.sort(np.argsort(-likely.data, kind="stable")[:terms])
    values = likely.data[chosen]
    entries = (values / values.sum(), likely.indices[chosen], np.array([0, len(chosen)]))
    return scipy.sparse.csr_array(entries, shape=likely.shape)
