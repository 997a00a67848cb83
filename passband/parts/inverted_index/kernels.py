"""The search loops, compiled by numba without the interpreter's lock.

    postings of term j: documents[indptr[j]:indptr[j + 1]] rising, with weights
    score(d) = sum over the query's terms, rising, of q_j w_j(d), each step rounded to float32

Whatever path finds a document, that sum is its score: so all paths and `plain` agree to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
Array = NDArray[Any]

# Where a query's postings are fewer than N / SPARSE, they are walked a second time for the best
# documents; otherwise all N sums are looked through.
SPARSE = 16
# Groups of documents for each of the k: the k-th largest of the groups' best scores then leaves
# about 1.15 k documents for the heap, however many there are.
GROUPS = 4


def _compiled(function: F) -> F:
    return numba.njit(nogil=True, cache=True)(function)  # type: ignore[return-value]


# ---- the k best ------------------------------------------------------------------------------


@_compiled
def _worse(score: float, place: int, than_score: float, than_place: int) -> bool:
    return score < than_score or (score == than_score and place > than_place)


@_compiled
def _offer(places: Array, scores: Array, size: int, place: int, score: float) -> int:
    """Put a document on the heap whose root is the worst of the best; the new size."""
    if size < len(places):
        child = size
        while child > 0:
            parent = (child - 1) // 2
            if not _worse(score, place, scores[parent], places[parent]):
                break
            scores[child], places[child] = scores[parent], places[parent]
            child = parent
        scores[child], places[child] = score, place
        return size + 1
    if not _worse(scores[0], places[0], score, place):
        return size
    _sink(places, scores, size, place, score)
    return size


@_compiled
def _sink(places: Array, scores: Array, size: int, place: int, score: float) -> None:
    """Replace the root."""
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= size:
            break
        if child + 1 < size and _worse(
            scores[child + 1], places[child + 1], scores[child], places[child]
        ):
            child += 1
        if not _worse(scores[child], places[child], score, place):
            break
        scores[parent], places[parent] = scores[child], places[child]
        parent = child
    scores[parent], places[parent] = score, place


@_compiled
def _finish(places: Array, scores: Array, size: int) -> None:
    """Sort the heap, best first; the rest says that there was nothing."""
    for end in range(size - 1, 0, -1):
        place, score = places[end], scores[end]
        places[end], scores[end] = places[0], scores[0]
        _sink(places, scores, end, place, score)
    for rest in range(size, len(places)):
        places[rest], scores[rest] = -1, -np.inf


@_compiled
def _bound(sums: Array, best: Array, k: int) -> float:
    """A score that at least k documents reach, or 0: the k-th largest of groups' best scores.

    best  memory for a score of each group; the groups are interleaved, so that whole runs of sums
          are compared at once
    """
    groups = len(best)
    best[:] = 0.0
    for start in range(0, len(sums) - groups + 1, groups):
        run = sums[start : start + groups]  # its own name: the compiler then sees a plain loop
        for group in range(groups):
            best[group] = run[group] if run[group] > best[group] else best[group]
    return np.partition(best, groups - k)[groups - k]  # type: ignore[no-any-return]


# ---- every posting ---------------------------------------------------------------------------


@_compiled
def exhaustive(
    query_indptr: Array, query_terms: Array, query_weights: Array, first: int, last: int,
    indptr: Array, documents: Array, weights: Array, sums: Array, places: Array, scores: Array,
) -> None:
    """Queries first to last: `sums` [N] is the caller's own and all zero before and after."""
    k = places.shape[1]
    best = np.empty(GROUPS * k, np.float32)
    for row in range(first, last):
        begin, end = query_indptr[row], query_indptr[row + 1]
        postings = 0
        for i in range(begin, end):
            weight = query_weights[i]
            start, stop = indptr[query_terms[i]], indptr[query_terms[i] + 1]
            postings += stop - start
            for p in range(start, stop):
                sums[documents[p]] += weight * np.float32(weights[p])
        size = 0
        if postings * SPARSE < len(sums):
            for i in range(begin, end):
                for p in range(indptr[query_terms[i]], indptr[query_terms[i] + 1]):
                    place: Any = np.int64(documents[p])
                    score = sums[place]
                    sums[place] = 0.0  # met again under another term, it isn't offered again
                    if score > 0.0 and (size < k or score >= scores[row, 0]):
                        size = _offer(places[row], scores[row], size, place, score)
        else:
            least = np.float32(0.0)
            if 2 * len(best) <= len(sums):
                bound = _bound(sums, best, k)
                if bound > 0.0:
                    least = np.nextafter(bound, np.float32(0.0))
            for place in range(len(sums)):
                score = sums[place]
                if score > least:
                    size = _offer(places[row], scores[row], size, place, score)
                    if size == k:
                        least = scores[row, 0]  # places rise: an equal score comes too late
            sums[:] = 0.0
        _finish(places[row], scores[row], size)


@_compiled
def exhaustive_signed(
    query_indptr: Array, query_terms: Array, query_weights: Array, first: int, last: int,
    indptr: Array, documents: Array, weights: Array, sums: Array, seen: Array,
    places: Array, scores: Array,
) -> None:
    """The same with weights of both signs: `seen` [N] says which documents have any term."""
    for row in range(first, last):
        begin, end = query_indptr[row], query_indptr[row + 1]
        for i in range(begin, end):
            weight = query_weights[i]
            for p in range(indptr[query_terms[i]], indptr[query_terms[i] + 1]):
                sums[documents[p]] += weight * np.float32(weights[p])
                seen[documents[p]] = True
        size = 0
        for place in range(len(sums)):
            if seen[place]:
                size = _offer(places[row], scores[row], size, place, sums[place])
        sums[:] = 0.0
        seen[:] = False
        _finish(places[row], scores[row], size)


# ---- given documents -------------------------------------------------------------------------


@_compiled
def _find(documents: Array, start: int, stop: int, place: int) -> int:
    """The first of the postings from start to stop whose document isn't below `place`."""
    while start < stop:
        middle = (start + stop) // 2
        if documents[middle] < place:
            start = middle + 1
        else:
            stop = middle
    return start


@_compiled
def given(
    query_indptr: Array, query_terms: Array, query_weights: Array, first: int, last: int,
    indptr: Array, documents: Array, weights: Array, places: Array, scores: Array,
) -> None:
    """scores [Q, m] of places [Q, m]; -inf where a place is below 0 or has none of the terms."""
    for row in range(first, last):
        for column in range(places.shape[1]):
            place, score, matched = places[row, column], np.float32(0.0), False
            for i in range(query_indptr[row], query_indptr[row + 1]):
                stop = indptr[query_terms[i] + 1]
                p = _find(documents, indptr[query_terms[i]], stop, place)
                if p < stop and documents[p] == place:
                    score += query_weights[i] * np.float32(weights[p])
                    matched = True
            scores[row, column] = score if matched else -np.inf


# ---- leaving out what can't be among the best ------------------------------------------------


@_compiled
def _advance(documents: Array, start: int, stop: int, place: int) -> int:
    """`_find` for a place not far from start: steps that double, then halves."""
    step = 1
    while start + step < stop and documents[start + step] < place:
        start += step
        step *= 2
    return _find(documents, start, min(start + step + 1, stop), place)


@_compiled
def skipping(
    query_indptr: Array, query_terms: Array, query_weights: Array, first: int, last: int,
    indptr: Array, documents: Array, weights: Array, bounds: Array, count: int,
    window: int, places: Array, scores: Array,
) -> None:
    """MaxScore (Turtle and Flood, 1995) in windows of documents; weights above 0 only.

    bounds  at each query's term, the most it adds to a score

    Terms in falling order of their bounds: once k documents are found, those that have only terms
    from some rank on can't enter. They are never looked at: of these terms, only the postings of
    documents that the earlier terms brought are looked up, until those can't enter either.
    """
    sums = np.zeros(window, np.float32)
    for row in range(first, last):
        begin, end = query_indptr[row], query_indptr[row + 1]
        terms = end - begin
        order = np.argsort(-bounds[begin:end]) + begin
        rest = np.zeros(terms + 1, np.float64)  # the most that the terms from a rank on add
        for rank in range(terms - 1, -1, -1):
            rest[rank] = rest[rank + 1] + bounds[order[rank]]
        slack = 1.0 + 4e-7 * (terms + 4)
        at, after = np.empty(terms, np.int64), np.empty(terms, np.int64)
        for i in range(terms):
            at[i] = after[i] = indptr[query_terms[begin + i]]
        size, needed = 0, terms  # the terms whose postings are all read
        for low in range(0, count, window):
            high = min(low + window, count)
            full = size == places.shape[1]
            while full and needed and rest[needed - 1] * slack < scores[row, 0]:
                needed -= 1
            if not needed:
                break
            for rank in range(needed):
                # In rising order of terms as long as all are read: then sums are scores.
                i = begin + rank if needed == terms else order[rank]
                at[i - begin] = after[i - begin]
                p, stop = after[i - begin], indptr[query_terms[i] + 1]
                weight = query_weights[i]
                while p < stop and documents[p] < high:
                    sums[documents[p] - low] += weight * np.float32(weights[p])
                    p += 1
                after[i - begin] = p
            for local in range(high - low):
                score = sums[local]
                if score == 0.0:
                    continue
                sums[local] = 0.0
                place = low + local
                full = size == places.shape[1]
                if full and (score + rest[needed]) * slack < scores[row, 0]:
                    continue
                if needed < terms:
                    partial, hopeless = np.float64(score), False
                    for rank in range(needed, terms):
                        if full and (partial + rest[rank]) * slack < scores[row, 0]:
                            hopeless = True
                            break
                        i = order[rank]
                        stop = indptr[query_terms[i] + 1]
                        p = _advance(documents, at[i - begin], stop, place)
                        at[i - begin] = p
                        if p < stop and documents[p] == place:
                            partial += query_weights[i] * np.float32(weights[p])
                    if hopeless:
                        continue
                    score = np.float32(0.0)
                    for i in range(begin, end):
                        stop = indptr[query_terms[i] + 1]
                        p = _advance(documents, at[i - begin], stop, place)
                        if p < stop and documents[p] == place:
                            score += query_weights[i] * np.float32(weights[p])
                size = _offer(places[row], scores[row], size, place, score)
        _finish(places[row], scores[row], size)
