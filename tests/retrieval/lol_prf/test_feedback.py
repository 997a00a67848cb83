"""Which passages are read, and how they stand in the text."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from passband.errors import DataError
from passband.retrieval.lol_prf.feedback import draw, first
from passband.retrieval.lol_prf.sequences import Frame, stack


def test_sizes_are_distinct_falling_and_as_likely_as_each_other() -> None:
    rng = np.random.default_rng(0)
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(6000):
        drawn = draw([10, 11, 12, 13, 14], 2, rng)
        assert drawn.sizes[0] > drawn.sizes[1] >= 0
        assert len(drawn.passages) == drawn.sizes[0]
        assert len(set(drawn.passages)) == len(drawn.passages)
        seen[drawn.sizes] += 1
    assert len(seen) == 15  # pairs of 6 sizes, each 400 times: 5 standard deviations are 97
    assert max(abs(n - 400) for n in seen.values()) < 97


def test_subsets_are_random_and_in_random_order() -> None:
    rng = np.random.default_rng(1)
    drawn = [draw(range(5), 1, rng) for _ in range(6000)]
    leads = Counter(d.passages[0] for d in drawn if d.sizes[0])
    assert set(leads) == set(range(5))
    assert max(abs(n - 1000) for n in leads.values()) < 150


def test_without_shuffling_the_best_ones_are_read() -> None:
    drawn = draw([7, 3, 9], 3, np.random.default_rng(2), shuffle=False)
    assert drawn.passages == (7, 3, 9)[: drawn.sizes[0]]


def test_too_few_passages_are_an_error_that_says_how_many() -> None:
    with pytest.raises(DataError, match="0 passages for 2"):
        draw([], 2, np.random.default_rng(0))


def test_the_first_ones_are_as_many_as_there_are() -> None:
    assert first([4, 2, -1], 5) == (4, 2)
    assert first([], 5) == ()


def test_a_prefix_is_the_text_of_fewer_passages() -> None:
    frame = Frame(cls=1, sep=2, max_query=3, max_passage=4, max_length=40)
    passages = [[10, 11], [12], [13, 14, 15, 16, 17]]
    whole = frame.assemble([5, 6], passages)
    for k in range(4):
        assert whole.prefix(k) == frame.assemble([5, 6], passages[:k])
    assert whole.prefix(9) == whole


def test_no_passage_begins_with_fewer_than_ten_positions_left() -> None:
    frame = Frame(cls=1, sep=2, max_query=8, max_passage=50, max_length=30)
    read = frame.assemble([5] * 8, [[9] * 9, [9] * 50, [9] * 50])
    assert len(read.ids) == 30 and read.passages == 2  # 10 + 10 + 10
    read = frame.assemble([5] * 8, [[9] * 10, [9] * 50])
    assert len(read.ids) == 21 and read.passages == 1  # 9 are left
    assert all(read.ids[s] == 2 for s in read.separators)


def test_long_queries_and_passages_are_cut() -> None:
    read = Frame(cls=1, sep=2, max_query=2, max_passage=3).assemble([5] * 9, [[6] * 9])
    assert read.ids == (1, 5, 5, 2, 6, 6, 6, 2)


def test_a_stack_can_be_taken_apart_again() -> None:
    frame = Frame(cls=1, sep=2)
    reads = [frame.assemble([5, 6], [[7, 8]]), frame.assemble([5], []), frame.assemble([5], [[9]])]
    batch = stack(reads, pad=0)
    for row, read in enumerate(reads):
        length = len(read.ids)
        assert batch.ids[row, :length].tolist() == list(read.ids)
        assert batch.mask[row].sum() == length
        assert batch.types[row, :length].tolist() == list(read.types)
    short = batch.rows(1, 3)
    assert short.ids.shape == (2, 5)
