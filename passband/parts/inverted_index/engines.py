"""Which loops search a segment: numba's, on several threads, or NumPy's."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from itertools import count
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from passband.errors import ConfigError, MissingExtraError
from passband.parts.inverted_index import plain
from passband.parts.inverted_index.segment import Quantise, Segment
from passband.parts.topk import TopK

Engine: TypeAlias = Literal["auto", "numba", "numpy"]
Three: TypeAlias = tuple[Any, Any, Any]
CHUNK = 16  # queries a thread takes at a time
WINDOW = 1 << 14  # documents that MaxScore looks at together


@cache
def chosen(engine: Engine) -> str:
    """ "numba" or "numpy"; "auto" is numba where it is installed."""
    if engine not in ("auto", "numba", "numpy"):
        raise ConfigError(f"engine = {engine!r}", expected="'auto', 'numba' or 'numpy'")
    here = find_spec("numba") is not None
    if engine == "numba" and not here:
        raise MissingExtraError("numba", "retrieval")
    return "numba" if here and engine != "numpy" else "numpy"


def search(
    segment: Segment, queries: sparse.csr_array, k: int, engine: Engine, threads: int | None,
    skip: bool = False,
) -> TopK:
    """The k best of a segment for queries [Q, V] that have its scales in them.

    skip  leave out postings that can't matter
    """
    if chosen(engine) == "numpy" or not segment.count:
        return plain.search(segment, queries, k)
    from passband.parts.inverted_index import kernels

    rows = queries.shape[0]
    found = TopK(np.empty((rows, k), np.int64), np.empty((rows, k), np.float32))
    query, postings = _arrays(queries, segment)
    signed = segment.signed or bool(len(queries.data) and queries.data.min() < 0)

    if skip and not signed:
        tops = segment.maxima / segment.scales
        bounds = queries.data * tops[queries.indices]

        def skipper() -> Callable[[int, int], None]:
            return lambda first, last: kernels.skipping(
                *query, first, last, *postings, bounds, segment.count, WINDOW, *found
            )

        _share(rows, skipper, threads)
        return found

    def worker() -> Callable[[int, int], None]:
        sums = np.zeros(segment.count, np.float32)
        if signed:
            seen = np.zeros(segment.count, np.bool_)
            return lambda first, last: kernels.exhaustive_signed(
                *query, first, last, *postings, sums, seen, *found
            )
        return lambda first, last: kernels.exhaustive(*query, first, last, *postings, sums, *found)

    _share(rows, worker, threads)
    return found


def given(
    segment: Segment, queries: sparse.csr_array, places: NDArray[np.int64], engine: Engine,
    threads: int | None,
) -> NDArray[np.float32]:
    """Scores [Q, m] of chosen places [Q, m] of the segment; -inf: not there, or no term of it."""
    if chosen(engine) == "numpy":
        return plain.given(segment, queries, places)
    from passband.parts.inverted_index import kernels

    scores = np.empty(places.shape, np.float32)
    query, postings = _arrays(queries, segment)
    _share(
        queries.shape[0],
        lambda: lambda first, last: kernels.given(*query, first, last, *postings, places, scores),
        threads,
    )
    return scores


def _arrays(queries: sparse.csr_array, segment: Segment) -> tuple[Three, Three]:
    """What the loops read, always of the same types: each other type would be compiled anew."""
    query = (
        queries.indptr.astype(np.int64, copy=False), queries.indices.astype(np.int64, copy=False),
        queries.data,
    )
    return query, (segment.indptr, segment.documents, segment.weights)


def _share(
    rows: int, worker: Callable[[], Callable[[int, int], None]], threads: int | None
) -> None:
    """Hand out rows in chunks to threads; each has a worker, and with it memory, of its own."""
    threads = min(threads or cores(), -(-rows // CHUNK))
    if threads <= 1:
        worker()(0, rows)
        return
    chunks = count(0, CHUNK)  # `next` on it is one operation of the interpreter: no lock needed

    def run() -> None:
        work = worker()
        while (first := next(chunks)) < rows:
            work(first, min(first + CHUNK, rows))

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(run) for _ in range(threads)]:
            future.result()


def cores() -> int:
    """Processors this process may use, at most OMP_NUM_THREADS."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(here or 1, int(given)) if given.isdecimal() and int(given) else here or 1


def warm_up(engine: Engine = "auto", quantise: Quantise = None, signed: bool = False) -> None:
    """Compile the loops for such weights, or load them from numba's cache.

    The first search in a process does it otherwise: seconds on a new installation.
    """
    rows = sparse.csr_array(np.eye(2, dtype=np.float32))
    segment = Segment.of(-rows if signed else rows, quantise)
    search(segment, rows, 1, engine, 1)
    given(segment, rows, np.zeros((2, 1), np.int64), engine, 1)
