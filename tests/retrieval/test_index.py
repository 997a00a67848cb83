"""Indexes of vectors with ids: one set of tests for both kinds, in memory and on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import sparse

from passband.errors import CheckpointError, DataError, UnknownNameError
from passband.retrieval.ids import Ids
from passband.retrieval.index import DenseIndex, Index, SparseIndex

N, WIDTH = 120, 25
IDS = [f"doc/{i} é" for i in range(N)]


def vectors(kind, rows, seed):
    rng = np.random.default_rng(seed)
    if kind is DenseIndex:
        return rng.standard_normal((rows, WIDTH)).astype(np.float32)
    return sparse.random_array((rows, WIDTH), density=0.3, rng=rng, format="csr", dtype=np.float32)


@pytest.fixture(params=[SparseIndex, DenseIndex], ids=["sparse", "dense"])
def kind(request):
    return request.param


@pytest.fixture(params=["memory", "disk"])
def folder(request, tmp_path):
    return tmp_path / "index" if request.param == "disk" else None


def best(documents, queries, k):
    """Ids by a full product and a stable sort."""
    scores = np.asarray((queries @ documents.T).todense() if sparse.issparse(documents)
                        else queries @ documents.T)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return [[IDS[p] for p in row if not sparse.issparse(documents) or scores[i, p] > 0]
            for i, row in enumerate(order)]


def test_search_append_compact_open(kind, folder):
    documents, queries = vectors(kind, N, 0), vectors(kind, 9, 1)
    blocks = (documents[a : a + 30] for a in range(0, 90, 30))
    index = kind.create(folder, blocks, IDS[:90], about={"texts": "here.jsonl"})
    assert index.search(queries, 7).ids == best(documents[:90], queries, 7)
    index.append(documents[90:100], IDS[90:100])
    index.append(documents[100:], IDS[100:])
    expected = best(documents, queries, 200)
    for _ in range(2):
        for each in (index, Index.open(folder) if folder else index):
            assert type(each) is kind and each.about == {"texts": "here.jsonl"}
            assert (len(each), each.width, list(each.ids)) == (N, WIDTH, IDS)
            hits = each.search(queries, 200)
            assert hits.ids == expected
            assert [[IDS[p] for p in row] for row in hits.places] == expected
        index.compact()


def test_the_score_is_explained(kind, folder):
    documents, queries = vectors(kind, N, 2), vectors(kind, 3, 3)
    index = kind.create(folder, [documents], IDS)
    hits = index.search(queries, 5)
    for row in range(3):
        shares = index.explain(queries[[row]], hits.ids[row][4])
        assert sum(share for _, share in shares) == pytest.approx(hits.scores[row][4], rel=1e-5)
    with pytest.raises(UnknownNameError, match="doc/11 é"):
        index.explain(queries[[0]], "doc/11 e")


def test_vectors_come_back(kind, folder):
    documents, places = vectors(kind, N, 4), np.array([100, 3, 3, 60])
    index = kind.create(folder, [documents[:50]], IDS[:50])
    index.append(documents[50:], IDS[50:])
    apart = abs(index.vectors(places) - documents[places])
    assert apart.max() == 0


@pytest.mark.parametrize(
    ("ids", "text"),
    [([*IDS[:-1], IDS[3]], "'doc/3 é' comes twice"), (IDS[:-1], "119 ids for 120 documents"),
     ([*IDS, "more"], "121 ids for 120 documents")],
)
def test_ids_that_do_not_fit(kind, folder, ids, text):
    with pytest.raises(DataError, match=text):
        kind.create(folder, [vectors(kind, N, 5)], ids)
    if folder:
        with pytest.raises(CheckpointError):
            Index.open(folder)


def test_an_id_that_is_here_is_not_added(kind, folder):
    documents = vectors(kind, N, 6)
    index = kind.create(folder, [documents[:50]], IDS[:50])
    with pytest.raises(DataError, match="'doc/7 é' is in the index already"):
        index.append(documents[50:52], ["new", IDS[7]])
    with pytest.raises(DataError, match="2 ids for 3 documents"):
        index.append(documents[50:53], ["new", "newer"])
    assert len(index) == len(index.search(documents[:1], 99).ids[0]) or kind is SparseIndex
    assert len(index.ids) == 50


def test_what_another_process_added_is_seen_when_appending(kind, tmp_path):
    documents = vectors(kind, N, 7)
    one = kind.create(tmp_path / "i", [documents[:40]], IDS[:40])
    other = Index.open(tmp_path / "i")
    other.append(documents[40:80], IDS[40:80])
    with pytest.raises(DataError, match="in the index already"):
        one.append(documents[40:80], IDS[40:80])
    one.append(documents[80:], IDS[80:])
    assert list(one.ids) == list(Index.open(tmp_path / "i").ids) == IDS
    queries = vectors(kind, 4, 8)
    assert one.search(queries, 9).ids == best(documents, queries, 9)


def test_half_precision_is_half_the_bytes(folder):
    documents, queries = vectors(DenseIndex, N, 9), vectors(DenseIndex, 4, 10)
    index = DenseIndex.create(folder, [documents], IDS, dtype="float16")
    assert index.nbytes == documents.nbytes // 2
    assert index.search(queries, 9).ids == best(documents.astype(np.float16).astype(np.float32),
                                                queries, 9)


def largest(*blocks):
    return [float(np.linalg.norm(block.astype(np.float64), axis=1).max()) for block in blocks]


def test_norms_are_kept_and_follow_the_documents(folder, monkeypatch):
    """Read when documents come in, not when they are searched; and those of what is here now."""
    documents, queries = vectors(DenseIndex, N, 13), vectors(DenseIndex, 3, 14)
    documents[:50] /= 8
    documents[70:] *= 40
    index = DenseIndex.create(folder, [documents[:20], documents[20:50]], IDS[:50])
    index.append(documents[50:70], IDS[50:70])
    added = documents[70:].copy()
    index.append(added, IDS[70:])
    added[:] = 0  # the caller's own array is free again
    parts = (documents[:50], documents[50:70], documents[70:])
    monkeypatch.setattr("passband.retrieval.index.longest_norm", None)
    monkeypatch.setattr("passband.parts.topk.longest_norm", None)
    for each in (index, Index.open(folder) if folder else index):
        np.testing.assert_allclose([p.longest for p in each.parts], largest(*parts), rtol=1e-6)
        assert each.search(queries, 30).ids == best(documents, queries, 30)
    index.compact()
    for each in (index, Index.open(folder) if folder else index):
        np.testing.assert_allclose([p.longest for p in each.parts], largest(documents), rtol=1e-6)
        assert each.search(queries, 30).ids == best(documents, queries, 30)


def test_norms_that_were_not_kept_are_read_once(tmp_path):
    """An index of an earlier version has none in its manifest."""
    documents, queries = vectors(DenseIndex, N, 15), vectors(DenseIndex, 3, 16)
    DenseIndex.create(tmp_path / "i", [documents], IDS)
    manifest = tmp_path / "i" / "manifest.json"
    content = json.loads(manifest.read_text())
    assert content["segments"][0]["facts"].pop("longest") > 0
    manifest.write_text(json.dumps(content))
    index = Index.open(tmp_path / "i")
    assert index.parts[0].longest is None
    assert index.search(queries, 9).ids == best(documents, queries, 9)
    np.testing.assert_allclose(index.parts[0].longest, *largest(documents), rtol=1e-6)
    index.append(documents[:2] * 9, ["new", "newer"])
    index.compact()
    index.search(queries, 9)
    assert [p.longest for p in index.parts] == [pytest.approx(*largest(documents[:2] * 9))]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_numbers_that_cannot_be_kept(folder, bad):
    documents = vectors(DenseIndex, N, 11)
    documents[5, 5] = bad
    with pytest.raises(DataError, match="vector 5"):
        DenseIndex.create(folder, [documents], IDS, dtype="float16")


def test_other_bad_input(kind, folder):
    documents = vectors(kind, N, 12)
    index = kind.create(folder, [documents], IDS)
    with pytest.raises(DataError):
        index.search(documents[:, :7], 3)
    with pytest.raises(DataError):
        index.append(documents[:, :7], [f"new{i}" for i in range(N)])
    with pytest.raises(DataError, match="no documents"):
        kind.create(None, [], [])
    with pytest.raises(UnknownNameError if kind is DenseIndex else TypeError):
        kind.create(None, [documents], IDS, width=3)


def test_ids_of_any_text():
    names = ["", "a", "é" * 300, "\udcff", "a b\n", "1"]
    ids = Ids.of(names[:4])
    ids.append(ids.checked(names[4:]))
    assert list(ids) == names and ids[-1] == "1" and ids[1:3] == names[1:3]
    assert [ids.place(name) for name in names] == list(range(6))
    assert "a" in ids and "b" not in ids
    with pytest.raises(IndexError):
        ids[6]
