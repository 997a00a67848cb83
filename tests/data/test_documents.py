"""Corpora, collections and what they are made of: docstrings, dialects, topics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from passband.data.documents.collection import Collection, Document, Example, Listed, OnDisk
from passband.data.documents.dialects import two_dialects
from passband.data.documents.docstrings import Documented, without_see_also
from passband.data.documents.parts import split
from passband.data.documents.pydocs import pydocs
from passband.data.documents.see_also import links, see_also
from passband.data.documents.topics import OWN, ambiguous_topics
from passband.errors import DataError, UnknownNameError


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


RECORDS = [{"_id": f"d{i}", "title": "" if i % 3 else f"T{i}", "text": f"text ünö {i}"}
           for i in range(50)]


# ---- corpora ---------------------------------------------------------------------------------


def test_a_file_and_a_list_of_the_same_documents_are_the_same(tmp_path: Path) -> None:
    there = OnDisk(lines(tmp_path / "c.jsonl", *RECORDS))
    here = Listed(Document(r["_id"], r["text"], r["title"]) for r in RECORDS)
    assert list(there) == list(here) == [there[i] for i in range(50)]
    assert list(there.ids) == list(here.ids)
    assert there.fingerprint == here.fingerprint
    assert [there.place(f"d{i}") for i in (0, 17, 49)] == [0, 17, 49]
    assert "d49" in there
    assert "d50" not in there
    assert there.ids[3:5] == ["d3", "d4"]
    assert there[-1].id == "d49"


def test_lines_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text("id\ttext\ttitle\n7\tsome words\tHeading\n8\tmore\n")
    found = OnDisk(tmp_path / "c.tsv")
    assert list(found) == [Document("7", "some words", "Heading"), Document("8", "more")]
    assert found[1] == Document("8", "more")
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbffirst\r\n\r\nsecond")
    assert list(OnDisk(tmp_path / "c.txt")) == [Document("0", "first"), Document("1", "second")]
    assert OnDisk(tmp_path / "c.txt")[0].text == "first"


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = lines(tmp_path / "c.jsonl", *RECORDS)
    assert len(OnDisk(path)) == 50
    lines(path, *RECORDS[:7])
    assert len(OnDisk(path)) == 7


def test_only_the_table_of_a_file_is_in_memory(tmp_path: Path) -> None:
    """100 MB of text, of which a pass over the file keeps next to nothing."""
    import tracemalloc

    path = tmp_path / "c.txt"
    with path.open("w") as file:
        for i in range(1000):
            file.write(f"{i} " + "x" * 20_000 + "\n")
    tracemalloc.start()
    corpus = OnDisk(path)
    assert sum(len(document.text) for document in corpus) > 2e7
    assert corpus[999].text.startswith("999 ")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


@pytest.mark.parametrize(("content", "told"), [
    (b'{"_id": "a", "text": "x"}\n{"_id": "b", "text": "\xff"}\n', "line 2: byte 22 is no UTF-8"),
    (b'{"_id": "a", "text": "x"}\n\n{"_id"\n', "line 3: no JSON"),
    (b'{"_id": "a", "title": "x"}\n', 'line 1: no "text"'),
    (b'["a"]\n', "line 1: a JSON list"),
    (b'{"_id": "a", "text": "x"}\n\n{"_id": "a", "text": "y"}\n', "'a' comes twice: lines 1 and 3"),
])
def test_bad_lines_are_named(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        OnDisk(path)


def test_repeated_and_unknown_ids_are_named() -> None:
    with pytest.raises(DataError, match="'a' comes twice: documents 1 and 3"):
        Listed([Document("a", ""), Document("b", ""), Document("a", "")])
    with pytest.raises(DataError, match="no document 'z'"):
        Listed([Document("a", "")]).place("z")


# ---- collections -----------------------------------------------------------------------------


def whole(n: int = 40) -> Collection:
    corpus = Listed(Document(f"d{i}", f"text {i}", "T") for i in range(n))
    return Collection(
        corpus, {f"q{i}": f"query {i}" for i in range(n)},
        {f"q{i}": {f"d{i}": 1, f"d{(i + 1) % n}": 0, "gone": 1} for i in range(n)},
    )


def test_pairs_are_relevant_texts_that_are_there() -> None:
    assert list(whole().pairs())[3] == Example("query 3", ("T text 3",))
    assert whole().pairs()[1:3] == [Example(f"query {i}", (f"T text {i}",)) for i in (1, 2)]


def test_parts_share_a_corpus_and_no_query() -> None:
    parts = split(whole(), 0, 4, 8)
    sets = [set(part.queries) for part in (parts.train, parts.valid, parts.test)]
    assert [len(s) for s in sets] == [28, 4, 8]
    assert len(set.union(*sets)) == 40
    assert {e.query for e in parts.train.examples} == set(parts.train.queries.values())
    assert not parts.test.examples
    assert set(parts.test.judgements) == sets[2]
    assert parts.train.corpus is parts.test.corpus
    other = split(whole(), 1, 4, 8)
    assert set(other.test.queries) != sets[2]
    assert other.test.fingerprint != parts.test.fingerprint


def test_groups_in_test_are_in_no_other_part() -> None:
    parts = split(whole(), 0, 4, 8, group=lambda q: str(int(q[1:]) % 10))
    seen = [{int(q[1:]) % 10 for q in part.queries} for part in (
        parts.train, parts.valid, parts.test)]
    assert not (seen[0] | seen[1]) & seen[2]


def test_too_few_queries_are_refused() -> None:
    with pytest.raises(DataError, match="4 queries"):
        split(whole(4), 0, 1, 1)


# ---- docstrings ------------------------------------------------------------------------------


def test_docstrings_are_what_the_packages_say() -> None:
    """Against the objects themselves, imported."""
    import inspect

    import networkx

    data = pydocs(size="full", packages=["networkx"])
    id = "networkx.algorithms.dag.ancestors"
    text = inspect.getdoc(networkx.ancestors) or ""
    first, _, rest = text.partition("\n\n")
    assert data.test.corpus[data.test.corpus.place(id)].text == rest[:2000].strip()
    asked = {**data.train.queries, **data.valid.queries, **data.test.queries}
    assert asked[f"query:{id}"] == " ".join(first.split())
    for part in (data.train, data.valid, data.test):
        assert set(part.judgements) == set(part.queries)
        for query, found in part.judgements.items():
            assert 4 <= len(part.queries[query].split()) <= 30
            assert all(document in part.corpus for document in found)
    documents = [d.text for d in data.test.corpus]
    assert len(set(documents)) == len(documents)
    assert all(len(t) <= 2000 and len(t.split()) >= 30 for t in documents)


def test_test_packages_may_be_others() -> None:
    data = pydocs(size="full", packages=["networkx", "joblib"], by="package")
    packages = [{q.removeprefix("query:").split(".")[0] for q in part.queries}
                for part in (data.train, data.valid, data.test)]
    assert not (packages[0] | packages[1]) & packages[2]


def test_see_also_links_are_those_that_people_wrote() -> None:
    data = see_also(size="full", packages=["networkx"])
    known = {**data.train.judgements, **data.valid.judgements, **data.test.judgements}
    for query, found in known.items():
        assert query in data.test.corpus
        assert query not in found
        assert 2 <= len(found) <= 20
    assert data.test.queries_are_documents
    assert not any("\nSee Also\n---" in d.text for d in data.test.corpus)


def test_a_section_is_cut_out_and_the_rest_stays() -> None:
    text = ("Body.\n\nSee Also\n--------\n:func:`~p.q.one` : First.\ntwo() : Second\n    goes on, "
            "and on\nthree, four\nThis is a sentence, not a name.\n\nExamples\n--------\n>>> 1")
    rest, names = without_see_also(text)
    assert names == ("p.q.one", "two", "three", "four")
    assert rest == "Body.\n\nExamples\n--------\n>>> 1"
    assert without_see_also("Nothing here.") == ("Nothing here.", ())


def test_names_that_could_be_several_are_dropped() -> None:
    def one(id: str, *names: str) -> Documented:
        return Documented(id, id.split(".")[0], "", "", "", names)

    found = [one("p.a.f", "g"), one("p.b.g"), one("p.c.g"), one("p.b.h", "g", "h", "q.z"),
             one("q.z")]
    assert links(found) == {"p.a.f": [], "p.b.g": [], "p.c.g": [], "p.b.h": ["p.b.g", "q.z"],
                            "q.z": []}


# ---- generated -------------------------------------------------------------------------------


def test_dialects_share_no_word_and_are_mixed_as_asked() -> None:
    data = two_dialects(size="smoke")
    queries = {**data.train.queries, **data.valid.queries, **data.test.queries}
    judged = {**data.train.judgements, **data.valid.judgements, **data.test.judgements}
    for query, text in queries.items():
        (document,) = judged[query]
        words = data.train.corpus[data.train.corpus.place(document)].text.split()
        assert len(set(text.split())) == 5
        assert not set(text.split()) & set(words)


def test_one_dialect_is_searched_and_both_are_learned_from() -> None:
    data = two_dialects(size="smoke")
    searched, learned = set(data.test.corpus.ids), set(data.train.corpus.ids)
    assert searched == set(data.valid.corpus.ids) < learned
    assert 0.2 < len(searched) / len(learned) < 0.5
    assert all(next(iter(found)) in searched for found in data.test.judgements.values())
    # No document that is searched has a word of any query.
    asked = {word for text in data.test.queries.values() for word in text.split()}
    assert not any(asked & set(d.text.split()) for d in data.test.corpus)
    mixed = [d for d in data.train.corpus if asked & set(d.text.split())]
    assert len(mixed) > 100


def test_same_dialect_and_anchors() -> None:
    def hits(**options) -> list[int]:
        data = two_dialects(size="smoke", **options)
        corpus = data.test.corpus
        return [
            len(set(data.test.queries[query].split())
                & set(corpus[corpus.place(next(iter(found)))].text.split()))
            for query, found in data.test.judgements.items()
        ]

    assert set(hits(same=True)) == {5}
    # One of three names of each of two topics: equal in one case of three.
    assert set(hits(anchors=3)) == {0, 1, 2}
    assert set(hits(anchors=1)) == {2}


def test_topics_mix_in_the_proportion_asked() -> None:
    data = ambiguous_topics(size="small", p=0.8)
    right = total = 0
    for query, text in data.train.queries.items():
        relevant = data.train.judgements[query]
        if total > 1500:
            break
        for document in data.train.corpus:
            if set(text.split()) & set(document.text.split()):
                right, total = right + (document.id in relevant), total + 1
    assert abs(right / total - 0.8) < 0.04
    assert all(len(found) == 60 for found in data.train.judgements.values())
    words = set(data.train.corpus[0].text.split())
    assert len(words) > OWN / 2


@pytest.mark.parametrize("make", [two_dialects, ambiguous_topics])
def test_the_seed_draws_everything(make) -> None:
    one, again, other = make(0, "smoke"), make(0, "smoke"), make(1, "smoke")
    assert one.train.fingerprint == again.train.fingerprint
    assert one.train.corpus.fingerprint != other.train.corpus.fingerprint
    with pytest.raises(UnknownNameError, match="tiny"):
        make(0, "tiny")


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(DataError, match=r"p = 0\.5"):
        ambiguous_topics(size="smoke", p=0.5)
    with pytest.raises(DataError, match="mixed = 1"):
        two_dialects(size="smoke", mixed=1)
