"""The search loops in NumPy: for machines without numba, with the same results to the bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from passband.parts.inverted_index.segment import Segment
from passband.parts.topk import TopK


def search(segment: Segment, queries: sparse.csr_array, k: int) -> TopK:
    """The k best of the segment's documents; `queries` have the segment's scales in them."""
    found = TopK(
        np.full((queries.shape[0], k), -1, np.int64),
        np.full((queries.shape[0], k), -np.inf, np.float32),
    )
    for row in range(queries.shape[0]):
        sums = np.zeros(segment.count, np.float32)
        seen = np.zeros(segment.count, np.bool_)
        for i in range(queries.indptr[row], queries.indptr[row + 1]):
            part = slice(*segment.indptr[queries.indices[i] : queries.indices[i] + 2])
            documents = segment.documents[part]
            sums[documents] += queries.data[i] * segment.weights[part].astype(np.float32)
            seen[documents] = True
        places = _largest(np.flatnonzero(seen), sums, k)
        found.places[row, : len(places)] = places
        found.scores[row, : len(places)] = sums[places]
    return found


def _largest(places: NDArray[np.int64], sums: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    if len(places) > k:
        scores = sums[places]
        border = np.partition(scores, len(scores) - k)[len(scores) - k]
        above = places[scores > border]
        places = np.concatenate([above, places[scores == border][: k - len(above)]])
    return places[np.lexsort((places, -sums[places]))]


def given(
    segment: Segment, queries: sparse.csr_array, places: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Scores [Q, m] of places [Q, m]; -inf where a document has none of the terms."""
    scores = np.zeros(places.shape, np.float32)
    matched = np.zeros(places.shape, np.bool_)
    for row in range(queries.shape[0]):
        for i in range(queries.indptr[row], queries.indptr[row + 1]):
            start, stop = segment.indptr[queries.indices[i] : queries.indices[i] + 2]
            if start == stop:
                continue
            documents = segment.documents[start:stop]
            at = np.minimum(np.searchsorted(documents, places[row]), len(documents) - 1)
            hit = documents[at] == places[row]
            weights = segment.weights[start:stop][at[hit]].astype(np.float32)
            scores[row, hit] += queries.data[i] * weights
            matched[row] |= hit
    scores[~matched] = -np.inf
    return scores
