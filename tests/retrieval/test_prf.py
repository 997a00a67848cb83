"""Searching twice: Rocchio and RM3 by their formulas, the two rankings, what is wrong to ask."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from passband import create
from passband.errors import ConfigError, DataError, PassbandWarning
from passband.retrieval.baselines.rm3.model import relevance
from passband.retrieval.baselines.rocchio.model import rocchio
from passband.retrieval.impacts import BM25, Words

TEXTS = [
    "ice melts in spring", "spring water runs over moss", "moss and fern in the forest",
    "the forest burns", "water freezes to ice", "birds sing in spring in the forest",
]


def impacts_by_hand(texts, word, place, k1=0.9, b=0.4):
    split = [t.split() for t in texts]
    tf, df = split[place].count(word), sum(word in s for s in split)
    mean = sum(map(len, split)) / len(split)
    idf = np.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
    return idf * tf / (tf + k1 * (1 - b + b * len(split[place]) / mean))


def test_impacts_are_lucenes_bm25() -> None:
    words = Words()
    counts = words.count(TEXTS, grow=True)
    found = BM25.of([counts[:4], counts[4:]]).impacts(counts).toarray()
    for place in range(len(TEXTS)):
        for word, column in words.columns.items():
            expected = impacts_by_hand(TEXTS, word, place)
            assert found[place, column] == pytest.approx(expected, rel=1e-5)


def test_impacts_are_those_of_bm25s() -> None:
    bm25s = pytest.importorskip("bm25s")
    words = Words()
    counts = words.count(TEXTS, grow=True)
    ours = (words.count(["spring forest"]) @ BM25.of([counts]).impacts(counts).T).toarray()[0]
    library = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    library.index([words.split(t) for t in TEXTS], show_progress=False)
    np.testing.assert_allclose(ours, library.get_scores(["spring", "forest"]), rtol=1e-5)


def test_sparse_rocchio_by_hand() -> None:
    rng = np.random.default_rng(0)
    query, documents = rng.random((1, 8)), rng.random((3, 8)) * (rng.random((3, 8)) > 0.4)
    found = rocchio(
        scipy.sparse.csr_array(query), [scipy.sparse.csr_array(documents)], alpha=0.7, beta=0.2,
        terms=4,
    ).toarray()[0]
    mean = documents.mean(0)
    mean[np.argsort(-mean)[4:]] = 0.0
    np.testing.assert_allclose(found, 0.7 * query[0] + 0.2 * mean, rtol=1e-5)


def test_dense_rocchio_by_hand_and_without_feedback() -> None:
    query, documents = np.float32([[1, 2], [3, 4]]), np.float32([[2, 0], [4, 2]])
    found = rocchio(query, [documents, documents[:0]], alpha=0.4, beta=0.6)
    np.testing.assert_allclose(found, [[0.4 + 1.8, 0.8 + 0.6], [3, 4]], rtol=1e-6)


def test_the_relevance_model_counts_words_document_by_document() -> None:
    texts, scores = ["a b b c", "c c d"], np.array([3.0, 1.0])
    columns = {w: i for i, w in enumerate("abcd")}
    counts = np.zeros((2, 4), dtype=np.float32)
    likely: Counter[str] = Counter()
    for row, (text, score) in enumerate(zip(texts, scores, strict=True)):
        for word in text.split():
            counts[row, columns[word]] += 1
            if word != "a":  # not allowed
                likely[word] += score / sum(w != "a" for w in text.split())
    top = dict(likely.most_common(2))
    found = relevance(
        scipy.sparse.csr_array(counts), scores, 2, np.array([False, True, True, True])
    ).toarray()[0]
    for word, column in columns.items():
        assert found[column] == pytest.approx(top.get(word, 0.0) / sum(top.values()), rel=1e-5)


@pytest.mark.parametrize("name", ["rocchio", "rm3"])
def test_feedback_finds_what_shares_no_word_with_the_query(name: str) -> None:
    system = create(name, feedback=2, **({"common": 1.0} if name == "rm3" else {}))
    system.index(TEXTS)
    found = system.search_prf("melts", k=6, feedback=1)
    assert found.first.ids == [["0"]]
    assert found.read == [["0"]]
    assert found.second.ids[0][0] == "0"
    assert {"1", "4", "5"} <= set(found.second.ids[0])  # by ice and spring
    assert "0" not in found.residual()[0]
    difference = found.difference(0)
    assert {"ice", "spring"} <= {term for term, _ in difference.added}
    assert all(weight > 0 for _, weight in difference.added)
    shares = system.explain("melts", "4")
    with pytest.warns(PassbandWarning, match="fewer than"):
        system.search_prf("melts", k=6, feedback=2)
    assert sum(w for _, w in shares) > 0


@pytest.mark.parametrize("name", ["rocchio", "rm3"])
def test_without_feedback_the_second_search_ranks_as_the_first(name: str) -> None:
    system = create(name)
    system.index(TEXTS)
    found = system.search_prf(["spring forest", "ice water"], k=6, feedback=0)
    assert found.first.ids == found.second.ids
    assert found.read == [[], []]


def test_search_is_the_second_search() -> None:
    system = create("rocchio", feedback=1)
    system.index(TEXTS)
    assert system.search("melts", k=3).ids == system.search_prf("melts", k=3).second.ids


def test_dense_rocchio_reads_the_vectors_of_the_index() -> None:
    system = create("rocchio", preset="dense", axes=4, feedback=1)
    system.index(TEXTS)
    found = system.search_prf("moss", k=6)
    expected = 0.4 * system.encode_queries(["moss"]) + 0.6 * system.encode_documents(
        [TEXTS[found.first.places[0][0]]]
    )
    np.testing.assert_allclose(found.after, expected, atol=1e-5)
    with pytest.raises(ConfigError, match="no terms"):
        found.difference(0)


@pytest.mark.parametrize("preset", ["small", "dense"])
def test_a_blank_query_finds_nothing(preset: str) -> None:
    system = create("rocchio", preset=preset, feedback=1)
    system.index(TEXTS)
    with pytest.warns(PassbandWarning):
        found = system.search_prf(["", "moss"], k=3)
    assert found.first.ids[0] == found.second.ids[0] == []
    assert found.second.ids[1]


def test_an_opened_index_needs_its_texts(tmp_path: Path) -> None:
    system = create("rm3", feedback=1)
    system.index(TEXTS, tmp_path / "index")
    expected = system.search("melts", k=4)
    saved = system.save(tmp_path / "model")
    again = type(system).load(saved)
    again.open(tmp_path / "index")
    with pytest.raises(ConfigError, match="texts of the index"):
        again.search("melts", k=4)
    again.attach(TEXTS[:3])
    with pytest.raises(DataError, match="3 texts and an index of 6"):
        again.search("melts", k=4)
    again.attach(TEXTS)
    assert again.search("melts", k=4).ids == expected.ids


def test_rocchio_needs_no_texts(tmp_path: Path) -> None:
    system = create("rocchio", feedback=1)
    system.index(TEXTS, tmp_path / "index")
    again = type(system).load(system.save(tmp_path / "model"))
    found = again.search("melts", k=4, index=tmp_path / "index")
    assert found.ids == system.search("melts", k=4).ids


def test_a_negative_number_of_passages_is_refused() -> None:
    system = create("rocchio")
    system.index(TEXTS)
    with pytest.raises(ConfigError, match="-1 passages"):
        system.search_prf("ice", feedback=-1)


@pytest.mark.parametrize(("system", "options"), [
    ("rocchio", {}), ("rocchio", {"first_stage": "lsa", "axes": 4}), ("rm3", {}),
    ("lol-prf", {"preset": "smoke"}),
])
def test_feedback_over_shards_is_that_over_one_index(tmp_path, system, options) -> None:
    from passband.retrieval.shards import Shards

    texts = [f"{a} {b}" for a in TEXTS for b in ("snow", "rain falls", "wind over moss")]
    queries = ["water in spring", "the forest", "snow"]
    one = create(system, **options)
    index = one.index(texts)
    expected = one.search_prf(queries, k=7, feedback=3, index=index)
    folders = [tmp_path / name for name in "abc"]
    one.index_shards(texts, folders)
    found = one.search_prf(queries, k=7, feedback=3, index=Shards(folders))
    assert found.read == expected.read and found.first.ids == expected.first.ids
    assert found.second.ids == expected.second.ids
    for a, b in zip(found.second.scores, expected.second.scores, strict=True):
        np.testing.assert_array_equal(a, b)
