"""Contriever: text to a dense vector, learned from crops of raw text (arXiv 2112.09118).

    f(text) = mean over the last states of all its tokens, [CLS] and [SEP] included     [B, d]
    score(query, document) = <f(query), f(document)>         nothing is normalised

    q = f_q(crop 1);   theta_k <- m theta_k + (1 - m) theta_q;   k = f_k(crop 2)
    loss = -log softmax( [<q_i, k_i>, <q_i, queue>] / tau )_0;   k goes into the queue

The momentum update comes before the keys are encoded, and keys are encoded with dropout: the
published code means to switch it off and does not, so the published models have it.

>>> from passband.retrieval.backbones import encoder
>>> model = MoCo(encoder("smoke"), queue=8, momentum=0.99, temperature=0.05)
>>> ids, mask = torch.randint(5, 99, (4, 6)), torch.ones(4, 6, dtype=torch.bool)
>>> loss, logged = model(ids, mask, ids, mask)
>>> sorted(logged), int(model.queue.pushed)
(['accuracy', 'stdk', 'stdq'], 4)

    B pairs, L tokens, d width, K keys in the queue
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.parts.losses.contrastive import against_queue, gathered, in_batch, repeated
from passband.parts.momentum import MomentumCopy, Queue
from passband.retrieval.packed import pooled

Logged = dict[str, Tensor]


class TwoSided(nn.Module):
    """An encoder for queries and documents, the same for both.

    pooling     "average" (all real tokens) or "cls"
    norm_query  vectors of length 1 on this side; off in the published models
    norm_doc    the same for documents
    """

    def __init__(
        self, encoder: nn.Module, *, pooling: str = "average", norm_query: bool = False,
        norm_doc: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling, self.norm_query, self.norm_doc = pooling, norm_query, norm_doc

    def query(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, L] -> [B, d]."""
        return self._vectors(self.encoder, ids, mask, self.norm_query)

    def document(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, L] -> [B, d]."""
        return self._vectors(self.encoder, ids, mask, self.norm_doc)

    def _vectors(self, encoder: Any, ids: Tensor, mask: Tensor, norm: bool) -> Tensor:
        vectors = pooled(encoder, ids, mask, self.pooling)
        return F.normalize(vectors, dim=-1) if norm else vectors


class MoCo(TwoSided):
    """The loss of pairs against a queue of earlier keys.

    queue        K, a multiple of the pairs of a step
    momentum     of the key encoder
    queue_start  "random": unit Gaussians until they are replaced, as published; "warm": only keys,
                 those of the batch in the first step
    key_dropout  False switches dropout off for keys
    seed         of the random queue

    Give `key` to the training loop as its `state`: its weights belong to a checkpoint.
    """

    def __init__(
        self, encoder: nn.Module, *, queue: int, momentum: float, temperature: float,
        label_smoothing: float = 0.0, key_dropout: bool = True,
        queue_start: Literal["random", "warm"] = "random", seed: int = 0, **pooling: Any,
    ) -> None:
        super().__init__(encoder, **pooling)
        self.temperature, self.label_smoothing = temperature, label_smoothing
        self.key_dropout = key_dropout
        self.key = MomentumCopy(encoder, momentum)
        width = int(encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.queue = Queue(queue, width, queue_start, seed)

    def forward(
        self, ids: Tensor, mask: Tensor, key_ids: Tensor, key_mask: Tensor
    ) -> tuple[Tensor, Logged]:
        """Pairs [B, L] -> loss and what is logged; moves the key encoder and the queue."""
        q = self.query(ids, mask)
        with torch.no_grad():
            self.key.follow(self.encoder)
            if not self.key_dropout:
                self.key.eval()
            k = self._vectors(self.key.module, key_ids, key_mask, self.norm_doc)
        # A copy: backward needs the negatives as they were before the push.
        negatives = self.queue.rows().clone()
        how: dict[str, Any] = {
            "temperature": self.temperature, "label_smoothing": self.label_smoothing,
        }
        # A warm queue begins empty: the first step's negatives are the batch's other keys.
        loss, accuracy = (
            against_queue(q, k, negatives, **how) if len(negatives) else in_batch(q, k, **how)
        )
        self.queue.push(gathered(k)[0])
        return loss, {"accuracy": accuracy, "stdq": spread(q), "stdk": spread(k)}


class InBatch(TwoSided):
    """The loss of pairs against the other keys of the batch; gradients reach both sides."""

    def __init__(
        self, encoder: nn.Module, *, temperature: float, label_smoothing: float = 0.0,
        **pooling: Any,
    ) -> None:
        super().__init__(encoder, **pooling)
        self.temperature, self.label_smoothing = temperature, label_smoothing

    def forward(
        self, ids: Tensor, mask: Tensor, key_ids: Tensor, key_mask: Tensor,
        texts: Tensor | None = None,
    ) -> tuple[Tensor, Logged]:
        """Queries [B, L], keys [M, L]: query i's own first, then negatives.

        texts  [M] numbers of the keys' texts: other copies of a query's text are no negatives
        """
        q = self.query(ids, mask)
        k = self.document(key_ids, key_mask)
        keys, first = gathered(k)
        labels = first + torch.arange(len(q), device=q.device)
        ignored = None
        if texts is not None:
            ignored = repeated(texts[: len(q)], gathered(texts)[0])
        loss, accuracy = in_batch(
            q, keys, labels, temperature=self.temperature,
            label_smoothing=self.label_smoothing, ignored=ignored,
        )
        return loss, {"accuracy": accuracy, "stdq": spread(q), "stdk": spread(k)}


def spread(vectors: Tensor) -> Tensor:
    """Mean over the dimensions of the batch's standard deviation; near 0 means collapse."""
    return vectors.detach().float().std(0).mean()
