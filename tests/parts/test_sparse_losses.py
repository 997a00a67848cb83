"""FLOPS, its schedule and distillation against written-out formulas and sentence-transformers."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from passband.errors import DataError
from passband.parts.losses.distillation import ensemble, kl_divergence, margin_mse, min_max
from passband.parts.losses.flops import flops, idf_aware_flops, ramp


def _draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- FLOPS ---------------------------------------------------------------------------------------


def test_flops_written_out():
    w = _draw(6, 5).numpy()
    wanted = sum(np.mean([abs(w[i, j]) for i in range(6)]) ** 2 for j in range(5))
    assert float(flops(torch.from_numpy(w))) == pytest.approx(wanted)


def test_groups_are_means_within_each_position():
    w = _draw(6, 5)  # three queries with two documents each
    assert float(flops(w, groups=2)) == pytest.approx(float(flops(w[0::2]) + flops(w[1::2])))
    # Not the same scale as all documents at once, which other libraries take.
    assert float(flops(w, groups=2)) != pytest.approx(float(flops(w)))


def test_short_documents_are_left_out_of_the_mean_but_counted():
    w = torch.tensor([[1.0, 1.0, 1.0], [4.0, 0.0, 0.0]])
    assert float(flops(w, threshold=1)) == pytest.approx(3 * 0.5**2)
    assert float(flops(w, threshold=3)) == 0.0


def test_both_views_of_the_idf_have_equal_values_and_gradients():
    """idf in the query and w in the index, or ones in the query and u = idf w in the index."""
    logits, idf = _draw(8, 40).requires_grad_(), _draw(40, seed=1).exp()
    present = (_draw(4, 40, seed=2) > 1).double()
    ranking = torch.nn.CrossEntropyLoss()

    def in_query():
        w = logits.relu().log1p()
        return ranking((present * idf) @ w.T, torch.arange(4)) + 0.1 * flops(w, groups=2)

    def in_index():
        u = logits.relu().log1p() * idf
        return ranking(present @ u.T, torch.arange(4)) + 0.1 * idf_aware_flops(u, idf, groups=2)

    first, second = in_query(), in_index()
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)
    (a,), (b,) = torch.autograd.grad(first, logits), torch.autograd.grad(second, logits)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_flops_equals_that_of_sentence_transformers():
    losses = pytest.importorskip("sentence_transformers.sparse_encoder.losses")
    w = _draw(5, 30).relu()
    for threshold in (None, 12):
        theirs = losses.FlopsLoss(None, threshold).compute_loss_from_embeddings(w)
        torch.testing.assert_close(flops(w, threshold=threshold or 0), theirs)


@pytest.mark.parametrize("shape, groups", [((5, 3), 2), ((5,), 1), ((4, 3), 0)])
def test_rows_that_make_no_groups(shape, groups):
    with pytest.raises(DataError):
        flops(torch.zeros(shape), groups)


def test_ramp_is_quadratic_and_stays_at_one():
    assert [ramp(t, 10) for t in (0, 4, 9, 500)] == pytest.approx([0.01, 0.25, 1.0, 1.0])


# ---- distillation --------------------------------------------------------------------------------


def test_kl_equals_scipy():
    student, teacher = _draw(4, 6), _draw(4, 6, seed=1)
    for temperature in (1.0, 3.0):
        wanted = np.mean([
            entropy(softmax(t / temperature), softmax(s / temperature))
            for s, t in zip(student.numpy(), teacher.numpy(), strict=True)
        ])
        assert float(kl_divergence(student, teacher, temperature)) == pytest.approx(wanted)


def test_margin_mse_written_out():
    student, teacher = _draw(3, 4), _draw(3, 4, seed=1)
    wanted = np.mean([
        float((student[b, 0] - student[b, c]) - (teacher[b, 0] - teacher[b, c])) ** 2
        for b in range(3) for c in range(1, 4)
    ])
    assert float(margin_mse(student, teacher)) == pytest.approx(wanted)


def test_ensemble_does_not_see_the_scale_of_a_teacher():
    first, second = _draw(3, 5), _draw(3, 5, seed=1)
    plain = ensemble([first, second])
    torch.testing.assert_close(ensemble([first * 1000 - 7, second]), plain, atol=1e-3, rtol=0)
    assert float(plain.min()) >= 0 and float(plain.max()) <= 30
    # Without the normalisation the large one alone decides the order.
    drowned = ensemble([first * 1000, second], normalise=False)
    assert torch.equal(drowned.argsort(1), first.argsort(1))


def test_a_teacher_without_an_opinion_gives_zeros():
    assert torch.equal(min_max(torch.full((2, 3), 4.0)), torch.zeros(2, 3))


@pytest.mark.parametrize("call", [
    lambda: kl_divergence(torch.zeros(2, 3), torch.zeros(3, 2)),
    lambda: margin_mse(torch.zeros(2, 1), torch.zeros(2, 1)),
    lambda: ensemble([]),
    lambda: ensemble([torch.zeros(2, 3), torch.zeros(2, 4)]),
])
def test_scores_that_do_not_fit(call):
    with pytest.raises(DataError):
        call()
