"""Postings on disk: written in one go or from a stream of blocks larger than memory.

>>> from passband.parts.segment_store import SegmentStore
>>> store = SegmentStore.create("postings", kind="sparse")
>>> with store.segment() as new:
...     count = write_blocks(new, [np.eye(2), 2 * np.eye(2)], vocabulary=2)
>>> read(new.arrays(), new.facts).rows().toarray()
array([[1., 0.],
       [0., 1.],
       [2., 0.],
       [0., 2.]], dtype=float32)
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from passband.errors import DataError
from passband.parts.inverted_index.join import Joined
from passband.parts.inverted_index.rows import SparseRows, as_rows
from passband.parts.inverted_index.segment import Quantise, Segment
from passband.parts.segment_store import NewSegment

MEMORY = 1 << 28  # bytes that a build takes, about, besides the blocks it is given
A_POSTING = 40  # bytes while rows become columns
RUNS = "runs"


def write(new: NewSegment, segment: Segment) -> None:
    """All of a segment."""
    for name, array in segment.arrays().items():
        new.save(name, array)
    new.facts.update(count=segment.count, signed=segment.signed)


def write_joined(new: NewSegment, whole: Joined, memory: int = MEMORY) -> None:
    """What several segments make together, a piece at a time."""
    size = max(1, memory // A_POSTING)
    total = (int(whole.indptr[-1]),)
    for name, array in (
        ("indptr", whole.indptr), ("scales", whole.scales), ("maxima", whole.maxima),
    ):
        new.save(name, array)
    with (
        new.stream("documents", np.int32, total) as documents,
        new.stream("weights", whole.dtype, total) as weights,
    ):
        for piece in whole.pieces(size):
            documents.write(piece.documents)
            weights.write(piece.weights)
    new.facts.update(count=whole.count, signed=whole.signed)


def read(arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Segment:
    """The segment of memory-mapped arrays."""
    return Segment(
        arrays["indptr"], arrays["documents"], arrays["weights"], arrays["scales"],
        arrays["maxima"], int(facts["count"]), bool(facts["signed"]),
    )


def write_blocks(
    new: NewSegment, blocks: Iterable[SparseRows], vocabulary: int | None = None, *,
    quantise: Quantise = None, memory: int = MEMORY,
) -> int:
    """Write the postings of all blocks as one segment; the number of documents.

    Rows are collected up to `memory` and written as a run, sorted by terms; then the runs are
    joined. Whatever the size of the corpus, memory is that of a run, 12 V bytes for each run and
    what the blocks take.
    """
    runs: list[Segment] = []
    folder = new.folder / RUNS
    for number, rows in enumerate(_runs(blocks, vocabulary, max(1, memory // A_POSTING))):
        vocabulary = rows.shape[1]
        run = NewSegment(folder / str(number), {}, durable=False)
        run.folder.mkdir(parents=True)
        write(run, Segment.of(rows))
        runs.append(read(run.arrays(), run.facts))
    if vocabulary is None:
        raise DataError("no documents to index", expected="at least one block, or the vocabulary")
    if not runs:
        runs = [Segment.of(sparse.csr_array((0, vocabulary), dtype=np.float32))]
    write_joined(new, Joined(runs, quantise), memory)
    count = sum(run.count for run in runs)
    runs.clear()  # unmapped before they are removed
    shutil.rmtree(folder, ignore_errors=True)
    return count


def _runs(
    blocks: Iterable[SparseRows], vocabulary: int | None, size: int
) -> Iterator[sparse.csr_array]:
    held: list[sparse.csr_array] = []
    postings = 0
    for block in blocks:
        rows = as_rows(block, vocabulary)
        vocabulary = rows.shape[1]
        if held and postings + rows.nnz > size:
            yield _stacked(held)
            held, postings = [], 0
        held.append(rows)
        postings += rows.nnz
    if held:
        yield _stacked(held)


def _stacked(held: list[sparse.csr_array]) -> sparse.csr_array:
    return as_rows(sparse.vstack(held, format="csr")) if len(held) > 1 else held[0]
