"""Search by postings: against scipy's sparse product with a stable sort, and bm25s."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from passband.errors import ConfigError, DataError
from passband.parts.inverted_index import InvertedIndex, as_rows, engines
from passband.parts.inverted_index.engines import CHUNK

ENGINES = ("numba", "numpy")


def drawn(rows, vocabulary, density, seed, *, whole=True, signed=False):
    """Random CSR rows; whole numbers have ties and exact sums."""
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 4, (rows, vocabulary)) if whole else rng.random((rows, vocabulary))
    values = values * (rng.random((rows, vocabulary)) < density)
    if signed:
        values = values * rng.choice([-1, 1], values.shape)
    return sparse.csr_array(values.astype(np.float32))


def by_product(documents, queries, k):
    """Every score by a dense product in float64; only documents that share a term."""
    scores = (queries.astype(np.float64) @ documents.astype(np.float64).T).toarray()
    shared = (queries.astype(bool).astype(int) @ documents.astype(bool).astype(int).T).toarray() > 0
    scores = np.where(shared, scores, -np.inf)
    k = min(k, documents.shape[0])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(scores, order, 1)
    return np.where(np.isfinite(found), order, -1), found


@pytest.fixture(params=ENGINES)
def engine(request):
    if request.param == "numba":
        pytest.importorskip("numba")
    return request.param


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("density", [0.005, 0.2])
def test_is_the_product(engine, signed, density):
    """Sparse queries walk the postings twice, dense ones look through all sums."""
    documents = drawn(300, 50, 0.1, 0, signed=signed)
    queries = drawn(40, 50, density, 1, signed=signed)
    places, scores = by_product(documents, queries, 20)
    found = InvertedIndex.of(documents, engine=engine).search(queries, 20)
    assert (found.places == places).all()
    assert (found.scores == scores).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 9), st.integers(1, 70),
    st.floats(0.0, 1.0), st.booleans(),
)
def test_any_sizes(seed, count, vocabulary, k, density, signed):
    documents = drawn(count, vocabulary, density, seed, signed=signed)
    queries = drawn(3, vocabulary, 0.5, seed + 1, signed=signed)
    places, scores = by_product(documents, queries, k)
    for engine in ENGINES:
        found = InvertedIndex.of(documents, engine=engine).search(queries, k)
        assert (found.places == places).all()
        assert (found.scores == scores).all()


@pytest.mark.parametrize(("quantise", "signed"), [(None, False), (None, True), (0.01, False)])
def test_engines_threads_and_segments_agree_to_the_bit(quantise, signed):
    """Sums of numbers that float32 rounds: equal only where they are added in the same order."""
    pytest.importorskip("numba")
    documents = drawn(400, 60, 0.2, 2, whole=False, signed=signed)
    queries = drawn(5 * CHUNK + 3, 60, 0.3, 3, whole=False)
    index = InvertedIndex.of(documents, engine="numpy", quantise=quantise)
    expected = index.search(queries, 30)
    for threads in (1, 3):
        found = InvertedIndex.of(
            documents, engine="numba", threads=threads, quantise=quantise
        ).search(queries, 30)
        assert (found.places == expected.places).all() and (found.scores == expected.scores).all()
    for engine in ENGINES:
        parts = InvertedIndex.of(documents[:100], engine=engine, quantise=quantise)
        for start, stop in ((100, 101), (101, 101), (101, 350), (350, 400)):
            parts.append(documents[start:stop])
        for _ in range(2):
            found = parts.search(queries, 30)
            assert (found.places == expected.places).all()
            assert (found.scores == expected.scores).all()
            parts.compact()
        assert len(parts.segments) == 1


def test_scores_of_given_documents(engine):
    documents, queries = drawn(90, 20, 0.2, 4, whole=False), drawn(6, 20, 0.3, 5, whole=False)
    index = InvertedIndex.of(documents[:50], engine=engine)
    index.append(documents[50:])
    found = index.search(queries, 90)
    assert (index.score(queries, found.places) == found.scores).all()
    everything = index.score(queries, np.tile(np.arange(90), (6, 1)))
    product = (queries @ documents.T).toarray()
    np.testing.assert_allclose(np.where(np.isfinite(everything), everything, 0), product, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.booleans(), st.sampled_from([None, 0.02]))
def test_skipping_changes_nothing(seed, k, whole, quantise):
    """Windows of eight documents and weights of very different sizes: much is left out."""
    pytest.importorskip("numba")
    documents = drawn(200, 12, 0.3, seed, whole=whole)
    queries = drawn(6, 12, 0.6, seed + 1, whole=whole)
    queries = sparse.csr_array(queries * (10.0 ** np.arange(0, -6, -0.5, dtype=np.float32)))
    index = InvertedIndex.of(documents, quantise=quantise)
    expected = index.search(queries, k)
    index.skip = True
    for window in (8, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engines, "WINDOW", window)
            found = index.search(queries, k)
        assert (found.places == expected.places).all() and (found.scores == expected.scores).all()


def test_eight_bits_are_within_half_a_step(engine):
    documents, queries = drawn(80, 30, 0.3, 6, whole=False), sparse.eye_array(30, format="csr")
    for quantise, step in (("term", documents.max(0).toarray() / 255), (0.01, 0.01)):
        index = InvertedIndex.of(documents, engine=engine, quantise=quantise)
        assert index.segments[0].weights.dtype == np.uint8
        errors = np.abs((index.rows() - documents).toarray())
        # Half a step, or up to a whole one for what would be rounded away.
        assert (errors <= np.where(documents.toarray() < step / 2, step, step / 2) + 1e-6).all()
        assert ((index.rows() > 0) != (documents > 0)).nnz == 0
        found = index.search(queries, 80)
        exact = InvertedIndex.of(index.rows(), engine=engine).search(queries, 80)
        assert (found.places == exact.places).all() and (found.scores == exact.scores).all()


def test_whole_impacts_in_steps_of_one_are_exact(engine):
    documents, queries = drawn(80, 30, 0.3, 7), drawn(9, 30, 0.3, 8)
    plain = InvertedIndex.of(documents, engine=engine).search(queries, 80)
    found = InvertedIndex.of(documents, engine=engine, quantise=1.0).search(queries, 80)
    assert (found.places == plain.places).all() and (found.scores == plain.scores).all()


def test_explanation_adds_up(engine):
    documents, queries = drawn(70, 25, 0.3, 9, whole=False), drawn(4, 25, 0.4, 10, whole=False)
    index = InvertedIndex.of(documents[:30], engine=engine, quantise="term")
    index.append(documents[30:])
    found = index.search(queries, 70)
    for row in range(4):
        for column in (0, 3, 20):
            place = found.places[row, column]
            shares = index.explain(queries[[row]], int(place))
            assert sum(share for _, share in shares) == pytest.approx(found.scores[row, column])
            terms = set(queries[[row]].indices) & set(documents[[place]].indices)
            assert {term for term, _ in shares} == terms
            assert [share for _, share in shares] == sorted((s for _, s in shares), reverse=True)


def test_two_phases(engine):
    documents, queries = drawn(400, 40, 0.2, 11, whole=False), drawn(20, 40, 0.3, 12, whole=False)
    index = InvertedIndex.of(documents, engine=engine)
    exact = index.search(queries, 10)
    everything = index.two_phase(queries, 10, ratio=0.0, expansion=1)
    assert (everything.places == exact.places).all()
    found = index.two_phase(queries, 10, ratio=0.6, expansion=3)
    dense = queries.toarray()
    light = np.where(dense >= 0.6 * dense.max(1, keepdims=True), dense, 0)
    first, _ = by_product(documents, sparse.csr_array(light), 30)
    scores = (queries @ documents.T).toarray()
    for row in range(20):  # by hand: the candidates of the heavy terms, by their full scores
        chosen = sorted(first[row][first[row] >= 0], key=lambda p: -scores[row, p])[:10]
        assert found.places[row].tolist() == chosen
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, found.places, 1), rtol=1e-5)


def test_is_bm25s(engine):
    """The library's own index of random texts, searched by ours: the same documents and scores."""
    bm25s = pytest.importorskip("bm25s")
    rng = np.random.default_rng(13)
    words = [f"w{i}" for i in range(60)]
    texts = [" ".join(rng.choice(words, rng.integers(3, 30))) for _ in range(200)]
    library = bm25s.BM25(k1=0.9, b=0.4)
    library.index([text.split() for text in texts], show_progress=False)
    scores, columns = library.scores, library.vocab_dict
    postings = (scores["data"], scores["indices"], scores["indptr"])
    documents = sparse.csc_array(postings, shape=(200, len(scores["indptr"]) - 1))
    queries = sparse.lil_array((20, documents.shape[1]), dtype=np.float32)
    asked = [list(rng.choice(words, 4, replace=False)) for _ in range(20)]
    for row, query in enumerate(asked):
        for word in query:
            queries[row, columns[word]] += 1
    found = InvertedIndex.of(documents.tocsr(), engine=engine).search(queries.tocsr(), 10)
    places, values = library.retrieve(asked, k=10, show_progress=False)
    np.testing.assert_allclose(found.scores, values, rtol=1e-5)
    assert (found.places == places).mean() > 0.95  # its order of equal scores is not ours


def test_empty_documents_queries_and_indexes(engine):
    documents = sparse.csr_array(np.array([[0, 0], [0, 2], [0, 0]], np.float32))
    index = InvertedIndex.of(documents, engine=engine)
    found = index.search(np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), 5)
    assert found.places.tolist() == [[-1] * 3, [-1] * 3, [1, -1, -1]]
    assert found.scores[2].tolist() == [2.0, -np.inf, -np.inf]
    empty = InvertedIndex([], 2, engine=engine)
    assert empty.search(np.ones((1, 2)), 3).places.shape == (1, 0)
    empty.append(documents)
    assert empty.search(np.ones((1, 2)), 1).places.tolist() == [[1]]


def test_weights_that_cancel_still_match(engine):
    index = InvertedIndex.of(np.array([[1.0, -1.0], [0.0, 0.0], [-1.0, -1.0]]), engine=engine)
    found = index.search(np.ones((1, 2)), 3)
    assert found.places.tolist() == [[0, 2, -1]]
    assert found.scores.tolist() == [[0.0, -2.0, -np.inf]]


def test_rows_are_put_in_order():
    rows = as_rows(([0, 3, 3], [2, 0, 2], [1.0, 0.0, 2.0]), vocabulary=4)
    assert rows.toarray().tolist() == [[0, 0, 3, 0], [0, 0, 0, 0]]
    assert rows.nnz == 1
    given_rows = sparse.csr_array(([1.0, 2.0], [1, 0], [0, 2]), shape=(1, 2))
    as_rows(given_rows)
    assert given_rows.indices.tolist() == [1, 0]  # the caller's matrix is as it was


def test_vectors_come_back():
    documents = drawn(50, 20, 0.3, 14, whole=False)
    index = InvertedIndex.of(documents[:20])
    index.append(documents[20:])
    assert (index.rows() != documents).nnz == 0
    places = np.array([44, 3, 20, 3])
    assert (index.take(places) != documents[places]).nnz == 0


@pytest.mark.parametrize(
    ("vectors", "text"),
    [
        (np.ones((1, 4)), "shape"),
        (np.array([[1.0, np.nan, 0.0]]), "row 0 of the queries has a weight of nan"),
        (([0, 1], [3], [1.0]), "terms from 3 to 3"),
        (([0, 2], [1], [1.0]), "1 terms, 1 weights"),
        (([1, 0], [1], [1.0]), "indptr"),
    ],
)
def test_bad_queries(vectors, text):
    with pytest.raises(DataError, match=text):
        InvertedIndex.of(np.ones((2, 3))).search(vectors, 1)


def test_bad_settings():
    index = InvertedIndex.of(np.ones((2, 3)))
    with pytest.raises(DataError, match="k = 0"):
        index.search(np.ones((1, 3)), 0)
    with pytest.raises(ConfigError, match="engine"):
        InvertedIndex.of(np.ones((2, 3)), engine="fast")
    with pytest.raises(DataError, match="can't be quantised"):
        InvertedIndex.of(-np.ones((2, 3)), quantise="term")
    with pytest.raises(DataError, match="255 steps"):
        InvertedIndex.of(np.full((2, 3), 300.0), quantise=1.0)
    with pytest.raises(DataError, match="ratio"):
        index.two_phase(np.ones((1, 3)), 1, ratio=2)
    with pytest.raises(DataError, match="place 2"):
        index.explain(np.ones((1, 3)), 2)
    with pytest.raises(DataError, match="2 queries"):
        index.explain(np.ones((2, 3)), 0)
    with pytest.raises(DataError, match="places from"):
        index.score(np.ones((1, 3)), np.array([[2]]))


def test_without_numba(monkeypatch):
    from passband.errors import MissingExtraError
    from passband.parts.inverted_index import engines

    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    engines.chosen.cache_clear()
    try:
        index = InvertedIndex.of(np.eye(3))
        assert index.search(np.eye(3), 1).places.tolist() == [[0], [1], [2]]
        with pytest.raises(MissingExtraError, match="retrieval"):
            InvertedIndex.of(np.eye(3), engine="numba")
    finally:
        engines.chosen.cache_clear()


@pytest.mark.parametrize("levels", [2, 40, 10**6])
@pytest.mark.parametrize("k", [1, 30, 200])
def test_documents_below_a_bound_are_left_out_and_no_others(levels, k):
    """Many documents for few hits, with few, some and no ties: a full stable sort."""
    rng = np.random.default_rng(levels + k)
    documents = sparse.random_array((5003, 12), density=0.4, rng=rng, format="csr")
    documents.data = rng.integers(1, levels + 1, documents.nnz).astype(np.float32)
    documents = documents.toarray().astype(np.float32)
    documents[:, 11] = 0
    documents[[5000, 5001, 17], 11] = 1  # fewer hits than k
    queries = np.eye(12, dtype=np.float32)
    queries[0, 1:11] = 1
    scores = queries.astype(np.float64) @ documents.T.astype(np.float64)
    found = InvertedIndex.of(documents, threads=1).search(queries, k)
    for row, exact in enumerate(scores):
        order = np.argsort(-exact, kind="stable")[:k]
        order = order[exact[order] > 0]
        assert found.places[row, : len(order)].tolist() == order.tolist()
        assert (found.places[row, len(order) :] == -1).all()
        assert (found.scores[row, : len(order)] == exact[order]).all()
