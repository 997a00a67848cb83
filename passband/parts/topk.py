"""The k best documents of each query by inner product, exactly, in blocks.

>>> documents = np.eye(4, dtype=np.float32)
>>> found = topk(np.array([[0.0, 3.0, 3.0, 1.0]], dtype=np.float32), documents, k=3)
>>> found.places, found.scores
(array([[1, 2, 3]]), array([[3., 3., 1.]], dtype=float32))

    Q queries, N documents, d width, k hits

A pass in float32 over blocks of documents keeps somewhat more than k candidates of each query;
these are scored again in float64, one pair at a time. So a score depends on its query and document
only, to the last bit: neither on the block, nor the batch, nor the shard they come in. Where the
rounding error of the first pass, at most d eps |q| |x|, could hide a document that belongs among
the k, that query's documents near the border are all scored again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from passband.errors import DataError

Vectors: TypeAlias = "Tensor | NDArray[np.floating]"

SPARE = 16  # candidates beyond k: what rounding may reorder, nearly always
QUERIES = 256  # of one product; with 16,384 documents its scores take 16 MB
FEW = 8  # queries up to which libraries multiply faster with the documents on the left
PAIRS = 1 << 21  # numbers of the pairs that are scored at once


class TopK(NamedTuple):
    """Best first, equal scores by place; where there are fewer hits: place -1, score -inf."""

    places: NDArray[np.int64]  # [Q, k]
    scores: NDArray[np.float32]  # [Q, k]


def topk(
    queries: Vectors, documents: Vectors, k: int, *, block: int = 16384,
    longest: float | None = None,
) -> TopK:
    """Places and scores of the k documents with the largest inner products.

    queries    [Q, d], documents [N, d]; tensors, arrays or memory maps of float32 or float16.
               Tensors on a device are multiplied there. A memory map is read once, in blocks.
    k          at most N are returned
    block      documents multiplied at once
    longest    the documents' `longest_norm`, where it is known: they are read once less

    Equal scores: the lower place first. Raises `DataError` for other shapes and for NaN.

    >>> topk(torch.ones(2, 3), torch.ones(5, 3), k=2).places
    array([[0, 1],
           [0, 1]])
    """
    _check(queries, documents, k)
    k = min(k, len(documents))
    rows = torch.as_tensor(np.asarray(queries)) if not isinstance(queries, Tensor) else queries
    device = documents.device if isinstance(documents, Tensor) else rows.device
    rows = rows.detach().to(device, torch.float32)
    if not len(rows) or not k:
        return TopK(np.zeros((len(rows), k), np.int64), np.zeros((len(rows), k), np.float32))
    norms = torch.linalg.vector_norm(rows, dim=1).cpu().numpy()
    if not np.isfinite(norms).all():
        raise DataError("queries have NaN or infinite values", expected="finite numbers")
    if longest is None:
        longest = longest_norm(documents, block)
    kept = _candidates(rows, documents, min(k + SPARE, len(documents)), block)
    places = np.sort(kept.places.cpu().numpy(), axis=1)
    best = _best(places, _exact(rows, documents, torch.as_tensor(places, device=device)), k)
    if kept.places.shape[1] == len(documents):
        return best
    # A document that isn't a candidate scored no more than the last of them.
    error = norms * longest * (rows.shape[1] + 2) * np.finfo(np.float32).eps
    border, last = best.scores[:, -1] - error, kept.scores[:, -1].cpu().numpy()
    for row in np.flatnonzero(last >= border).tolist():
        near = _near(rows[row : row + 1], documents, float(border[row]), block)
        again = _best(near.cpu().numpy(), _exact(rows[row : row + 1], documents, near), k)
        best.places[row], best.scores[row] = again.places[0], again.scores[0]
    return best


def longest_norm(documents: Vectors, block: int = 16384) -> float:
    """The largest norm of a document, 0 without any; `DataError` for NaN and infinite values.

    >>> longest_norm(np.array([[3.0, 4.0], [0.0, 1.0]]))
    5.0
    """
    device = documents.device if isinstance(documents, Tensor) else torch.device("cpu")
    longest = 0.0
    for start, part in _blocks(documents, block, device):
        norm = float(torch.linalg.vector_norm(part, dim=1).max())
        if not np.isfinite(norm):
            raise DataError(
                f"documents {start} to {start + len(part) - 1} have NaN or infinite values",
                expected="finite numbers",
            )
        longest = max(longest, norm)
    return longest


def merge(found: Sequence[TopK], k: int) -> TopK:
    """The k best of several lists for the same queries; their places must be of one numbering.

    >>> one = TopK(np.array([[4, 0]]), np.array([[2.0, 1.0]], dtype=np.float32))
    >>> other = TopK(np.array([[7, -1]]), np.array([[2.0, -np.inf]], dtype=np.float32))
    >>> merge([other, one], k=3).places
    array([[4, 7, 0]])
    """
    places = np.concatenate([each.places for each in found], axis=1)
    scores = np.concatenate([each.scores for each in found], axis=1)
    return _best(places, scores, k)


def _best(places: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> TopK:
    order = np.lexsort((places, -scores), axis=-1)[:, :k]
    return TopK(
        np.take_along_axis(places, order, axis=1), np.take_along_axis(scores, order, axis=1)
    )


def _check(queries: Vectors, documents: Vectors, k: int) -> None:
    for name, value in (("queries", queries), ("documents", documents)):
        if value.ndim != 2:
            raise DataError(
                f"{name} have the shape {tuple(value.shape)}", expected="a matrix, a row for each"
            )
    if queries.shape[1] != documents.shape[1]:
        raise DataError(
            f"queries have {queries.shape[1]} columns, documents {documents.shape[1]}",
            expected="vectors of one width", mend="encode both with the same system",
        )
    if k < 1:
        raise DataError(f"k = {k}", expected="1 or more hits")


class _Kept(NamedTuple):
    places: Tensor  # [Q, m] int64
    scores: Tensor  # [Q, m] float32, falling


def _blocks(documents: Vectors, block: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Places and float32 rows on the device. What has to be converted is, into one buffer: rows
    are those of the block until the next is asked for."""
    ready = _ready(documents, device)
    size = (min(block, len(documents)), documents.shape[1])
    buffer = None if ready else torch.empty(size, device=device)
    for start in range(0, len(documents), block):
        part = documents[start : start + block]
        if not isinstance(part, Tensor):
            # torch warns of arrays that it can't write to, such as those of read-only maps.
            whole = np.asarray(part)
            part = torch.from_numpy(whole if whole.flags.writeable else whole.copy())
        part = part.detach()
        yield start, part if buffer is None else buffer[: len(part)].copy_(part)


def _ready(documents: Vectors, device: torch.device) -> bool:
    if isinstance(documents, Tensor):
        return documents.dtype == torch.float32 and documents.device == device
    return documents.dtype == np.float32 and device.type == "cpu"


def _candidates(rows: Tensor, documents: Vectors, m: int, block: int) -> _Kept:
    """The m best of each query by float32 products."""
    chunks = torch.split(rows, QUERIES)
    kept: list[_Kept | None] = [None] * len(chunks)
    waiting: list[list[Tensor]] = [[] for _ in chunks]
    # Scores of few queries are looked through after several blocks, at no more memory.
    together, first = block * max(1, QUERIES // len(rows)), 0
    size = together if _ready(documents, rows.device) else block
    for start, part in _blocks(documents, size, rows.device):
        end = start + len(part)
        full = end - first >= together or end == len(documents)
        for number, chunk in enumerate(chunks):
            scores = waiting[number]
            scores.append(_products(chunk, part))
            if full:
                whole = scores[0] if len(scores) == 1 else torch.cat(scores, 1)
                kept[number] = _offer(kept[number], whole, first, m)
                scores.clear()
        first = end if full else first
    found = [each for each in kept if each is not None]
    return _Kept(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _products(rows: Tensor, part: Tensor) -> Tensor:
    """Inner products [q, n], in the form that is fastest for so many queries."""
    if rows.device.type == "cpu" and len(rows) == 1:
        # As fast as memory is read; matrix products of one row can take twice as long.
        return torch.from_numpy(_dots(part.numpy(), rows[0].numpy()))[None]
    if rows.device.type == "cpu" and len(rows) <= FEW:
        return (part @ rows.T).T
    return rows @ part.T


def _dots(part: NDArray[np.float32], row: NDArray[np.float32]) -> NDArray[np.float32]:
    # NumPy before 2 has no vecdot.
    found: NDArray[np.float32] = (
        np.vecdot(part, row) if hasattr(np, "vecdot") else np.einsum("nd,d->n", part, row)
    )
    return found


def _offer(kept: _Kept | None, scores: Tensor, start: int, m: int) -> _Kept:
    """The m best of what was kept and a block of scores [q, n]."""
    if kept is not None and kept.scores.shape[1] == m:
        # Most of a later block is below what was found before: only what is above is sorted.
        found = _where(scores > kept.scores[:, -1:], scores, start)
    else:
        values, columns = torch.topk(scores, min(m, scores.shape[1]), dim=1)
        found = _Kept(columns + start, values)
    if kept is None:
        return found
    found = _Kept(*(torch.cat(pair, 1) for pair in zip(kept, found, strict=True)))
    best, order = torch.topk(found.scores, min(m, found.scores.shape[1]), dim=1)
    return _Kept(found.places.gather(1, order), best)


def _where(chosen: Tensor, scores: Tensor, start: int) -> _Kept:
    """The chosen of the scores [q, n], rows filled up with -inf."""
    queries, columns = torch.nonzero(chosen, as_tuple=True)
    counts = torch.bincount(queries, minlength=len(scores))
    first = torch.cumsum(counts, 0) - counts
    slots = torch.arange(len(queries), device=scores.device) - first[queries]
    values = scores.new_full((len(scores), int(counts.max())), -torch.inf)
    places = torch.full_like(values, -1, dtype=torch.int64)
    values[queries, slots] = scores[queries, columns]
    places[queries, slots] = columns + start
    return _Kept(places, values)


def _near(row: Tensor, documents: Vectors, border: float, block: int) -> Tensor:
    """Places [1, n] of all documents whose float32 product reaches the border."""
    found = [
        torch.nonzero(_products(row, part)[0] >= border).flatten() + start
        for start, part in _blocks(documents, block, row.device)
    ]
    return torch.cat(found)[None]


def _exact(rows: Tensor, documents: Vectors, places: Tensor) -> NDArray[np.float32]:
    """Scores [q, m] of pairs, each summed on its own in float64."""
    q, m = places.shape
    scores = np.empty((q, m), np.float32)
    width = max(1, rows.shape[1])
    wide = max(1, min(m, PAIRS // width))
    high = max(1, PAIRS // (wide * width))
    for top in range(0, q, high):
        query = rows[top : top + high].double()
        for left in range(0, m, wide):
            chosen = places[top : top + high, left : left + wide]
            # Products first, then sums along the last axis: no library routine whose order of
            # summation depends on how many pairs there are.
            products = query[:, None] * _gather(documents, chosen).double()
            scores[top : top + high, left : left + wide] = _sums(products).cpu().numpy()
    return scores


def _gather(documents: Vectors, places: Tensor) -> Tensor:
    if isinstance(documents, Tensor):
        return documents.detach()[places]
    return torch.from_numpy(np.ascontiguousarray(documents[places.cpu().numpy()])).to(places.device)


def _sums(products: Tensor) -> Tensor:
    """Sum of the last axis in an order of its own: halves, again and again."""
    while products.shape[-1] > 1:
        half = products.shape[-1] // 2
        folded = products[..., :half] + products[..., half : 2 * half]
        odd = products.shape[-1] % 2
        products = torch.cat([folded, products[..., -1:]], -1) if odd else folded
    return products[..., 0] if products.shape[-1] else products.sum(-1)
