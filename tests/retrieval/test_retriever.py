"""Search through the base class, BM25 against its library, scores against other computations."""

from __future__ import annotations

import json
import math
from pathlib import Path

import bm25s
import numpy as np
import pytest
import Stemmer

from passband import apply, create
from passband.data.documents.topics import ambiguous_topics
from passband.errors import ConfigError, DataError, PassbandWarning, UnknownNameError
from passband.retrieval import scores
from passband.retrieval.shards import Shards
from passband.retrieval.tasks import TASKS, rank

TEXTS = {"ice": "A glacier is a river of ice.", "spring": "Geysers are hot springs.",
         "both": "Hot ice and hot rivers"}


# ---- scores ----------------------------------------------------------------------------------


def by_hand(ranked: list[str], judged: dict[str, int]) -> dict[str, float]:
    gains = [judged.get(d, 0) for d in ranked]
    ideal = sorted((g for g in judged.values() if g > 0), reverse=True)

    def dcg(values: list[int]) -> float:
        return sum(g / math.log2(i + 2) for i, g in enumerate(values[:10]))

    first = next((i for i, g in enumerate(gains[:10]) if g > 0), None)
    return {
        "ndcg@10": dcg(gains) / dcg(ideal),
        "recall@100": sum(g > 0 for g in gains[:100]) / len(ideal),
        "mrr@10": 0.0 if first is None else 1 / (first + 1),
    }


def random_run(rng: np.random.Generator) -> tuple[dict, dict]:
    names = [f"d{i}" for i in range(150)]
    judged = {f"q{q}": {d: int(rng.integers(0, 4)) for d in rng.permutation(names)[:30]}
              for q in range(20)}
    return {q: list(rng.permutation(names)[: rng.integers(0, 140)]) for q in judged}, judged


def test_scores_are_those_of_a_hand_computation_and_of_pytrec_eval() -> None:
    import pytrec_eval

    run, judged = random_run(np.random.default_rng(0))
    found = scores.each(run, judged)
    evaluator = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut_10", "recall_100"})
    theirs = evaluator.evaluate({
        q: {d: -float(i) for i, d in enumerate(ranked)} for q, ranked in run.items()})
    for q, ranked in run.items():
        assert found[q] == pytest.approx(by_hand(ranked, judged[q]), abs=1e-9)
        if ranked:
            assert found[q]["ndcg@10"] == pytest.approx(theirs[q]["ndcg_cut_10"], abs=1e-9)
            assert found[q]["recall@100"] == pytest.approx(theirs[q]["recall_100"], abs=1e-9)
    mean = scores.mean(run, judged)
    assert mean["ndcg@10"] == pytest.approx(np.mean([v["ndcg@10"] for v in found.values()]))


def test_queries_without_hits_count_and_unjudged_ones_don_t() -> None:
    judged = {"a": {"x": 1}, "b": {"y": 1}, "c": {"z": 0}}
    assert scores.mean({"a": ["x"], "d": ["x"]}, judged)["mrr@10"] == 0.5
    with pytest.raises(DataError, match="no query has a relevant"):
        scores.mean({}, {"c": {"z": 0}})
    with pytest.raises(DataError, match="'x' twice"):
        scores.mean({"a": ["x", "x"]}, judged)
    with pytest.raises(UnknownNameError, match="accuracy"):
        scores.mean({"a": ["x"]}, judged, ("accuracy@1",))


def test_a_query_that_is_a_document_does_not_answer_itself() -> None:
    run, judged = {"a": ["a", "x"]}, {"a": {"x": 1}}
    assert scores.mean(run, judged)["mrr@10"] == 1.0
    assert scores.mean(run, judged, ignore_identical_ids=False)["mrr@10"] == 0.5


# ---- BM25 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lucene", "robertson", "atire"])
def test_bm25_gives_the_scores_of_its_library(method: str) -> None:
    data = ambiguous_topics(size="smoke").test
    texts = [document.full for document in data.corpus]
    queries = [f"{q} {q.split()[0]}" for q in list(data.queries.values())[:20]]  # a word twice
    stem = Stemmer.Stemmer("english")
    library = bm25s.BM25(k1=0.9, b=0.4, method=method)
    library.index(bm25s.tokenize(texts, stemmer=stem, show_progress=False), show_progress=False)
    system = create("bm25", method=method)
    system.index(data.corpus)
    hits = system.search(queries, k=300)
    words = bm25s.tokenize(queries, stemmer=stem, return_ids=False, show_progress=False)
    for row, tokens in enumerate(words):
        expected = library.get_scores(tokens)
        ours = np.zeros(len(texts))
        ours[hits.places[row]] = hits.scores[row]
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_impacts_of_single_texts_are_those_of_the_index() -> None:
    system = create("bm25")
    index = system.index(TEXTS)
    again = system.encode_documents(list(TEXTS.values()))
    whole = index.vectors(np.arange(3))
    np.testing.assert_allclose(again.toarray(), whole.toarray(), atol=1e-6)


def test_an_unknown_stemmer_is_refused_before_any_work() -> None:
    with pytest.raises(ConfigError, match="klingon"):
        create("bm25", stemmer="klingon").index(TEXTS)


# ---- search ----------------------------------------------------------------------------------


def test_an_index_in_a_folder_gives_what_one_in_memory_gives(tmp_path: Path) -> None:
    here, there = create("bm25"), create("bm25")
    here.index(TEXTS)
    there.index(TEXTS, tmp_path / "index")
    again = create("bm25")
    for query in ("rivers of ice", "hot"):
        expected = here.search(query)
        for found in (there.search(query), again.search(query, index=tmp_path / "index")):
            assert found.ids == expected.ids
            np.testing.assert_array_equal(found.scores[0], expected.scores[0])
    shares = again.explain("rivers of ice", "both")
    score = dict(here.search("rivers of ice")[0])["both"]
    assert sum(share for _, share in shares) == pytest.approx(score, rel=1e-6)
    assert {term for term, _ in shares} == {"river", "ice"}


def test_shards_are_searched_by_the_same_verb(tmp_path: Path) -> None:
    corpus = [d.full for d in ambiguous_topics(0, "smoke").test.corpus]
    asked = list(ambiguous_topics(0, "smoke").test.queries.values())
    system = create("bm25")
    system.index(corpus)
    whole = system.search(asked, k=7)
    share = system.explain(asked[0], whole.ids[0][0])
    folders = [tmp_path / name for name in "abc"]
    system.index_shards(corpus, folders)
    found = system.search(asked, k=7, index=Shards(folders))
    assert found.ids == whole.ids
    assert all((a == b).all() for a, b in zip(found.scores, whole.scores, strict=True))
    assert system.explain(asked[0], whole.ids[0][0]) == share
    with pytest.raises(DataError, match="no document 'nowhere' in 3 shards"):
        system.explain(asked[0], "nowhere")


def test_shards_of_different_corpora_are_refused(tmp_path: Path) -> None:
    system = create("bm25")
    for name, text in (("a", "rivers of ice"), ("b", "hot springs and geysers")):
        system.index([text], tmp_path / name)
    with pytest.raises(ConfigError, match="counts of another corpus"):
        Shards([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(DataError, match="1 documents for 2 shards"):
        system.index_shards(["one"], [tmp_path / "c", tmp_path / "d"])


def test_two_indexes_of_one_system_keep_apart() -> None:
    system = create("bm25")
    first = system.index(TEXTS)
    system.index({"x": "ice cream and ice tea", "y": "rivers"})
    assert system.search("glacier", index=first).ids == [["ice"]]
    assert system.search("cream", index=system.index({"z": "cream"})).ids == [["z"]]


def test_queries_that_find_nothing_are_told() -> None:
    system = create("bm25")
    system.index(TEXTS)
    with pytest.warns(PassbandWarning, match=r"2 of 3 queries .*'  ', 'xyzzy'"):
        hits = system.search(["  ", "ice", "xyzzy"])
    assert [len(ids) for ids in hits.ids] == [0, 2, 0]


def test_what_can_t_be_searched_is_refused(tmp_path: Path) -> None:
    system = create("bm25")
    with pytest.raises(ConfigError, match="nothing has been indexed"):
        system.search("ice")
    with pytest.raises(DataError, match="empty"):
        system.index([])
    system.index(TEXTS, tmp_path / "index")
    with pytest.raises(ConfigError, match="k = 0"):
        system.search("ice", k=0)
    with pytest.raises(ConfigError, match="that 'bm25' made"):
        create("minilm").open(tmp_path / "index")


def test_ranks_leave_out_queries_that_are_documents() -> None:
    from dataclasses import replace

    from passband.data.documents.collection import Collection, Document, Listed

    corpus = Listed(Document(id, text) for id, text in TEXTS.items())
    data = Collection(corpus, {"ice": TEXTS["ice"]}, {"ice": {"both": 1}})
    assert rank(create("bm25"), data) == {"ice": ["ice", "both"]}
    found = rank(create("bm25"), replace(data, queries_are_documents=True))
    assert found == {"ice": ["both"]}


def test_a_task_scores_a_system() -> None:
    task = TASKS["two-dialects"]
    data = task.data(0, "smoke")
    assert data.for_fit().test is None
    with pytest.warns(PassbandWarning, match="30 of 30 queries"):
        assert task.evaluate(create("bm25"), data)["recall@100"] == 0.0


# ---- files -----------------------------------------------------------------------------------


def test_apply_indexes_documents_and_then_searches_them(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    for name, text in TEXTS.items():
        (corpus / f"{name}.txt").write_text(f"{text} <b>")
    assert {p.name for p in apply("bm25", corpus, out)} == {
        "index", "documents.jsonl", "search.html"
    }
    (tmp_path / "q.txt").write_text("river\n\nglaciers\n")
    written = apply("bm25", tmp_path / "q.txt", out)
    assert {p.name for p in written} == {"run.trec", "hits.jsonl", "hits.html"}
    run = [line.split() for line in (out / "run.trec").read_text().splitlines()]
    assert sorted((q, d) for q, _, d, *_ in run) == [
        ("1", "both.txt"), ("1", "ice.txt"), ("3", "ice.txt")]
    shown = [json.loads(line) for line in (out / "hits.jsonl").read_text().splitlines()]
    assert shown[1]["hits"][0]["text"].startswith("A glacier")
    page = (out / "hits.html").read_text()
    assert "&lt;b&gt;" in page
    assert page.count("<b>") == 3  # of the three hits' names, none of a text


def test_a_folder_with_queries_is_searched_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text("".join(
        json.dumps({"_id": id, "text": text}) + "\n" for id, text in TEXTS.items()))
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "geyser"}\n')
    apply("bm25", folder, tmp_path / "out")
    assert (tmp_path / "out" / "run.trec").read_text().startswith("q Q0 spring 1 ")
