"""Contrastive losses over dot products: in the batch, against a queue, with hard negatives.

    s_ij = <q_i, k_j> / temperature;   loss = mean_i -log softmax_j(s_ij) at j = the key of query i

Vectors are taken as they are: who wants cosines normalises them first.

>>> q = torch.eye(3)
>>> loss, found = in_batch(q, q, temperature=0.1)
>>> round(float(loss), 6), float(found)
(9.1e-05, 1.0)
>>> loss, _ = against_queue(q, q, torch.zeros(5, 3), temperature=1.0)     # log(e + 5) - 1
>>> round(float(loss), 4)
1.0436

    B queries of this process, d width, M keys (positives first, then negatives), K of the queue

Sources: van den Oord et al., arXiv 1807.03748 (InfoNCE); He et al., arXiv 1911.05722 (queue).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from passband.errors import DataError

Found = tuple[Tensor, Tensor]  # loss, and the share of queries whose own key scores highest


def in_batch(
    queries: Tensor, keys: Tensor, labels: Tensor | None = None, *, temperature: float = 0.05,
    label_smoothing: float = 0.0, ignored: Tensor | None = None,
) -> Found:
    """Every key of the batch is a candidate of every query; gradients reach both sides.

    queries, keys  [B, d], [M, d] with M >= B: hard negatives follow the positives
    labels         [B] number of each query's key; None: query i has key i
    ignored        [B, M] bool: pairs left out, as `repeated` finds them; a query's own key stays
    """
    if queries.dim() != 2 or keys.dim() != 2 or queries.shape[1] != keys.shape[1]:
        raise DataError(
            f"queries {tuple(queries.shape)} and keys {tuple(keys.shape)}",
            expected="[B, d] and [M, d]",
        )
    if labels is None:
        if len(keys) < len(queries):
            raise DataError(
                f"{len(keys)} keys for {len(queries)} queries", expected="a key for each query",
                mend="give labels where queries share keys",
            )
        labels = torch.arange(len(queries), device=queries.device)
    return contrast(queries @ keys.T, labels, temperature, label_smoothing, ignored)


def against_queue(
    queries: Tensor, keys: Tensor, queue: Tensor, *, temperature: float = 0.05,
    label_smoothing: float = 0.0,
) -> Found:
    """Query i has key i; the negatives are the queue's vectors [K, d], K may be 0."""
    own = (queries * keys).sum(1, keepdim=True)
    scores = torch.cat([own, queries @ queue.T], 1)
    labels = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    return contrast(scores, labels, temperature, label_smoothing)


def contrast(
    scores: Tensor, labels: Tensor, temperature: float = 1.0, label_smoothing: float = 0.0,
    ignored: Tensor | None = None,
) -> Found:
    """Cross-entropy of scores [B, M] / temperature at labels [B]; in float32 under autocast.

    With label smoothing e the target is 1 - e at the label and e spread over all candidates that
    are not ignored, the label included.
    """
    logits = scores.float() / temperature
    if ignored is not None:
        own = F.one_hot(labels, scores.shape[1]).bool()
        logits = logits.masked_fill(ignored & ~own, -torch.inf)
    logs = logits.log_softmax(1)
    loss = -logs.gather(1, labels[:, None])[:, 0]
    if label_smoothing:
        kept = logits > -torch.inf
        spread = -logs.masked_fill(~kept, 0.0).sum(1) / kept.sum(1)
        loss = (1 - label_smoothing) * loss + label_smoothing * spread
    found = (logits.detach().argmax(1) == labels).float().mean()
    return loss.mean(), found


def repeated(own: Tensor, keys: Tensor) -> Tensor:
    """Which keys are a query's own text once more: no negatives of it, [B, M] bool.

    own   [B] number of the text (document, hash) that answers each query
    keys  [M] the same of all keys

    >>> repeated(torch.tensor([7, 8]), torch.tensor([7, 8, 7])).tolist()
    [[True, False, True], [False, True, False]]
    """
    return own[:, None] == keys


def gathered(rows: Tensor) -> tuple[Tensor, int]:
    """Rows [B, ...] of all processes [W * B, ...], and where this process's begin.

    Gradients flow back to the processes that the rows came from. Alone: the rows as they are.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows, 0
    from torch.distributed.nn.functional import all_gather  # type: ignore[attr-defined]

    parts = all_gather(rows.contiguous())  # type: ignore[no-untyped-call]
    return torch.cat(list(parts)), torch.distributed.get_rank() * len(rows)
