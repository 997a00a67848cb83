"""Users' own documents, queries and judgements, right and wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from passband.data.documents.folders import read, read_collection, read_corpus, read_queries
from passband.data.documents.pairs import examples_in
from passband.errors import DataError, PassbandWarning


def write(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(
        (one if isinstance(one, str) else json.dumps(one)) + "\n" for one in records
    ))
    return path


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    write(tmp_path / "corpus.jsonl", *({"_id": f"d{i}", "title": f"T{i}", "text": f"text {i}"}
                                       for i in range(9)))
    write(tmp_path / "queries.jsonl", *({"_id": f"q{i}", "text": f"query {i}"} for i in range(6)))
    head = "query-id\tcorpus-id\tscore"
    write(tmp_path / "qrels/train.tsv", head, "q0\td0\t1", "q1\td1\t2")
    write(tmp_path / "qrels/dev.tsv", head, "q2\td2\t1")
    write(tmp_path / "qrels/test.tsv", head, "q3\td3\t1", "q3\td4\t0", "q4\td5\t1")
    return tmp_path


def test_beir_keeps_its_parts(beir: Path) -> None:
    data = read(beir)
    assert [list(p.queries) for p in (data.train, data.valid, data.test)] == [
        ["q0", "q1"], ["q2"], ["q3", "q4"]]
    assert data.train.examples[1].positives == ("T1 text 1",)
    assert data.test.judgements["q3"] == {"d3": 1, "d4": 0}
    assert data.test.queries_are_documents
    assert len(read_collection(beir).queries) == 6


def test_examples_beside_a_corpus_are_learned_from(beir: Path) -> None:
    write(beir / "train_pairs.jsonl", {"query": "x", "pos": "y", "negs": ["z"]})
    assert read(beir).train.examples[-1].negatives == ("z",)


def test_what_is_missing_is_counted_and_named(beir: Path) -> None:
    write(beir / "qrels/test.tsv", "query-id\tcorpus-id\tscore",
          *(f"q3\tlost{i}\t1" for i in range(7)), "nobody\td1\t1")
    with pytest.warns(PassbandWarning) as told:
        data = read(beir)
    text = "\n".join(str(one.message) for one in told)
    assert "7 of the 10 relevant documents are not in the corpus" in text
    assert "'lost0', 'lost1', 'lost2', 'lost3', 'lost4', ..." in text
    assert "1 of the 5 judged queries have no text and are left out: 'nobody'" in text
    assert list(data.test.queries) == ["q3"]


def test_empty_documents_and_queries_are_told(beir: Path) -> None:
    write(beir / "corpus.jsonl", {"_id": "a", "text": " "}, *(
        {"_id": f"d{i}", "text": f"text {i}"} for i in range(9)))
    write(beir / "queries.jsonl", {"_id": "q0", "text": ""}, *(
        {"_id": f"q{i}", "text": f"query {i}"} for i in range(1, 6)))
    with pytest.warns(PassbandWarning) as told:
        data = read(beir)
    text = "\n".join(str(one.message) for one in told)
    assert "1 of the 10 documents" in text
    assert "1 of the 6 queries" in text
    assert "q0" not in data.train.queries


def test_tables_of_ms_marco(tmp_path: Path) -> None:
    write(tmp_path / "collection.tsv", "0\tice", "1\tfire")
    write(tmp_path / "queries.dev.tsv", "7\tcold")
    write(tmp_path / "qrels.dev.tsv", "7\t0\t0\t1")
    write(tmp_path / "run.dev.tsv", "7\t1\t2", "7\t0\t1")
    data = read(tmp_path)
    assert data.valid.judgements == {"7": {"0": 1}}
    assert data.valid.rankings == {"7": ["0", "1"]}
    assert not data.valid.queries_are_documents
    assert not data.train.queries


@pytest.mark.parametrize(("record", "expected"), [
    ({"query": "q", "pos": ["a", "b"], "negs": ["c"]}, (("a", "b"), ("c",), None)),
    ({"query": "q", "docs": ["a", "b"], "scores": [1, 2]}, (("b",), ("a",), (2.0, 1.0))),
    ({"question": "q", "positive_ctxs": [{"title": "T", "text": "a"}], "negative_ctxs": [],
      "hard_negative_ctxs": [{"title": "", "text": "c"}]}, (("T a",), ("c",), None)),
])
def test_examples_of_every_kind(tmp_path: Path, record: dict, expected: tuple) -> None:
    for path in (write(tmp_path / "x.jsonl", record), write(tmp_path / "x.json", [record])):
        (example,) = examples_in(path)
        assert (example.positives, example.negatives, example.scores) == expected


def test_a_file_of_examples_is_split_by_its_queries(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", *(
        {"query": f"q {i // 2}", "pos": f"a {i}", "negs": ["n"]} for i in range(200)))
    data = read(path)
    counts = [len(p.queries) for p in (data.train, data.valid, data.test)]
    assert sum(counts) == 100
    assert 60 < counts[0] < 95
    assert len(data.train.examples) == 2 * counts[0]
    assert {len(found) for found in data.test.judgements.values()} == {2}
    assert len(data.train.corpus) == 201


def test_plain_files_are_documents(tmp_path: Path) -> None:
    write(tmp_path / "a/one.md", "first")
    write(tmp_path / "two.py", "x = 1")
    write(tmp_path / ".git/three.txt", "no")
    write(tmp_path / "four.bin", "no")
    assert [d.id for d in read_corpus(tmp_path)] == ["a/one.md", "two.py"]
    assert not read(tmp_path).test.judgements


@pytest.mark.parametrize(("name", "content", "told"), [
    ("x.xml", "<doc><docno>1</docno>\n<doc>", "line 1: <doc> without its other half"),
    ("x.xml", "\n<doc><text>a</text></doc>", "line 2: a <doc> without <docno>"),
    ("qrels.txt", "1 0 2 1\n1 0\n", "line 2: '1 0'"),
    ("x.md", b"ok\nb\xe4d\n", "line 2: no UTF-8"),
])
def test_damaged_files_are_named_with_their_lines(
    tmp_path: Path, name: str, content: str | bytes, told: str
) -> None:
    write(tmp_path / "corpus.txt", "a document") if name.startswith("qrels") else None
    data = content.encode() if isinstance(content, str) else content
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=told):
        read(tmp_path)


def test_queries_of_all_kinds(tmp_path: Path) -> None:
    assert read_queries(write(tmp_path / "a.txt", "one", "", "two")) == {"1": "one", "3": "two"}
    assert read_queries(write(tmp_path / "a.tsv", "qid\ttext", "x\tone")) == {"x": "one"}
    with pytest.raises(DataError, match="'x' comes twice"):
        read_queries(write(tmp_path / "b.tsv", "x\tone", "x\ttwo"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="no documents"):
        read_corpus(tmp_path / "nothing")


def test_judgements_may_count_queries_by_their_order(tmp_path: Path) -> None:
    """As Cranfield's: queries are numbered 1, 2, 4, 8, judgements speak of the first to fourth."""
    (tmp_path / "docs.xml").write_text("".join(
        f"<doc>\n<docno>{i}</docno>\n<title>t{i}</title>\n<text>\nwing {i}</text>\n</doc>\n"
        for i in range(1, 7)
    ))
    numbers = (1, 2, 4, 8)
    (tmp_path / "asked.xml").write_text("<xml>\n" + "".join(
        f"<top>\n<num> {n}</num>\n<title>\nwhat of wing {n}\n</title>\n</top>\n"
        for n in numbers
    ) + "</xml>\n")
    (tmp_path / "qrels.txt").write_text("1 0 5 1\n3 0 2 1\n3 0 6 2\n4 0 1 1\n")
    with pytest.warns(PassbandWarning, match="places in the list"):
        data = read_collection(tmp_path)
    assert (len(data.corpus), list(data.queries)) == (6, ["1", "2", "4", "8"])
    assert data.judgements == {"1": {"5": 1}, "4": {"2": 1, "6": 2}, "8": {"1": 1}}
    assert data.queries["4"] == "what of wing 4"
    assert not data.queries_are_documents
