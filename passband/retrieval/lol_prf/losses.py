"""What a revision of a query is trained with: ranking over frozen documents, and LoL on top.

    Q revisions (R of each query), P documents, M positives at most (filled up with -1)

    ranking       l = -log softmax(scores)[d+], d+ the positive with the lowest score, the other
                  positives left out of the sum
    comparative   mean over queries and pairs a, b of revisions, a with more feedback than b, of
                  max(0, l_a - l_b): a revision that saw more must not rank worse

>>> losses = torch.tensor([[4.717478, 10.595684, 5.605339], [5.717658, 9.613, 12.508135]])
>>> round(float(comparative(losses)), 6)          # one violated pair of six
0.831724
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

POSITIVE_WEIGHT = 7.0  # of a relevant feedback passage in `reranking`


def ranking(
    scores: Tensor, positives: Tensor, left_out: Tensor | None = None, label: Tensor | None = None
) -> Tensor:
    """Cross-entropy of each revision's hardest positive, [Q].

        scores [Q, P], positives [Q, M] places among the documents, -1 where there are fewer
        left_out [Q, O] places of documents that count as nothing, such as the query's own one
        label [Q, 1] place of the positive that is asked for, in place of the hardest one

    Every row needs a positive. Scores are taken to float32: a softmax over many thousand documents
    needs it.

    >>> scores = torch.tensor([[2.0, 1.0, 0.0]])
    >>> ranking(scores, torch.tensor([[0, 1]]))       # against document 2 alone, from document 1
    tensor([0.3133])
    """
    scores = scores.float()
    there = positives >= 0
    places = positives.clamp_min(0)
    if label is None:
        own = scores.detach().gather(1, places).masked_fill(~there, math.inf)
        hardest = places.gather(1, own.argmin(1, keepdim=True))
    else:
        hardest = label
    # Filling up points at the hardest one, whose own entry is put back below.
    others = torch.where(there, places, hardest)
    if left_out is not None:
        others = torch.cat([others, torch.where(left_out >= 0, left_out, hardest)], 1)
    left = scores.scatter(1, others, -math.inf).scatter(1, hardest, scores.gather(1, hardest))
    return F.cross_entropy(left, hardest[:, 0], reduction="none")


def comparative(losses: Tensor) -> Tensor:
    """Mean hinge over all pairs of revisions; the gradient flows into both losses of a pair.

        losses [Q, R], most feedback first

    Pairs that are in order count in the mean with zero: a mean over violated pairs alone would
    change the weight of the term from batch to batch. One revision has no pairs: 0.

    >>> comparative(torch.tensor([[3.0, 1.0, 2.0]]))  # pairs 2, 1 and 0
    tensor(1.)
    """
    revisions = losses.shape[1]
    if revisions < 2:
        return losses.new_zeros(())
    more, less = torch.triu_indices(revisions, revisions, offset=1, device=losses.device)
    return (losses[:, more] - losses[:, less]).clamp_min(0).mean()


def query_ranking(scores: Tensor, positives: Tensor, owners: Tensor) -> Tensor:
    """Of each positive document, cross-entropy of its own query against the batch's others.

        scores, positives as in `ranking`; owners [Q] number of the query that a revision is of

    Other queries with the same positive are left out, and so are other revisions of the same one.
    The first revision of a query (the one with most feedback) is the one asked for.

    >>> scores = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    >>> query_ranking(scores, torch.tensor([[0], [1]]), torch.tensor([0, 1]))
    tensor(0.1809)
    """
    first = torch.ones_like(owners, dtype=torch.bool)
    first[1:] = owners[1:] != owners[:-1]
    rows, columns = torch.nonzero((positives >= 0) & first[:, None], as_tuple=True)
    documents = positives[rows, columns]
    of_documents = scores.float()[:, documents].T  # [positives, Q]
    shares = (positives[None] == documents[:, None, None]).any(2)  # own revisions among them
    shares |= owners[None] == owners[rows][:, None]
    shares[torch.arange(len(rows), device=rows.device), rows] = False
    return F.cross_entropy(of_documents.masked_fill(shares, -math.inf), rows)


def reranking(logits: Tensor, relevant: Tensor) -> Tensor:
    """Binary cross-entropy of the feedback passages' own scores against their relevance.

        logits, relevant [Q, K], NaN in logits where there is no passage

    >>> reranking(torch.tensor([[0.0, torch.nan]]), torch.tensor([[1.0, 0.0]]))   # 7 log 2
    tensor(4.8520)
    """
    there = ~torch.isnan(logits)
    if not bool(there.any()):
        return logits.new_zeros(())
    return F.binary_cross_entropy_with_logits(
        logits[there].float(), relevant[there].float(),
        pos_weight=logits.new_tensor(POSITIVE_WEIGHT, dtype=torch.float32),
    )


def staircase(fraction: float, start: float = 0.0, stairs: int = 10) -> float:
    """Factor of the L1 term at a share of the training: squares of tenths, 0 up to `start`.

    >>> [round(staircase(t), 2) for t in (0.0, 0.05, 0.5, 0.51, 1.0)]
    [0.0, 0.01, 0.25, 0.36, 1.0]
    """
    if fraction <= start:
        return 0.0
    # Rounded first: 0.3 of ten stairs is the third, not the fourth by a rounding error.
    stair = math.ceil(round((fraction - start) / (1.0 - start) * stairs, 9))
    return (stair / stairs) ** 2


def violations(losses: Tensor) -> Tensor:
    """Share of pairs that the comparative term punishes, of losses [Q, R] most feedback first.

    >>> violations(torch.tensor([[3.0, 1.0, 2.0]]))
    tensor(0.6667)
    """
    revisions = losses.shape[1]
    more, less = torch.triu_indices(revisions, revisions, offset=1, device=losses.device)
    return (losses[:, more] > losses[:, less]).float().mean()
