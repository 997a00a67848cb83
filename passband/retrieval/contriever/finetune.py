"""Fine-tuning on questions with answers: in-batch contrast with random and mined negatives.

    keys = [positives (B); negatives (B n)];   loss = CE(<q_i, k_j> / tau, own positive)

>>> from passband.data.documents.collection import Example
>>> pairs = Pairs.of([Example("cold", ("ice",)), Example("hot", ("fire",))], group=1)
>>> pairs.negatives_each, pairs.hard_share = 1, 0.0
>>> pairs.draw(0, np.random.default_rng(0)).documents.tolist()
[0, 1]

A random negative is any text that answers another question; a hard one is what a search with the
model put first without being an answer (or what the user's file gives).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from passband.retrieval.lessons import Batch, Drawn, Lessons

TRIES = 20  # to find a random negative that is no positive; a copy that is left is masked out


@dataclass
class Pairs(Lessons):
    """Examples that are drawn with one positive and `negatives_each` negatives.

    hard_share  chance of each negative to be one of the example's own, where it has some
    """

    negatives_each: int = 1
    hard_share: float = 0.1

    def draw(self, index: int, rng: np.random.Generator) -> Drawn:
        positives, hard = self.positives[index], self.negatives[index]
        chosen = [positives[rng.integers(len(positives))]]
        for _ in range(self.negatives_each):
            if hard and rng.random() < self.hard_share:
                chosen.append(hard[rng.integers(len(hard))])
            else:
                chosen.append(self._random(positives, rng))
        return Drawn(index, np.array(chosen, np.int64), np.empty(0, np.float32))

    def _random(self, positives: Sequence[int], rng: np.random.Generator) -> int:
        number = 0
        for _ in range(TRIES):
            number = int(rng.integers(len(self.documents)))
            if number not in positives:
                break
        return number


def inputs(batch: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A batch as `InBatch` takes it: all positives first, then all negatives, and text numbers."""
    b = Batch(*batch)
    group = b.documents.shape[1]

    def first(rows: Tensor) -> Tensor:
        grouped = rows.view(-1, group, *rows.shape[1:])
        return grouped.transpose(0, 1).flatten(0, 1)

    return (
        b.query_ids, b.query_mask, first(b.document_ids), first(b.document_mask),
        first(b.documents.flatten()),
    )
