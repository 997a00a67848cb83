"""An index in a folder: the same results as in memory, streamed, appended, joined."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import sparse

from passband.errors import CheckpointError, DataError
from passband.parts.inverted_index import InvertedIndex
from passband.parts.inverted_index.join import Joined, joined
from passband.parts.inverted_index.segment import Segment


def drawn(rows, vocabulary, density, seed):
    rng = np.random.default_rng(seed)
    return sparse.random_array((rows, vocabulary), density=density, rng=rng, format="csr",
                               dtype=np.float32)


def same(found, expected):
    assert (found.places == expected.places).all()
    assert (found.scores == expected.scores).all()


def folders(path):
    return sorted(p.name for p in path.iterdir() if p.is_dir())


@pytest.mark.parametrize("quantise", [None, "term", 0.01])
@pytest.mark.parametrize("memory", [1, 4000, 1 << 28])
def test_a_stream_gives_the_same_postings(tmp_path, quantise, memory):
    """Whether runs hold one block, a few or all: the arrays of an index in memory."""
    documents = drawn(300, 40, 0.1, 0)
    blocks = (documents[start : start + 37] for start in range(0, 300, 37))
    index = InvertedIndex.create(tmp_path / "i", blocks, memory=memory, quantise=quantise)
    (ours,) = index.segments
    expected = Segment.of(documents, quantise)
    for name, array in expected.arrays().items():
        found = ours.arrays()[name]
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    assert len(folders(tmp_path / "i")) == 1
    assert not list((tmp_path / "i").glob("*/runs"))


def test_opened_appended_and_joined(tmp_path):
    documents, queries = drawn(200, 30, 0.2, 1), drawn(10, 30, 0.3, 2)
    expected = InvertedIndex.of(documents).search(queries, 25)
    index = InvertedIndex.create(
        tmp_path / "i", [documents[:90]], beside=lambda n: {"name": np.arange(n)}
    )
    index.append(documents[90:91], {"name": np.array([90])})
    other = InvertedIndex.open(tmp_path / "i")
    other.append(documents[91:150], {"name": np.arange(91, 150)})
    index.append(documents[150:], {"name": np.arange(150, 200)})  # sees what `other` has added
    assert [segment.count for segment in index.segments] == [90, 1, 59, 50]
    for _ in range(2):
        for each in (index, InvertedIndex.open(tmp_path / "i", engine="numpy")):
            same(each.search(queries, 25), expected)
            assert np.concatenate(each.beside("name")).tolist() == list(range(200))
        index.compact(memory=4000)
    assert len(folders(tmp_path / "i")) == 1
    same(other.search(queries, 25), InvertedIndex.of(documents[:150]).search(queries, 25))
    assert other.search(queries, 25).places.max() < 150  # its own view, files removed or not


def test_an_append_does_not_touch_what_is_there(tmp_path):
    index = InvertedIndex.create(tmp_path / "i", [drawn(100, 30, 0.2, 3)])
    files = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "i").glob("*/*.npy")}
    index.append(drawn(5, 30, 0.2, 4))
    assert len(files) == 5
    for path, (time, payload) in files.items():
        assert path.stat().st_mtime_ns == time and path.read_bytes() == payload


def test_a_build_over_an_old_index_keeps_it_until_the_end(tmp_path):
    old, new, queries = drawn(50, 30, 0.2, 5), drawn(60, 30, 0.2, 6), drawn(5, 30, 0.4, 7)
    InvertedIndex.create(tmp_path / "i", [old])

    def blocks():
        yield new[:30]
        same(InvertedIndex.open(tmp_path / "i").search(queries, 9),
             InvertedIndex.of(old).search(queries, 9))
        yield new[30:]

    InvertedIndex.create(tmp_path / "i", blocks())
    same(InvertedIndex.open(tmp_path / "i").search(queries, 9),
         InvertedIndex.of(new).search(queries, 9))

    def broken():
        yield old
        raise RuntimeError

    with pytest.raises(RuntimeError):
        InvertedIndex.create(tmp_path / "i", broken())
    assert len(InvertedIndex.open(tmp_path / "i")) == 60
    assert len(folders(tmp_path / "i")) == 1


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    block = drawn(500, 1000, 0.05, 8)  # 25,000 postings, 200 kB

    def peak(blocks):
        tracemalloc.start()
        InvertedIndex.create(tmp_path / str(blocks), (block for _ in range(blocks)), memory=1 << 21)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    small, large = peak(6), peak(60)
    assert (tmp_path / "60").is_dir() and large < 1.5 * small
    assert large < 60 * block.nnz * 8 / 2  # half of what its postings take


def test_joined_in_pieces():
    documents = drawn(120, 25, 0.3, 9)
    parts = [Segment.of(documents[a:b]) for a, b in ((0, 50), (50, 50), (50, 120))]
    whole = Segment.of(documents)
    for size in (1, 17, 10**6):
        pieces = list(Joined(parts).pieces(size))
        places, weights = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        np.testing.assert_array_equal(places, whole.documents)
        np.testing.assert_array_equal(weights, whole.weights)
    np.testing.assert_array_equal(joined(parts).maxima, whole.maxima)


def test_without_documents(tmp_path):
    with pytest.raises(DataError, match="no documents"):
        InvertedIndex.create(tmp_path / "i", [])
    with pytest.raises(CheckpointError, match="no index"):
        InvertedIndex.open(tmp_path / "i")
    index = InvertedIndex.create(tmp_path / "i", [], vocabulary=3)
    assert index.search(np.ones((2, 3)), 4).places.shape == (2, 0)
    index.append(np.eye(3))
    assert InvertedIndex.open(tmp_path / "i").search(np.eye(3)[:1], 1).places.tolist() == [[0]]


def test_a_block_of_another_width(tmp_path):
    with pytest.raises(DataError, match="rows of 3 terms"):
        InvertedIndex.create(tmp_path / "i", [np.eye(3), np.eye(4)])
