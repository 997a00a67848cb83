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
PAIRS = 1 << 21  # numbers of the pairs that are scored at once


class TopK(NamedTuple):
    """Best first, equal scores by place; where there are fewer hits: place -1, score -inf."""

    places: NDArray[np.int64]  # [Q, k]
    scores: NDArray[np.float32]  # [Q, k]


def topk(queries: Vectors, documents: Vectors, k: int, *, block: int = 16384) -> TopK:
    """Places and scores of the k documents with the largest inner products.

    queries    [Q, d], documents [N, d]; tensors, arrays or memory maps of float32 or float16.
               Tensors on a device are multiplied there. A memory map is read once, in blocks.
    k          at most N are returned
    block      documents multiplied at once

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
    kept, longest = _candidates(rows, documents, min(k + SPARE, len(documents)), block)
    norms = torch.linalg.vector_norm(rows, dim=1)
    if not bool(torch.isfinite(norms).all()):
        raise DataError("queries have NaN or infinite values", expected="finite numbers")
    places = torch.sort(kept.places, dim=1).values
    best = _best(places.cpu().numpy(), _exact(rows, documents, places), k)
    if kept.places.shape[1] == len(documents):
        return best
    # A document that isn't a candidate scored no more than the last of them.
    error = norms * longest * (rows.shape[1] + 2) * torch.finfo(torch.float32).eps
    border = torch.as_tensor(best.scores[:, -1], device=device) - error
    for row in torch.nonzero(kept.scores[:, -1] >= border).flatten().tolist():
        near = _near(rows[row : row + 1], documents, float(border[row]), block)
        again = _best(near.cpu().numpy(), _exact(rows[row : row + 1], documents, near), k)
        best.places[row], best.scores[row] = again.places[0], again.scores[0]
    return best


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
    for start in range(0, len(documents), block):
        part = documents[start : start + block]
        if not isinstance(part, Tensor):
            # A read-only memory map is copied: torch warns of what it can't write to.
            whole = np.asarray(part, dtype=np.float32)
            part = torch.from_numpy(whole if whole.flags.writeable else whole.copy())
        yield start, part.detach().to(device, torch.float32)


def _candidates(
    rows: Tensor, documents: Vectors, m: int, block: int
) -> tuple[_Kept, float]:
    """The m best of each query by float32 products, and the longest document's norm."""
    kept: list[_Kept | None] = [None] * len(range(0, len(rows), QUERIES))
    longest = 0.0
    for start, part in _blocks(documents, block, rows.device):
        norm = float(torch.linalg.vector_norm(part, dim=1).max())
        if not np.isfinite(norm):
            raise DataError(
                f"documents {start} to {start + len(part) - 1} have NaN or infinite values",
                expected="finite numbers",
            )
        longest = max(longest, norm)
        for number, chunk in enumerate(torch.split(rows, QUERIES)):
            kept[number] = _offer(kept[number], chunk @ part.T, start, m)
    chunks = [each for each in kept if each is not None]
    return _Kept(*(torch.cat(parts) for parts in zip(*chunks, strict=True))), longest


def _offer(kept: _Kept | None, scores: Tensor, start: int, m: int) -> _Kept:
    """The m best of what was kept and a block of scores [q, n]."""
    if kept is None or kept.scores.shape[1] < m:
        values, columns = torch.topk(scores, min(m, scores.shape[1]), dim=1)
        places = columns + start
    else:
        # Most of a later block is below what was found before: only what is above is sorted.
        queries, columns = torch.nonzero(scores > kept.scores[:, -1:], as_tuple=True)
        if not len(queries):
            return kept
        counts = torch.bincount(queries, minlength=len(scores))
        first = torch.cumsum(counts, 0) - counts
        slots = torch.arange(len(queries), device=scores.device) - first[queries]
        values = scores.new_full((len(scores), int(counts.max())), -torch.inf)
        places = torch.full_like(values, -1, dtype=torch.int64)
        values[queries, slots] = scores[queries, columns]
        places[queries, slots] = columns + start
    if kept is not None:
        values = torch.cat([kept.scores, values], 1)
        places = torch.cat([kept.places, places], 1)
    best, order = torch.topk(values, min(m, values.shape[1]), dim=1)
    return _Kept(places.gather(1, order), best)


def _near(row: Tensor, documents: Vectors, border: float, block: int) -> Tensor:
    """Places [1, n] of all documents whose float32 product reaches the border."""
    found = [
        torch.nonzero((row @ part.T)[0] >= border).flatten() + start
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
