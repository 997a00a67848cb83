"""LoL as a system: what it learns from, what it saves, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from passband import create, load
from passband.bench.budget import Budget
from passband.bench.task import Data
from passband.data.documents.collection import Collection, Document, Listed
from passband.data.documents.topics import ambiguous_topics
from passband.errors import ConfigError, DataError, PassbandWarning
from passband.retrieval.lol_prf import losses
from passband.retrieval.lol_prf.documents import FrozenSparse
from passband.retrieval.lol_prf.lessons import Asked, Lessons, gather, given_rankings
from passband.retrieval.lol_prf.objective import Objective, Weights
from passband.retrieval.lol_prf.sequences import Frame
from passband.retrieval.lol_prf.system import LoL, sparse_rows
from passband.retrieval.wordpieces import wordpieces

TEXTS = [
    "ice melts in spring", "spring water runs over moss", "moss and fern in the forest",
    "the forest burns", "water freezes to ice", "birds sing in spring in the forest",
]
QUICK = Budget(steps=4)


@pytest.fixture(scope="module")
def topics() -> Data[Collection]:
    parts = ambiguous_topics(size="smoke")
    return Data(train=parts.train, valid=parts.valid, test=parts.test)


@pytest.fixture(scope="module")
def trained(topics: Data[Collection]) -> LoL:
    system = create("lol-prf", preset="smoke", head="dqrss", label="drawn")
    system.fit(topics.for_fit(), QUICK)
    return system


def collection(**more) -> Collection:
    corpus = Listed(Document(f"d{i}", text) for i, text in enumerate(TEXTS))
    queries = {"q0": "ice", "q1": "moss", "q2": "fire", "d3": "the forest burns"}
    judgements = {"q0": {"d4": 1, "d0": 1}, "q1": {"d2": 1, "d9": 1}, "q2": {"d3": 0},
                  "d3": {"d3": 1, "d2": 1}}
    return Collection(corpus, queries, judgements, **more)


def lessons(**options) -> Lessons:
    frame = Frame(cls=2, sep=3, max_passage=8)
    found = [[0, 4], [1, 2], [], [3, 2, 5]]
    chosen = {"feedback": 2, "candidates": 1, "revisions": 2, **options}
    data = collection(queries_are_documents=True)
    return gather(data, found, wordpieces(200, TEXTS), frame, **chosen)


# ---- what is learned from -----------------------------------------------------------------------


def test_queries_that_teach_nothing_are_left_out_with_a_count() -> None:
    with pytest.warns(PassbandWarning, match="1 of 4 queries have no relevant"):
        made = lessons()
    assert [one.id for one in made.asked] == ["q0", "q1", "d3"]


@pytest.mark.filterwarnings("ignore::passband.errors.PassbandWarning")
def test_the_subset_is_the_best_of_every_query_and_all_positives() -> None:
    made = lessons()
    assert made.subset.tolist() == [0, 1, 2, 3, 4]  # 5 was found third and is not relevant
    step = made.collate([made.draw(i, np.random.default_rng(i)) for i in range(3)])
    # The document of the query d3 is no positive of it and counts as nothing.
    assert made.asked[2].positives == (2,)
    assert step.left_out[4:].tolist() == [[3], [3]]
    assert step.left_out[:4].tolist() == [[-1]] * 4
    assert step.owners.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.filterwarnings("ignore::passband.errors.PassbandWarning")
def test_revisions_are_nested_and_the_larger_one_comes_first() -> None:
    made, rng = lessons(), np.random.default_rng(0)
    for _ in range(20):
        drawn = [made.draw(0, rng)]
        step = made.collate(drawn)
        long, short = (step.batch.mask[row].sum() for row in (0, 1))
        assert long > short
        # But for the last [SEP], the shorter one is how the longer one begins.
        assert step.batch.ids[0, :short].tolist() == step.batch.ids[1, :short].tolist()
        read = list(drawn[0][2].passages)
        expected = [float(p in made.asked[0].positives) for p in read]
        assert step.relevant[0, : len(read)].tolist() == expected


@pytest.mark.filterwarnings("ignore::passband.errors.PassbandWarning")
def test_a_drawn_label_is_the_same_for_all_revisions_of_a_query() -> None:
    made, seen = lessons(label="drawn"), set()
    for seed in range(20):
        step = made.collate([made.draw(0, np.random.default_rng(seed))])
        assert step.label[0] == step.label[1]
        seen.add(int(step.label[0, 0]))
    assert seen == {0, 4}
    assert lessons().collate([made.draw(0, np.random.default_rng(0))]).label.shape == (2, 0)


@pytest.mark.filterwarnings("ignore::passband.errors.PassbandWarning")
def test_a_fixed_number_reads_the_best_ones() -> None:
    made = lessons(revisions=1, fixed=2)
    assert made.draw(1, np.random.default_rng(0))[2].passages == (1, 2)


def test_nothing_to_learn_from_is_an_error() -> None:
    empty = replace(collection(), judgements={"q2": {"d3": 0}})
    with (
        pytest.warns(PassbandWarning),
        pytest.raises(DataError, match="none of 1 queries"),
    ):
        gather(empty, [[0]], wordpieces(200, TEXTS), Frame(2, 3), feedback=1, candidates=1,
               revisions=1)


def test_a_given_ranking_is_taken_and_its_unknown_ids_are_named() -> None:
    given = collection(rankings={"q0": ["d4", "d1"], "d3": ["d5"]})
    assert given_rankings(given) == [[4, 1], [], [], [5]]
    assert given_rankings(collection()) is None
    with pytest.raises(DataError, match="1 ranked documents are not in the corpus: 'd77'"):
        given_rankings(collection(rankings={"q0": ["d4", "d77"]}))


# ---- the loss -----------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """A reformulator that gives what it is told."""

    def __init__(self, vectors: torch.Tensor) -> None:
        super().__init__()
        self.vectors = torch.nn.Parameter(vectors)

    def forward(self, batch):
        from passband.retrieval.lol_prf.model import Revisions

        return Revisions(self.vectors)


def test_the_objective_is_the_weighted_sum_of_its_terms() -> None:
    documents = np.float32(np.random.default_rng(0).random((5, 6)))
    asked = [Asked("a", [7], (0, 1), (2,)), Asked("b", [8], (3, 4), (1, 4))]
    made = Lessons(
        asked, {i: [9 + i] for i in range(5)}, range(5), Frame(cls=1, sep=2), revisions=2
    )
    step = made.collate([made.draw(i, np.random.default_rng(3)) for i in range(2)])
    vectors = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    weights = Weights(ranking=1.0, comparative=0.5, queries=0.3, sparsity=0.1)
    objective = Objective(made, FrozenSparse(scipy.sparse.csr_array(documents)), weights)
    objective.progress.at(0.45)
    total, values = objective(Fixed(vectors), step)
    scores = vectors @ torch.from_numpy(documents).T
    each = losses.ranking(scores, torch.tensor([[2, -1], [2, -1], [1, 4], [1, 4]]))
    expected = (
        each.mean() + 0.5 * losses.comparative(each.view(2, 2))
        + 0.3 * losses.query_ranking(scores, step.positives, step.owners)
        + 0.1 * 0.25 * vectors.abs().sum(1).mean()
    )
    torch.testing.assert_close(total, expected)
    assert set(values) == {"ranking", "comparative", "violations", "queries", "l1"}


def test_a_broken_loss_names_the_queries() -> None:
    made = Lessons(
        [Asked("who", [7], (0,), (1,))], {0: [9]}, range(2), Frame(cls=1, sep=2), revisions=2
    )
    step = made.collate([made.draw(0, np.random.default_rng(0))])
    objective = Objective(made, FrozenSparse(scipy.sparse.eye_array(2, format="csr")), Weights())
    with pytest.raises(DataError, match="loss is nan on the queries 'who'"):
        objective(Fixed(torch.full((2, 2), torch.nan)), step)


@pytest.mark.parametrize(("compared", "queries"), [(0, 32), (1, 16), (2, 10)])
def test_equal_compute_is_as_many_revisions_a_step(compared: int, queries: int) -> None:
    system = create("lol-prf", compared=compared)
    assert system.loop_config().batch_size == queries


# ---- the system ---------------------------------------------------------------------------------


def test_training_moves_the_queries_and_not_the_index(
    trained: LoL, topics: Data[Collection]
) -> None:
    before = create("lol-prf", preset="smoke", head="dqrss", label="drawn")
    before.fit(topics.for_fit(), Budget(steps=1))
    queries = list(topics.test.queries.values())[:5]
    for system in (before, trained):
        system.index(topics.test.corpus)
    old, new = (s.search_prf(queries, k=5, feedback=2) for s in (before, trained))
    assert old.first.ids == new.first.ids
    assert abs(old.after - new.after).max() > 0
    np.testing.assert_allclose(
        np.sqrt(new.after.multiply(new.after).sum(1)), np.ones(5), rtol=1e-5
    )


def test_the_second_search_is_the_product_with_the_vectors(
    trained: LoL, topics: Data[Collection]
) -> None:
    trained.index(topics.test.corpus)
    queries = list(topics.test.queries.values())[:4]
    found = trained.search_prf(queries, k=10, feedback=2)
    documents = trained.encode_documents([d.full for d in topics.test.corpus])
    scores = (found.after @ documents.T).toarray()
    for row in range(4):
        best = np.argsort(-scores[row], kind="stable")[:10]
        np.testing.assert_allclose(found.second.scores[row], scores[row][best], rtol=1e-5)
    difference = found.difference(0)
    assert len(difference.added) > 0
    total = sum(share for _, share in trained.explain(queries[0], found.second.ids[0][0]))
    # Asked with the configured feedback, which is 2 in this preset.
    assert total == pytest.approx(found.second.scores[0][0], rel=1e-4)


def test_a_query_that_finds_nothing_is_revised_alone(trained: LoL) -> None:
    trained.index(TEXTS)
    with pytest.warns(PassbandWarning, match="no word that this system knows"):
        found = trained.search_prf("雪", k=3)
        alone = trained.search_prf("雪", k=3, feedback=0)
    assert found.read == [[]]
    assert found.second.ids == alone.second.ids


def test_violations_of_the_curve_are_counted_pair_by_pair(
    trained: LoL, topics: Data[Collection]
) -> None:
    curve = trained.curve(topics.test, sizes=(0, 1, 2))
    assert curve.losses.shape == (len(topics.test.judgements), 3)
    pairs = [(a, b) for a in range(3) for b in range(a + 1, 3)]
    wrong = [row[b] > row[a] for row in curve.losses for a, b in pairs]
    assert curve.violations == pytest.approx(np.mean(wrong))
    assert len(curve.metrics) == len(curve.residual) == 3


def test_a_long_query_is_cut_and_counted(trained: LoL, topics: Data[Collection]) -> None:
    trained.index(topics.test.corpus)
    text = topics.test.corpus[0].full
    with pytest.warns(PassbandWarning, match="1 of 2 queries are longer than 16 tokens"):
        trained.search([text.split()[0], f"{text} {text}"], k=2)


def test_dense_on_a_saved_retriever_is_saved_with_it(
    tmp_path: Path, topics: Data[Collection]
) -> None:
    first = create("rocchio", preset="dense", axes=8)
    first.fit(topics.for_fit())
    folder = first.save(tmp_path / "first")
    system = create(
        "lol-prf", preset="smoke", head="dqrd", first_stage=str(folder), select="highest mrr@10"
    )
    report = system.fit(topics.for_fit(), QUICK)
    assert report["selected"] == "highest mrr@10"
    system.index(TEXTS)
    expected = system.search_prf("ice spring", k=4)
    saved = system.save(tmp_path / "whole")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()  # it is not needed again
    again = load(saved)
    again.index(TEXTS)
    found = again.search_prf("ice spring", k=4)
    assert found.second.ids == expected.second.ids
    np.testing.assert_allclose(found.after, expected.after, rtol=1e-6)


def test_few_queries_for_a_head_that_needs_many_are_warned_of(topics: Data[Collection]) -> None:
    system = create("lol-prf", preset="smoke", head="dqrsm")
    with pytest.warns(PassbandWarning, match="196 queries to learn from"):
        system.fit(topics.for_fit(), QUICK)


def test_a_sparse_head_on_another_vocabulary_is_refused(tmp_path: Path) -> None:
    first = create("rocchio")
    first.index(TEXTS)
    folder = first.save(tmp_path / "first")
    system = create("lol-prf", preset="smoke", head="dqrsm", first_stage=str(folder))
    with pytest.raises(ConfigError, match="terms, the head dqrsm 1024 word pieces"):
        system.index(TEXTS)


@pytest.mark.parametrize(("wrong", "what"), [
    ({"head": "dqrd"}, "does not fit bm25"),
    ({"first_stage": "lsa"}, "does not fit lsa"),
    ({"fixed": 3}, "compared must be 0"),
    ({"compared": 3, "feedback": 2}, "compared must be at most feedback"),
    ({"max_length": 20, "max_query": 30}, "max_length"),
])
def test_configurations_that_cannot_be(wrong: dict, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        create("lol-prf", **wrong)


def test_pruned_terms_are_not_searched_for() -> None:
    rows = np.float32([[0.0, 1.0, 0.2], [0.0, 0.0, 0.0]])
    assert sparse_rows(rows, prune=0.3).toarray().tolist() == [[0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("same", [True, False])
def test_a_document_of_the_querys_id_counts_where_they_are_two_things(
    trained: LoL, topics: Data[Collection], same: bool
) -> None:
    """Equal ids by accident: the document stays in the ranking and among the answers."""
    ice, water, moss, fern = sorted(set(topics.test.corpus[0].full.split()))[:4]
    query = f"{ice} {water}"
    corpus = Listed([Document("q", query), Document("d", f"{moss} {fern}"),
                     Document("e", f"{ice} {fern}")])
    data = Collection(corpus, {"q": query}, {"q": {"q": 1, "e": 1}},
                      queries_are_documents=same)
    made, _ = trained.lessons(data, trained.index(corpus), revisions=1, fixed=1)
    own = corpus.place("q")
    assert made.asked[0].own == (own if same else -1)
    assert set(made.asked[0].positives) == {corpus.place("e")} | (set() if same else {own})
    curve = trained.curve(data, sizes=(0, 1))
    ranked = trained.search_prf([query], 101, 0).second.ids[0]
    shown = [d for d in ranked if d != "q"] if same else ranked
    first = next(i for i, d in enumerate(shown, 1) if d in ("q", "e"))
    assert curve.metrics[0]["mrr@10"] == pytest.approx(1 / first)
    assert curve.metrics[0]["recall@100"] == (0.5 if same else 1.0)
