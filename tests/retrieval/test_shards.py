"""Shards are searched as one index would be, to the bit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse

from passband.errors import ConfigError, DataError, UnknownNameError
from passband.retrieval.index import DenseIndex, SparseIndex
from passband.retrieval.shards import Shards

CUTS = (0, 70, 71, 200)
IDS = [f"d{i}" for i in range(200)]


def drawn(kind, rows, seed):
    rng = np.random.default_rng(seed)
    if kind is DenseIndex:
        return rng.integers(-2, 3, (rows, 7)).astype(np.float32) / 3  # many ties
    return sparse.random_array((rows, 20), density=0.3, rng=rng, format="csr", dtype=np.float32)


@pytest.fixture(params=[SparseIndex, DenseIndex], ids=["sparse", "dense"])
def kind(request):
    return request.param


def build(kind, tmp_path, seed=0):
    documents = drawn(kind, 200, seed)
    folders = []
    for a, b in pairwise(CUTS):
        kind.create(tmp_path / str(a), [documents[a:b]], IDS[a:b])
        folders.append(tmp_path / str(a))
    return kind.create(None, [documents], IDS), folders


def check(shards, whole, kind):
    assert len(shards) == 200
    for k in (1, 30, 500):
        queries = drawn(kind, 11, k)
        expected, found = whole.search(queries, k), shards.search(queries, k)
        assert found.ids == expected.ids
        for name in ("scores", "places"):
            for a, b in zip(getattr(found, name), getattr(expected, name), strict=True):
                assert (a == b).all()


def test_local(kind, tmp_path):
    whole, folders = build(kind, tmp_path)
    with Shards(folders) as shards:
        check(shards, whole, kind)
    check(Shards([kind._opened(folder) for folder in folders], workers=1), whole, kind)


@pytest.mark.slow
def test_ray(kind, tmp_path):
    pytest.importorskip("ray")
    whole, folders = build(kind, tmp_path)
    with Shards(folders, engine="ray", workers=2) as shards:
        check(shards, whole, kind)
        with pytest.raises(DataError):
            shards.search(drawn(kind, 2, 1)[:, :3], 5)
    with pytest.raises(DataError, match="can't be searched"):
        Shards([tmp_path / "none"], engine="ray", workers=1)


def test_bad_input(tmp_path):
    index = DenseIndex.create(None, [np.eye(2)], ["a", "b"])
    with pytest.raises(DataError, match="'a' is in two shards"):
        Shards([index, index]).search(np.eye(2)[:1], 4)
    with pytest.raises(UnknownNameError, match="engine"):
        Shards([index], engine="rai")
    with pytest.raises(DataError, match="no shards"):
        Shards([])
    with pytest.raises(ConfigError, match="address"):
        Shards([index], address="head:1")
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match="in memory"):
        Shards([index], engine="ray")


@pytest.mark.parametrize("k", [1, 4, 60])
@pytest.mark.parametrize("workers", [None, 1])
def test_two_phases_are_those_of_one_index(tmp_path, k, workers):
    """Candidates are chosen over all shards: as many in all as one index would take."""
    whole, folders = build(SparseIndex, tmp_path)
    queries = drawn(SparseIndex, 25, 40 + k)
    expected = whole.two_phase(queries, k, ratio=0.7, expansion=2.0)
    found = Shards(folders, workers=workers).two_phase(queries, k, ratio=0.7, expansion=2.0)
    assert found.ids == expected.ids
    for name in ("scores", "places"):
        for a, b in zip(getattr(found, name), getattr(expected, name), strict=True):
            assert (a == b).all()
    if k == 4:  # else this test could not tell it from an exact search
        assert expected.ids != whole.search(queries, k).ids


def test_vectors_of_places_in_any_shard(kind, tmp_path):
    whole, folders = build(kind, tmp_path)
    places = np.array([199, 3, 70, 70, 0, 71, 150])
    for some in (places, places[:0]):
        found, expected = Shards(folders).vectors(some), whole.vectors(some)
        assert found.shape == expected.shape and not abs(found - expected).sum()


def test_two_phases_need_terms(tmp_path):
    _, folders = build(DenseIndex, tmp_path)
    with pytest.raises(ConfigError, match="dense vectors"):
        Shards(folders).two_phase(drawn(DenseIndex, 2, 1), 3)
