"""Contriever from texts to rankings: phases, resume, several data sets, bad input."""

import numpy as np
import pytest
import torch

from passband.bench.budget import Budget
from passband.bench.task import Data
from passband.data.documents.collection import Collection, Document, Example, Listed
from passband.data.documents.dialects import two_dialects
from passband.errors import ConfigError, DataError, PassbandWarning
from passband.parts.modes import evaluating
from passband.retrieval.contriever.system import Contriever
from passband.retrieval.packed import pooled
from passband.retrieval.tasks import rank


@pytest.fixture(scope="module")
def data():
    parts = two_dialects(seed=0, size="smoke")
    return Data(train=parts.train, valid=parts.valid, test=parts.test)


class Seen:
    def __init__(self):
        self.rows = []

    def log(self, step, seconds, **values):
        self.rows.append({"step": step, **values})

    def progress(self, fraction, text=""):
        assert 0 <= fraction <= 1

    def test_error(self, system):
        pass


def weights(system):
    return {n: torch.as_tensor(t) for n, t in system.state().items()}


def same(one, other):
    return all(torch.equal(t, other[n]) for n, t in one.items())


def test_crops_are_told_apart_after_a_few_steps(data):
    """Against a queue of 64 keys, chance is 1 in 65; queries in their document's own words."""
    seen = Seen()
    system = Contriever.from_preset("smoke")
    found = system.fit(data, Budget(steps=120), seen)
    assert found["steps"] == 120
    assert {"loss", "accuracy", "stdq", "stdk"} <= seen.rows[0].keys()
    assert all(row["stdq"] > 0.05 for row in seen.rows)  # no collapse
    loss, accuracy = ([row[name] for row in seen.rows] for name in ("loss", "accuracy"))
    assert np.mean(loss[-30:]) < 0.7 * np.mean(loss[5:35])
    assert np.mean(accuracy[-30:]) > 5 / 65
    plain = two_dialects(seed=0, size="smoke", same=True).test
    hits = rank(system, plain)
    right = np.mean([bool({*hits[q][:30]} & {*found}) for q, found in plain.judgements.items()])
    assert right > 0.5  # a tenth by chance


def test_test_queries_and_judgements_are_not_needed(data):
    bare = Data(train=Collection(data.train.corpus))
    one, other = (Contriever.from_preset("smoke") for _ in range(2))
    one.fit(bare, Budget(steps=3))
    other.fit(data, Budget(steps=3))
    assert same(weights(one), weights(other))


def test_a_run_that_is_stopped_and_resumed_ends_alike(data, tmp_path):
    """Key encoder and queue are in the checkpoint; so is what phase a run was in."""
    options = {"finetune_steps": 4, "steps": 6, "negatives": 1}

    def fresh(folder):
        system = Contriever.from_preset("smoke", **options)
        system.checkpoints = folder
        return system

    whole = fresh(tmp_path / "a")
    whole.fit(data)

    class Stop(Seen):
        def __init__(self, at):
            super().__init__()
            self.at = at

        def log(self, step, seconds, **values):
            if step >= self.at:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGINT)

    for at in (3, 8):  # in the first phase, in the second
        system = fresh(tmp_path / f"b{at}")
        with pytest.raises(KeyboardInterrupt):
            system.fit(data, Budget(), Stop(at))
        again = fresh(tmp_path / f"b{at}")
        again.resume = True
        again.fit(data)
        assert same(weights(again), weights(whole)), at


def test_phases_add_up_and_mined_negatives_are_hits(data):
    seen = Seen()
    system = Contriever.from_preset(
        "smoke", steps=4, finetune_steps=3, mined_steps=2, finetune_pairs=40, hard_share=1.0
    )
    found = system.fit(data, Budget(), seen)
    assert found["steps"] == 9
    assert [row["step"] for row in seen.rows] == sorted(row["step"] for row in seen.rows)
    assert system.search("whatever is there", k=3, index=system.index(data.train.corpus)).ids


def test_fine_tuning_finds_what_it_was_taught():
    """Forty made-up questions whose answers share no word with them."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), 6)) for _ in range(80)]
    documents = [Document(f"d{i}", f"{words[i]} {words[i]} is a word") for i in range(40)]
    queries = {f"q{i}": f"{words[40 + i]} please" for i in range(40)}
    collection = Collection(Listed(documents), queries, {f"q{i}": {f"d{i}": 1} for i in range(40)})
    system = Contriever.from_preset(
        "smoke", objective="none", finetune_steps=150, finetune_lr=5e-3, temperature=1.0
    )
    system.fit(Data(train=collection))
    system.index(collection.corpus)
    found = system.search(list(queries.values()), k=1).ids
    right = np.mean([ids == [f"d{i}"] for i, ids in enumerate(found)])
    assert right > 0.8


@pytest.mark.parametrize("change", [
    {"objective": "in-batch"}, {"pairs": "ict"}, {"augmentation": "mask"},
    {"augmentation": "replace"}, {"augmentation": "shuffle"}, {"pooling": "cls"},
    {"norm_query": True, "norm_doc": True}, {"key_dropout": False}, {"queue_start": "warm"},
    {"normalize_text": True}, {"label_smoothing": 0.1},
    {"objective": "none", "finetune_steps": 2, "asam": 0.5},
    {"pretrained": True, "vocabulary": "embedded"},
])
def test_every_variant_runs(data, change):
    system = Contriever.from_preset("smoke", **change)
    found = system.fit(data, Budget(steps=2))
    assert np.isfinite(found["loss"])
    assert np.isfinite(system.encode_queries(["one", "two"])).all()


def test_validation_selects(data):
    system = Contriever.from_preset(
        "smoke", objective="none", finetune_steps=2, select="highest ndcg@10"
    )
    found = system.fit(data)
    assert found["selected"] == "highest ndcg@10"
    assert 0 <= found["ndcg@10"] <= 1


def test_several_data_sets(data):
    other = two_dialects(seed=5, size="smoke").train
    system = Contriever.from_preset("smoke")
    system.fit(Data(train=[data.train, other]), Budget(steps=2))
    known = set(system.pieces.tokens)
    for collection in (data.train, other):
        text = collection.corpus[0].full
        assert set(system.pieces.texts(system.pieces.rows([text]).ids)) <= known
    with pytest.raises(DataError):
        system.fit(Data(train=[]), Budget(steps=1))


def test_nothing_is_learned_without_an_objective(data):
    system = Contriever.from_preset("smoke", objective="none")
    assert system.fit(data, Budget(steps=5))["steps"] == 0


def test_a_saved_system_says_the_same(data, tmp_path):
    system = Contriever.from_preset("smoke")
    system.fit(data, Budget(steps=2))
    again = Contriever.load(system.save(tmp_path / "saved"))
    texts = list(data.test.queries.values())
    assert np.array_equal(system.encode_queries(texts), again.encode_queries(texts))
    assert again.parameter_count() == system.parameter_count()


def test_vectors_are_means_of_the_states(data):
    system = Contriever.from_preset("smoke")
    text = "a few words"
    ids, mask = system.pieces.rows([text]).batch([0])
    with torch.no_grad(), evaluating(system.network):
        expected = pooled(system.network, ids, mask)[0]
    np.testing.assert_allclose(system.encode_queries([text])[0], expected, atol=1e-6)
    assert np.array_equal(system.encode_queries([text]), system.encode_documents([text]))


# ---- bad input -----------------------------------------------------------------------------------


def test_an_empty_text_gets_the_vector_of_nothing_and_a_warning():
    system = Contriever.from_preset("smoke")
    with pytest.warns(PassbandWarning, match="1 of 2 documents"):
        found = system.encode_documents(["", "a word"])
    assert np.isfinite(found).all()


def test_long_texts_are_cut_and_counted():
    system = Contriever.from_preset("smoke", max_length=16)
    one = system.encode_documents(["word " * 500, "word " * 400, "word"])
    assert system.cut == 2
    np.testing.assert_allclose(one[0], one[1], atol=1e-6)


def test_less_text_than_a_chunk():
    few = Collection(Listed([Document("a", "only a few words here")]))
    system = Contriever.from_preset("smoke", chunk_length=1000)
    with pytest.raises(DataError, match=r"tokens.*1000"):
        system.fit(Data(train=few), Budget(steps=1))


@pytest.mark.parametrize(("change", "message"), [
    ({"queue_size": 100, "batch_size": 64}, "128"), ({"ratio_min": 0.6}, "ratio_min"),
    ({"pretrained": True}, "embedded"),
])
def test_configurations_that_do_not_fit(change, message):
    with pytest.raises(ConfigError, match=message):
        Contriever.from_preset("small", **change)


def test_fine_tuning_needs_questions():
    texts = [document.text for document in two_dialects(seed=0, size="smoke").train.corpus]
    bare = Collection(Listed([Document(str(i), text) for i, text in enumerate(texts)]))
    system = Contriever.from_preset("smoke", objective="none", finetune_steps=2)
    with pytest.raises(DataError, match="nothing to learn from"):
        system.fit(Data(train=bare))


def test_examples_with_negatives_of_their_own():
    corpus = Listed([Document(str(i), f"text number {i} of a few") for i in range(12)])
    examples = [Example(f"question {i}", (corpus[i].full,), (corpus[i + 1].full,))
                for i in range(6)]
    system = Contriever.from_preset(
        "smoke", objective="none", finetune_steps=2, batch_size=4, hard_share=1.0
    )
    assert system.fit(Data(train=Collection(corpus, examples=examples)))["steps"] == 2
