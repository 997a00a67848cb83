"""Against losses written as loops, and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from passband.retrieval.lol_prf import losses


def naive_ranking(scores, positives, left_out):
    """One query at a time, in float64, documents counted one by one."""
    found = []
    for row, wanted, out in zip(scores, positives, left_out, strict=True):
        wanted = [p for p in wanted if p >= 0]
        hardest = min(wanted, key=lambda p: row[p])
        others = [p for p in range(len(row)) if p not in wanted and p not in out]
        total = math.exp(row[hardest]) + sum(math.exp(row[p]) for p in others)
        found.append(-row[hardest] + math.log(total))
    return found


def test_ranking_is_the_loss_of_the_hardest_positive_without_the_others() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((6, 9))
    positives = [[0, 3, 5], [2, -1, -1], [8, 0, -1], [4, 3, 2], [1, -1, -1], [7, 6, -1]]
    left_out = [[1], [-1], [-1], [0], [8], [-1]]
    found = losses.ranking(
        torch.tensor(scores), torch.tensor(positives), torch.tensor(left_out)
    )
    assert found.tolist() == pytest.approx(naive_ranking(scores, positives, left_out), abs=1e-6)


def test_the_gradient_of_ranking_is_softmax_minus_label_over_what_is_left() -> None:
    scores = torch.randn(1, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    losses.ranking(scores, torch.tensor([[1, 3]])).sum().backward()
    hardest, other = (1, 3) if scores[0, 1] < scores[0, 3] else (3, 1)
    left = [i for i in range(5) if i != other]
    expected = torch.zeros(5)
    expected[left] = scores.detach()[0, left].softmax(0)
    expected[hardest] -= 1
    torch.testing.assert_close(scores.grad[0], expected)


def test_a_repeated_query_place_that_fills_up_changes_nothing() -> None:
    scores = torch.randn(2, 7, generator=torch.Generator().manual_seed(1))
    short = losses.ranking(scores, torch.tensor([[4], [2]]))
    filled = losses.ranking(scores, torch.tensor([[4, -1, -1], [2, -1, -1]]))
    torch.testing.assert_close(short, filled, rtol=0, atol=0)


def test_comparative_of_the_published_batch() -> None:
    """Six pairs of two queries with three revisions; only one of them is out of order."""
    table = torch.tensor([[4.717478, 10.595684, 5.605339], [5.717658, 9.613, 12.508135]])
    assert float(losses.comparative(table)) == pytest.approx(0.831724, abs=1e-6)
    assert float(losses.comparative(table)) == pytest.approx((10.595684 - 5.605339) / 6, abs=1e-5)
    assert float(losses.violations(table)) == pytest.approx(1 / 6)


def test_comparative_is_the_mean_margin_ranking_loss_over_pairs() -> None:
    """torch's own hinge, pair by pair."""
    table = torch.rand(4, 4, generator=torch.Generator().manual_seed(2))
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    each = [
        torch.nn.functional.margin_ranking_loss(table[:, b], table[:, a], torch.ones(4))
        for a, b in pairs
    ]
    torch.testing.assert_close(losses.comparative(table), torch.stack(each).mean())


def test_the_hinge_pulls_at_both_losses() -> None:
    table = torch.tensor([[3.0, 1.0], [1.0, 3.0]], requires_grad=True)
    losses.comparative(table).backward()
    assert table.grad.tolist() == [[0.5, -0.5], [0.0, 0.0]]


def test_one_revision_has_nothing_to_compare() -> None:
    assert float(losses.comparative(torch.rand(5, 1))) == 0.0


def test_query_ranking_leaves_out_who_shares_the_document() -> None:
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(3)).double()
    owners = torch.tensor([0, 0, 1, 1, 2, 2])
    positives = torch.tensor([[0], [0], [0], [0], [2], [2]])
    # Document 0 is of queries 0 and 1, so only query 2's revisions oppose either of them.
    each = [
        -scores[0, 0] + torch.logsumexp(scores[[0, 4, 5], 0], 0),
        -scores[2, 0] + torch.logsumexp(scores[[2, 4, 5], 0], 0),
        -scores[4, 2] + torch.logsumexp(scores[[4, 0, 1, 2, 3], 2], 0),
    ]
    found = losses.query_ranking(scores, positives, owners)
    assert float(found) == pytest.approx(float(torch.stack(each).mean()), abs=1e-6)


def test_reranking_weighs_relevant_passages_seven_times() -> None:
    logits = torch.tensor([[0.3, -1.0], [2.0, torch.nan]])
    relevant = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    each = [7 * math.log1p(math.exp(-0.3)), math.log1p(math.exp(-1.0)), math.log1p(math.exp(2.0))]
    assert float(losses.reranking(logits, relevant)) == pytest.approx(sum(each) / 3, abs=1e-6)
    assert float(losses.reranking(logits * torch.nan, relevant)) == 0.0


@pytest.mark.parametrize(("start", "fraction", "stair"), [
    (0.0, 0.0, 0), (0.0, 1e-9, 1), (0.0, 0.3, 3), (0.0, 0.31, 4), (0.5, 0.5, 0), (0.5, 0.75, 5),
    (0.5, 1.0, 10),
])
def test_staircase(start: float, fraction: float, stair: int) -> None:
    assert losses.staircase(fraction, start) == pytest.approx((stair / 10) ** 2)
