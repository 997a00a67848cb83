"""Scores over frozen documents: against a dense product and its gradient by torch."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

from passband.errors import DataError
from passband.retrieval.lol_prf.documents import FrozenDense, FrozenSparse
from passband.retrieval.lol_prf.losses import ranking


@pytest.fixture
def matrix():
    return scipy.sparse.random_array(
        (300, 40), density=0.1, format="csr", dtype=np.float32, rng=np.random.default_rng(0)
    )


def test_sparse_scores_and_gradients_are_those_of_the_dense_product(matrix) -> None:
    queries = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), requires_grad=True)
    twin = queries.detach().clone().requires_grad_()
    labels = torch.tensor([[0], [9], [20], [7], [299]])
    ranking(FrozenSparse(matrix).scores(queries), labels).sum().backward()
    ranking(twin @ torch.from_numpy(matrix.toarray()).T, labels).sum().backward()
    torch.testing.assert_close(queries.grad, twin.grad, rtol=1e-5, atol=1e-6)


def test_errors_on_few_documents_give_the_same_gradient(matrix) -> None:
    """The way that multiplies active rows alone."""
    queries = torch.randn(2, 40, generator=torch.Generator().manual_seed(0), requires_grad=True)
    FrozenSparse(matrix).scores(queries)[:, [3, 8]].sum().backward()
    expected = torch.from_numpy(matrix.toarray()[[3, 8]].sum(0)).expand(2, -1)
    torch.testing.assert_close(queries.grad, expected)


def test_a_bounded_backward_is_close_where_softmax_is_peaked(matrix) -> None:
    queries = 8 * torch.randn(4, 40, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([[0], [9], [20], [7]])
    grads = []
    for keep in (None, 150, 3):
        q = queries.clone().requires_grad_()
        ranking(FrozenSparse(matrix, keep).scores(q), labels).sum().backward()
        grads.append(q.grad)
    assert (grads[1] - grads[0]).abs().max() < 1e-4 * grads[0].abs().max()
    assert (grads[2] - grads[0]).abs().max() > (grads[1] - grads[0]).abs().max()


def test_dense_half_precision_scores_in_float32() -> None:
    vectors = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float16)
    queries = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    found = FrozenDense(vectors).scores(queries)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, queries @ torch.from_numpy(vectors.astype(np.float32)).T)


@pytest.mark.parametrize("documents", [
    FrozenDense(np.eye(4, dtype=np.float32)), FrozenSparse(scipy.sparse.eye_array(4, format="csr")),
])
def test_vectors_of_another_space_are_refused(documents) -> None:
    with pytest.raises(DataError, match="3 entries and the documents 4"):
        documents.scores(torch.zeros(1, 3))
