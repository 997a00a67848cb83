"""Training, search and the exported folder."""

import json
import warnings

import numpy as np
import pytest
import torch

from passband.bench.budget import Budget
from passband.bench.task import Data
from passband.data.documents.collection import Collection, Document, Example, Listed
from passband.errors import ConfigError, DataError, PassbandWarning
from passband.parts.losses.flops import ramp
from passband.retrieval.baselines.splade.system import Splade
from passband.retrieval.idf_flops.system import IdfFlops
from passband.retrieval.learned_sparse import Carried

WORDS = [
    "ice", "river", "snow", "glacier", "fire", "lava", "ash", "volcano", "wind", "storm", "rain",
    "cloud",
]


def _collection(scores=None, negatives=()):
    """Twelve words, documents of three: the query of a document is its first two words."""
    documents = [
        Document(f"d{i}", " ".join(WORDS[(i + k) % 12] for k in range(3))) for i in range(12)
    ]
    queries = {f"q{i}": " ".join(d.text.split()[:2]) for i, d in enumerate(documents)}
    judged = {f"q{i}": {f"d{i}": 1} for i in range(12)}
    examples = [
        Example(queries[f"q{i}"], (d.text,), negatives, scores) for i, d in enumerate(documents)
    ]
    return Collection(Listed(documents), queries, judged, examples)


def _fit(cls=IdfFlops, steps=4, collection=None, **fields):
    system = cls.from_preset("smoke", **fields)
    found = system.fit(Data(train=collection or _collection()), Budget(steps=steps))
    return system, found


def test_learns_to_find_documents():
    system, found = _fit(steps=60, group=1, loss="infonce", lambda_d=1e-4)
    data = _collection()
    system.index(data.corpus)
    hits = system.search(list(data.queries.values()), k=1)
    right = sum(ids[:1] == [f"d{i}"] for i, ids in enumerate(hits.ids))
    assert right >= 9
    assert found["nonzero_queries"] <= 6


@pytest.mark.parametrize("cls", [IdfFlops, Splade])
@pytest.mark.parametrize("fields", [
    {"loss": "kl", "teachers": ("bm25", "lsa")},
    {"loss": "kl", "teachers": ("bm25", "lsa"), "normalise_teachers": False, "candidates": "own"},
    {"loss": "infonce", "candidates": "negatives", "group": 3, "flops_groups": False},
    {"loss": "margin_mse", "candidates": "own", "negatives": "random", "threshold": 5},
    {"loss": "infonce", "second": 0.5, "l0": True},
    {"loss": "kl", "teachers": ("splade",), "group": 1},
])
def test_every_way_to_train_moves_the_weights(cls, fields):
    system, found = _fit(cls, **fields)
    fresh = cls.from_preset("smoke", **fields)
    fresh._start(_collection())
    moved = [
        not torch.equal(a, b) for (n, a), (_, b) in zip(
            system.network.named_parameters(), fresh.network.named_parameters(), strict=True
        ) if n.endswith("word_embeddings.weight")
    ]
    assert moved == [True] and np.isfinite(found["loss"]) and found["steps"] == 4


def test_scores_of_the_examples_are_a_teacher():
    data = _collection(scores=(5.0, 1.0, 0.0), negatives=("fire ash", "storm rain"))
    for loss in ("kl", "margin_mse"):
        _fit(collection=data, teachers=(), candidates="own", loss=loss, group=3)
    with pytest.raises(DataError, match="have no scores"):
        _fit(teachers=(), candidates="own")


@pytest.mark.parametrize("fields", [
    {"group": 1, "candidates": "own"}, {"group": 1, "loss": "margin_mse"},
    {"teachers": (), "candidates": "batch"},
])
def test_combinations_that_make_no_sense(fields):
    with pytest.raises(ConfigError):
        IdfFlops.from_preset("smoke", **fields)


def test_a_larger_penalty_makes_shorter_documents():
    lengths = [
        _fit(steps=40, group=1, lambda_d=x, ramp=1)[1]["nonzero_documents"] for x in (0.0, 0.3)
    ]
    assert lengths[1] < 0.7 * lengths[0]


@pytest.mark.filterwarnings("default::passband.errors.PassbandWarning")
def test_documents_that_lost_all_weights_are_told():
    system = IdfFlops.from_preset("smoke")
    with torch.no_grad():
        system.network.documents.mlm.cls.predictions.bias.fill_(-100.0)
    with pytest.warns(PassbandWarning, match="2 of 2 documents"):
        system.encode_documents(["ice", "fire"])


def test_the_table_is_that_of_the_corpus_or_of_a_file(tmp_path):
    counted, _ = _fit(steps=1)
    folder = counted.export(tmp_path / "out")
    given, _ = _fit(steps=1, idf=str(folder / "idf.json"))
    torch.testing.assert_close(given.network.idf, counted.network.idf)
    ones, _ = _fit(steps=1, queries="ones")
    assert set(ones.encode_queries(["ice fire"]).data.tolist()) == {1.0}
    # Every word is in three of the twelve documents.
    assert counted.encode_queries(["ice"]).data.tolist()[0] == pytest.approx(
        np.log(1 + (12 - 3 + 0.5) / 3.5), rel=1e-5
    )


def test_a_learned_table_moves():
    system, _ = _fit(steps=6, train_idf=True, idf_lr=0.05, group=1, loss="infonce")
    frozen, _ = _fit(steps=6, group=1, loss="infonce")
    assert system.parameter_count() == frozen.parameter_count() + 1024
    assert not torch.equal(system.network.idf.detach(), frozen.network.idf)


@pytest.mark.filterwarnings("default::passband.errors.PassbandWarning")
def test_unknown_words_find_nothing_and_say_so():
    system, _ = _fit()
    system.index(_collection().corpus)
    with pytest.warns(PassbandWarning, match="no word"):
        hits = system.search(["日本", "東京 京都"], k=5)
    assert hits.ids == [[], []]


def test_two_phases_with_all_candidates_find_what_one_finds():
    system, _ = _fit(steps=10)
    system.index(_collection().corpus)
    exact = system.search("ice river storm", k=5)
    system.config = system.configure("smoke", two_phase=0.4, expansion=12.0)
    assert system.search("ice river storm", k=5).ids == exact.ids


def test_explanations_add_up_to_the_score():
    system, _ = _fit(steps=10)
    system.index(_collection().corpus)
    hits = system.search("ice river", k=3)
    for document, score in zip(hits.ids[0], hits.scores[0], strict=True):
        shares = system.explain("ice river", document)
        assert sum(share for _, share in shares) == pytest.approx(float(score), rel=1e-5)
        assert {name for name, _ in shares} <= set(
            system.pieces.texts(system.pieces.rows(["ice river"]).ids)
        )


def test_the_ramp_counts_steps_or_shares():
    by_steps, by_share = Carried(10), Carried(0.5)
    for step in range(12):
        by_steps.at(step / 100)
        by_share.at(step / 10)
        assert by_steps.scale == ramp(step, 10)
        assert by_share.scale == pytest.approx(min(1.0, step / 5) ** 2)
    again = Carried(10)
    again.load_state_dict(by_steps.state_dict())
    assert again.scale == by_steps.scale
    assert Carried(10, done=True).scale == 1.0


@pytest.mark.parametrize("l0", [False, True])
def test_sentence_transformers_reads_the_exported_folder(tmp_path, l0):
    library = pytest.importorskip("sentence_transformers")
    system, _ = _fit(steps=5, l0=l0)
    folder = system.export(tmp_path / "out")
    model = library.SparseEncoder(str(folder), device="cpu")
    queries, documents = ["ice river ice", "volcano"], ["lava ash", "a snow storm of ice"]
    theirs = model.encode_query(queries, convert_to_sparse_tensor=False)
    np.testing.assert_allclose(
        system.encode_queries(queries).toarray(), theirs.numpy(), atol=1e-6
    )
    theirs = model.encode_document(documents, convert_to_sparse_tensor=False)
    np.testing.assert_allclose(
        system.encode_documents(documents).toarray(), theirs.numpy(), atol=1e-5
    )
    table = json.loads((folder / "idf.json").read_text())
    assert table["[PAD]"] == 1.0 and all(value >= 0 for value in table.values())


def test_exporting_again_replaces_the_folder(tmp_path):
    system = IdfFlops.from_preset("smoke")
    folder = system.export(tmp_path / "out")
    (folder / "stray").touch()
    assert not (system.export(folder) / "stray").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_saved_contriever_is_a_teacher(tmp_path):
    """Dense scores of the folder, with its own word pieces, beside those of words."""
    from passband.bench.saved import create, load
    from passband.retrieval.teachers import Teacher, teacher_stage

    folder = create("contriever", "smoke").save(tmp_path / "dense")
    data = _collection()
    texts = [d.full for d in data.corpus]
    teacher = Teacher(
        teacher_stage(str(folder), Data(train=data), 0, Budget(steps=1)), texts, WORDS
    )
    dense = load(folder)
    expected = dense.encode_queries(WORDS[2:5]) @ dense.encode_documents(texts).T
    np.testing.assert_allclose(teacher.scores([2, 3, 4], range(12)), expected, rtol=1e-5)
    _, found = _fit(steps=30, teachers=(str(folder), "bm25"), lambda_d=0.0)
    assert found["loss"] < _fit(steps=1, teachers=(str(folder), "bm25"), lambda_d=0.0)[1]["loss"]


@pytest.mark.parametrize(("mine", "theirs", "said"), [
    (True, False, "keeps capitals"), (False, True, "lower-cases"), (True, True, None),
    (False, False, None),
])
def test_tokenizers_that_treat_capitals_differently_are_told(tmp_path, mine, theirs, said):
    from passband.bench.saved import create

    teacher = create("contriever", "smoke", lowercase=theirs)
    assert teacher.pieces.lowercase is theirs
    folder = teacher.save(tmp_path / "dense")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _fit(steps=1, teachers=(str(folder),), lowercase=mine)
    found = [str(w.message) for w in caught if "capitals" in str(w.message)]
    assert len(found) == (said is not None) and all(said in text for text in found)


def test_a_tied_decoder_is_saved_once_and_old_files_load(tmp_path):
    system = IdfFlops.from_preset("smoke")
    tensors = dict(system.network.state_dict())
    names = [n for n, t in tensors.items() if t.shape == (1024, 32)]
    assert len(names) == 2  # the embeddings and their name as a decoder
    state = system.state()
    assert len([n for n in names if n in state]) == 1
    folder = system.save(tmp_path / "once")
    texts = ["a river of ice", "fire"]
    vectors = system.encode_documents(texts)
    state |= {n: tensors[n].clone() for n in names}  # as it was written before
    for made in (state, system.state()):
        other = IdfFlops.from_preset("smoke", seed=5)
        other.load_state(made, system.extra())
        assert abs(other.encode_documents(texts) - vectors).max() == 0
    assert abs(IdfFlops.load(folder).encode_documents(texts) - vectors).max() == 0
    lacking = {n: t for n, t in system.state().items() if n not in names}
    with pytest.raises(RuntimeError, match="word_embeddings"):
        IdfFlops.from_preset("smoke").load_state(lacking, system.extra())
