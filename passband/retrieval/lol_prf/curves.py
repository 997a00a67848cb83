"""How a reformulator does by the number of passages that it reads.

    loss(q, k)  ranking loss of query q with its k best passages, over the subset of the queries
    V           share of queries and pairs k < k' with loss(q, k') > loss(q, k)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from passband.data.documents.collection import Collection
from passband.retrieval import scores
from passband.retrieval.lol_prf import losses
from passband.retrieval.lol_prf.documents import Frozen
from passband.retrieval.lol_prf.lessons import Lessons
from passband.retrieval.lol_prf.sequences import Read

if TYPE_CHECKING:
    from passband.retrieval.lol_prf.system import LoL

Encode = Callable[[Sequence[Read]], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Curve:
    """
    sizes     numbers of passages, rising
    losses    [Q, sizes]
    metrics   of the second search, one mapping a size
    residual  the same without the passages that were read, in ranking and judgements
    """

    sizes: tuple[int, ...]
    losses: np.ndarray[Any, Any]
    metrics: list[dict[str, float]]
    residual: list[dict[str, float]]

    @property
    def violations(self) -> float:
        """V: the share of pairs in which more passages gave the larger loss."""
        falling = torch.from_numpy(np.ascontiguousarray(self.losses[:, ::-1]))
        return float(losses.violations(falling))


def measure(system: LoL, data: Collection, sizes: Sequence[int]) -> Curve:
    """Index the collection's corpus, ask its queries with each number of passages."""
    sizes = tuple(sorted(sizes))
    index = system.index(data.corpus)
    made, documents = system.lessons(data, index, revisions=1, fixed=max(sizes))
    table = np.stack([subset_losses(system.vectors, made, documents, k) for k in sizes], axis=1)
    judged = {q: data.queries[q] for q in data.queries if q in data.judgements}
    metrics, residual = [], []
    for k in sizes:
        found = system.search_prf(list(judged.values()), scores_depth(), k, index)
        ranked = dict(zip(judged, found.second.ids, strict=True))
        metrics.append(scores.mean(
            ranked, data.judgements, ignore_identical_ids=data.queries_are_documents
        ))
        read = dict(zip(judged, found.read, strict=True))
        left = {
            q: {d: g for d, g in data.judgements[q].items() if d not in read[q]} for q in judged
        }
        unseen = {q: grades for q, grades in left.items() if any(g > 0 for g in grades.values())}
        residual.append(
            scores.mean(
                scores.residual(ranked, read), unseen,
                ignore_identical_ids=data.queries_are_documents,
            ) if unseen else {}
        )
    return Curve(sizes, table, metrics, residual)


def scores_depth() -> int:
    """Hits that the measures look at, and one for the query's own document."""
    return 101


def subset_losses(
    encode: Encode, made: Lessons, documents: Frozen, k: int
) -> np.ndarray[Any, Any]:
    """Ranking loss of each query with its k best passages, [Q] float64."""
    found = _scores(encode, made, documents, k)
    positives = made.places([one.positives for one in made.asked])
    own = made.places([(one.own,) for one in made.asked])
    return losses.ranking(found, positives, own).double().numpy()


def subset_mrr(encode: Encode, made: Lessons, documents: Frozen) -> float:
    """Mean reciprocal rank among the subset, 0 below rank 10, with all passages read."""
    found = _scores(encode, made, documents, made.fixed or 0)
    ranks = []
    for row, one in zip(found.numpy(), made.asked, strict=True):
        positives = made.places([one.positives])[0].numpy()
        best = row[positives].max()
        own = int(made.places([(one.own,)])[0, 0])
        ahead = row > best
        if own >= 0:
            ahead[own] = False
        ranks.append(1 + int(ahead.sum()))
    return float(np.mean([1 / r if r <= 10 else 0.0 for r in ranks]))


def _scores(encode: Encode, made: Lessons, documents: Frozen, k: int) -> torch.Tensor:
    reads = [made.read(i, one.found[:k]) for i, one in enumerate(made.asked)]
    with torch.no_grad():
        return documents.scores(torch.from_numpy(encode(reads)))
