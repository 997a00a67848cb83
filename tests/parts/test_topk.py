"""The k best inner products: against a full sort in float64, and faiss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passband.errors import DataError
from passband.parts.topk import TopK, longest_norm, merge, topk


def sorted_by_hand(queries, documents, k):
    """Pairs one by one with Python's own exact sum."""
    import math

    exact = np.array([
        [math.fsum(map(float, np.float64(q) * np.float64(x))) for x in documents] for q in queries
    ]).astype(np.float32)
    places = [sorted(range(len(documents)), key=lambda i: (-row[i], i))[:k] for row in exact]
    return np.array(places), np.take_along_axis(exact, np.array(places), 1)


@pytest.mark.parametrize("block", [7, 64, 16384])
@pytest.mark.parametrize("width", [1, 3, 24])
def test_is_a_full_sort(block, width):
    rng = np.random.default_rng(width)
    queries = rng.standard_normal((5, width)).astype(np.float32)
    documents = rng.standard_normal((150, width)).astype(np.float32)
    places, scores = sorted_by_hand(queries, documents, 40)
    found = topk(queries, documents, 40, block=block)
    assert (found.places == places).all()
    np.testing.assert_array_equal(found.scores, scores)
    assert found.places.dtype == np.int64 and found.scores.dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 90), st.integers(1, 60), st.integers(1, 50))
def test_equal_scores_come_by_place(seed, count, k, block):
    """Small whole numbers: ties everywhere, also across the k-th place and the blocks."""
    rng = np.random.default_rng(seed)
    queries, documents = rng.integers(-1, 2, (4, 3)), rng.integers(-1, 2, (count, 3))
    scores = queries @ documents.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = topk(queries.astype(np.float32), documents.astype(np.float32), k, block=block)
    assert (found.places == order).all()
    assert (found.scores == np.take_along_axis(scores, order, 1)).all()


def test_near_ties_are_told_apart():
    """Documents whose scores differ by less than what a float32 product rounds away."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(200).astype(np.float32)
    documents = np.repeat(base[None], 400, 0)
    documents[:, 7] += np.spacing(documents[:, 7]) * rng.permutation(400)
    query = np.ones((1, 200), np.float32)
    places, scores = sorted_by_hand(query, documents, 30)
    found = topk(query, documents, 30, block=64)
    assert (found.places == places).all() and (found.scores == scores).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("count", [1, 2, 8, 9, 300])
def test_each_form_of_the_product_is_a_full_sort(count, dtype):
    """One query, few and many are multiplied in different ways, and their blocks put together."""
    rng = np.random.default_rng(count)
    queries = rng.standard_normal((count, 20)).astype(np.float32)
    documents = rng.standard_normal((900, 20)).astype(dtype)
    documents[500:520] = documents[:20]  # ties
    exact = (queries.astype(np.float64) @ documents.astype(np.float64).T).astype(np.float32)
    exact[:, 500:520] = exact[:, :20]
    order = np.argsort(-exact, axis=1, kind="stable")[:, :30]
    for block in (40, 16384):
        found = topk(queries, documents, 30, block=block)
        known = topk(queries, documents, 30, block=block, longest=longest_norm(documents, block))
        assert (found.places == order).all() and (known.places == order).all()
        assert (known.scores == found.scores).all()


def test_the_longest_norm_tells_how_far_to_look():
    """More documents than there are candidates within the rounding of the first pass."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(200).astype(np.float32)
    documents = np.repeat(base[None], 400, 0)
    documents[:, 7] += np.spacing(documents[:, 7]) * rng.permutation(400)
    longest = longest_norm(documents, block=64)
    np.testing.assert_allclose(longest, np.linalg.norm(documents, axis=1).max(), rtol=1e-6)
    places, scores = sorted_by_hand(np.ones((1, 200), np.float32), documents, 30)
    found = topk(np.ones((1, 200), np.float32), documents, 30, longest=longest)
    assert (found.places == places).all() and (found.scores == scores).all()


def test_neither_batch_nor_block_nor_order_of_parts_changes_a_bit():
    rng = np.random.default_rng(1)
    queries = rng.standard_normal((300, 33)).astype(np.float32)
    documents = rng.standard_normal((2000, 33)).astype(np.float32)
    whole = topk(queries, documents, 20)
    for rows in (slice(0, 1), slice(17, 60), slice(250, 300)):
        part = topk(queries[rows], documents, 20, block=333)
        assert (part.places == whole.places[rows]).all()
        assert (part.scores == whole.scores[rows]).all()
    shards = [topk(queries, documents[a : a + 700], 20) for a in (1400, 0, 700)]
    shards = [TopK(s.places + a, s.scores) for s, a in zip(shards, (1400, 0, 700), strict=True)]
    assert (merge(shards, 20).places == whole.places).all()
    assert (merge(shards, 20).scores == whole.scores).all()


def test_is_faiss():
    faiss = pytest.importorskip("faiss")
    rng = np.random.default_rng(2)
    queries = rng.standard_normal((50, 48)).astype(np.float32)
    documents = rng.standard_normal((5000, 48)).astype(np.float32)
    index = faiss.IndexFlatIP(48)
    index.add(documents)
    scores, places = index.search(queries, 10)
    found = topk(queries, documents, 10)
    assert (found.places == places).all()
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5)


def test_takes_tensors_half_precision_and_memory_maps(tmp_path):
    rng = np.random.default_rng(3)
    documents = rng.standard_normal((100, 8)).astype(np.float16)
    queries = rng.standard_normal((3, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", documents)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r", allow_pickle=False)
    expected = topk(queries, documents.astype(np.float32), 5)
    for form in (documents, mapped, torch.from_numpy(documents)):
        found = topk(torch.from_numpy(queries), form, 5, block=30)
        assert (found.places == expected.places).all()
        assert (found.scores == expected.scores).all()


def test_sizes_at_the_edge():
    assert topk(np.ones((2, 3), np.float32), np.ones((4, 3), np.float32), 9).places.shape == (2, 4)
    assert topk(np.ones((0, 3), np.float32), np.ones((4, 3), np.float32), 2).places.shape == (0, 2)
    assert topk(np.ones((2, 3), np.float32), np.ones((0, 3), np.float32), 2).places.shape == (2, 0)


@pytest.mark.parametrize(
    ("queries", "documents", "k", "text"),
    [
        (np.ones(3), np.ones((2, 3)), 1, "shape"),
        (np.ones((1, 3)), np.ones((2, 4)), 1, "3 columns, documents 4"),
        (np.ones((1, 3)), np.ones((2, 3)), 0, "k = 0"),
        (np.full((1, 3), np.nan), np.ones((2, 3)), 1, "queries have NaN"),
        (np.ones((1, 3)), np.full((2, 3), np.inf), 1, "documents 0 to 1"),
    ],
)
def test_bad_input(queries, documents, k, text):
    with pytest.raises(DataError, match=text):
        topk(queries, documents, k)


def test_merge_leaves_padding_behind():
    one = TopK(np.array([[3, -1]]), np.array([[-5.0, -np.inf]], np.float32))
    other = TopK(np.array([[1, 0]]), np.array([[-4.0, -5.0]], np.float32))
    found = merge([one, other], 4)
    assert found.places.tolist() == [[1, 0, 3, -1]]
