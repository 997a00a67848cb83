"""Queries without a network, and their table, against loops and the published figures."""

import json
import math

import numpy as np
import pytest
import torch

from passband.errors import DataError
from passband.retrieval.backbones import mlm
from passband.retrieval.idf_flops.model import (
    InferenceFree,
    check_idf,
    idf_table,
    query_rows,
    read_idf,
)
from passband.retrieval.splade import SpladeEncoder
from passband.retrieval.token_rows import TokenRows


def test_idf_by_a_loop_in_any_blocks():
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 30, rng.integers(1, 12)).tolist() for _ in range(25)]
    wanted = []
    for token in range(40):
        df = sum(token in d for d in documents)
        wanted.append(math.log(1 + (25 - df + 0.5) / (df + 0.5)) if df else 1.0)
    for size in (25, 7, 1):
        blocks = [TokenRows.of(documents[i : i + size]) for i in range(0, 25, size)]
        np.testing.assert_allclose(idf_table(blocks, 40), wanted, rtol=1e-6)


def test_the_largest_idf_of_the_published_table():
    """df = 1 among MS MARCO's 8,841,823 passages gives the published maximum."""
    count = 8_841_823
    assert math.log(1 + (count - 1 + 0.5) / 1.5) == pytest.approx(15.589539, abs=1e-5)


def test_no_documents():
    with pytest.raises(DataError):
        idf_table([], 5)


def test_both_forms_of_a_query_are_equal():
    model = InferenceFree(SpladeEncoder(mlm("smoke")), silent=[0, 2, 3])
    idf = torch.rand(1024, generator=torch.Generator().manual_seed(0))
    idf[7] = 0.0
    model.set_idf(idf)
    ids = torch.tensor([[2, 5, 5, 7, 3], [2, 9, 3, 0, 0]])
    dense = model.asked(ids, ids != 0)
    rows = query_rows(TokenRows.of([[5, 5, 7], [9]]), model.table.numpy())
    np.testing.assert_array_equal(rows.toarray(), dense.numpy())
    assert dense[0].nonzero().flatten().tolist() == [5]  # once; no special token, no zero
    assert float(dense[1, 9]) == float(idf[9])


def test_padding_is_not_asked_for():
    """Token 0 is a word for some tokenizers."""
    model = InferenceFree(SpladeEncoder(mlm("smoke")))
    asked = model.asked(torch.tensor([[4, 0, 0]]), torch.tensor([[1, 1, 0]]).bool())
    assert asked[0].nonzero().flatten().tolist() == [0, 4]
    alone = model.asked(torch.tensor([[4, 0]]), torch.tensor([[1, 0]]).bool())
    assert alone[0].nonzero().flatten().tolist() == [4]


def test_a_learned_table_gets_gradients_and_a_frozen_one_has_none():
    ids, mask = torch.tensor([[4, 5]]), torch.ones(1, 2).bool()
    learned = InferenceFree(SpladeEncoder(mlm("smoke")), train=True)
    learned.asked(ids, mask).sum().backward()
    assert learned.idf.grad.nonzero().flatten().tolist() == [4, 5]
    frozen = InferenceFree(SpladeEncoder(mlm("smoke")))
    assert "idf" not in dict(frozen.named_parameters())


@pytest.mark.parametrize("table, told", [
    (np.ones(4), r"\(4,\)"), (np.array([1, -1.0, 2]), "1: -1"),
    (np.array([1, 1, np.nan]), "2: nan"),
])
def test_tables_that_are_no_idf(table, told):
    with pytest.raises(DataError, match=told):
        check_idf(table, 3)


def test_a_table_of_another_tokenizer_lists_what_differs(tmp_path):
    path = tmp_path / "idf.json"
    path.write_text(json.dumps({"ice": 2.0, "Fire": 1.0}))
    assert read_idf(path, ["ice", "Fire"], 3).tolist() == [2.0, 1.0, 1.0]
    with pytest.raises(DataError, match=r"'Fire'.*'fire'"):
        read_idf(path, ["ice", "fire"], 2)
    path.write_text("[1, 2]")
    with pytest.raises(DataError, match="no table"):
        read_idf(path, ["ice"], 1)
