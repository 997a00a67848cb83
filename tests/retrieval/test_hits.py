"""Hits and TREC run files, which pytrec_eval reads as well."""

from __future__ import annotations

import numpy as np
import pytest

from passband.errors import DataError
from passband.parts.topk import TopK
from passband.retrieval.hits import Hits


def test_padding_is_left_out():
    found = TopK(np.array([[2, 0], [1, -1], [-1, -1]]),
                 np.array([[3.0, 1.0], [0.5, -np.inf], [-np.inf, -np.inf]], np.float32))
    hits = Hits.of(found, ["a", "b", "c"])
    assert hits.ids == [["c", "a"], ["b"], []]
    assert [scores.tolist() for scores in hits.scores] == [[3.0, 1.0], [0.5], []]
    assert [places.tolist() for places in hits.places] == [[2, 0], [1], []]
    assert hits[0] == [("c", 3.0), ("a", 1.0)] and list(hits)[2] == []
    empty = Hits.of(TopK(np.zeros((0, 4), np.int64), np.zeros((0, 4), np.float32)), ["a"])
    assert len(empty) == 0 and len(Hits.of(TopK(np.zeros((2, 0), np.int64),
                                                np.zeros((2, 0), np.float32)), [])) == 2


def test_run_files_come_back_to_the_bit(tmp_path):
    rng = np.random.default_rng(0)
    scores = -np.sort(-rng.standard_normal((4, 30)).astype(np.float32), axis=1)
    hits = Hits([[f"d{i}é" for i in rng.permutation(30)] for _ in range(4)], list(scores))
    hits.write_run(tmp_path / "run.trec", ["q1", "q2", "q3", "q4"], tag="ours")
    queries, again = Hits.read_run(tmp_path / "run.trec")
    assert queries == ["q1", "q2", "q3", "q4"] and again.ids == hits.ids
    assert (np.array(again.scores) == scores).all()
    assert all((places == -1).all() for places in again.places)


def test_other_tools_read_them(tmp_path):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    hits = Hits([["a", "b"], ["c"]], [np.array([2, 1], np.float32), np.array([5], np.float32)])
    hits.write_run(tmp_path / "run.trec", ["q", "r"])
    with (tmp_path / "run.trec").open() as file:
        assert pytrec_eval.parse_run(file) == {"q": {"a": 2.0, "b": 1.0}, "r": {"c": 5.0}}


def test_ranks_rule_the_order_of_a_file(tmp_path):
    (tmp_path / "run").write_text("q Q0 b 2 1.0 x\n\nq Q0 a 1 1.0 x\nr Q0 c 1 2e-3 x\n")
    queries, hits = Hits.read_run(tmp_path / "run")
    assert queries == ["q", "r"] and hits.ids == [["a", "b"], ["c"]]


@pytest.mark.parametrize("line", ["q Q0 a 1 2.0", "q Q0 a one 2.0 x", "q Q0 a 1 high x"])
def test_bad_lines_are_named(tmp_path, line):
    (tmp_path / "run").write_text(f"q Q0 a 1 1.0 x\n{line}\n")
    with pytest.raises(DataError, match="line 2"):
        Hits.read_run(tmp_path / "run")


def test_what_a_run_file_cannot_hold(tmp_path):
    hits = Hits([["a b"]], [np.ones(1, np.float32)])
    with pytest.raises(DataError, match="'a b' has white space"):
        hits.write_run(tmp_path / "run", ["q"])
    assert not (tmp_path / "run").exists()
    for queries in ([], ["q", "r"]):
        with pytest.raises(DataError, match="query ids"):
            hits.write_run(tmp_path / "run", queries)
    with pytest.raises(DataError, match="can't be read"):
        Hits.read_run(tmp_path / "none")
    with pytest.raises(DataError, match="2 ids, 1 scores"):
        Hits([["a", "b"]], [np.ones(1, np.float32)])
