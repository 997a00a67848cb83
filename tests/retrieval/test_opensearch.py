"""The files for OpenSearch: their form, and the same vectors read back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import sparse

from passband.errors import DataError
from passband.retrieval import opensearch

TOKENS = ["the", "##s", "é", ".", '"quoted"']


def drawn(rows, seed):
    rng = np.random.default_rng(seed)
    return sparse.random_array((rows, 5), density=0.4, rng=rng, format="csr", dtype=np.float32)


def test_vectors_come_back_to_the_bit(tmp_path):
    documents, queries = drawn(40, 0), drawn(6, 1)
    ids = [f"é{i}" for i in range(40)]
    paths = opensearch.export(
        tmp_path / "out", TOKENS, [documents[:25], documents[25:]], ids, name="n",
        texts=(f"text {i}\nof two lines" for i in range(40)), idf={"the": 0.1, "é": 7},
    )
    opensearch.export_queries(tmp_path / "out", TOKENS, queries, name="n", k=7)
    tokens, names, found = opensearch.read_documents(tmp_path / "out")
    assert (tokens, names) == (TOKENS, ids)
    assert (found != documents).nnz == 0
    assert (opensearch.read_queries(tmp_path / "out") != queries).nnz == 0
    assert sorted(p.name for p in paths) == [
        "documents.ndjson", "idf.json", "mapping.json", "vocabulary.json"
    ]
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]


def test_the_form_that_opensearch_documents(tmp_path):
    """Mapping, _bulk and neural_sparse as its manual (neural sparse search, raw vectors) has it."""
    rows = np.array([[1.5, 0, 0, 0, 0.25]])
    opensearch.export(tmp_path, TOKENS, [rows], ["a"], name="n", texts=["words"], idf={"é": 1})
    opensearch.export_queries(tmp_path, TOKENS, rows, name="n", k=3)
    mapping = json.loads((tmp_path / "mapping.json").read_text())
    assert mapping["mappings"]["properties"]["embedding"] == {"type": "rank_features"}
    action, document = map(json.loads, (tmp_path / "documents.ndjson").read_text().splitlines())
    assert action == {"index": {"_index": "n", "_id": "a"}}
    weights = {"the": 1.5, '"quoted"': 0.25}
    assert document == {"id": "a", "embedding": weights, "text": "words"}
    head, body = map(json.loads, (tmp_path / "queries.ndjson").read_text().splitlines())
    assert head == {"index": "n"}
    assert body == {"size": 3, "query": {"neural_sparse": {"embedding": {"query_tokens": weights}}}}
    assert json.loads((tmp_path / "idf.json").read_text()) == {"é": 1.0}
    assert (tmp_path / "documents.ndjson").read_text().endswith("\n")  # _bulk asks for it


@pytest.mark.parametrize(
    ("tokens", "rows", "ids", "options", "text"),
    [
        (TOKENS, -np.ones((1, 5)), ["a"], {}, "weight of -1"),
        (TOKENS, np.ones((2, 5)), ["a"], {}, "1 ids for more"),
        (TOKENS, np.ones((1, 5)), ["a", "b"], {}, "more ids"),
        (TOKENS, np.ones((2, 5)), ["a", "b"], {"texts": ["x"]}, "1 texts for more"),
        (["a", "a"], np.ones((1, 2)), ["a"], {}, "token twice"),
        (["a", ""], np.ones((1, 2)), ["a"], {}, "empty token"),
        (["a"], np.ones((1, 2)), ["a"], {}, "rows of 1 terms"),
    ],
)
def test_bad_input(tmp_path, tokens, rows, ids, options, text):
    with pytest.raises(DataError, match=text):
        opensearch.export(tmp_path, tokens, [rows], ids, **options)
    assert not (tmp_path / "documents.ndjson").exists()
