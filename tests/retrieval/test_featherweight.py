"""Words in names against the plain formulation: every weight, K, threshold and name in turn."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import passband
from passband.bench.task import Data
from passband.data.names.named import Named
from passband.data.names.parts import halves
from passband.errors import CheckpointError, ConfigError, DataError
from passband.parts.identifiers import CHARACTERS, Bag, split
from passband.retrieval.featherweight import folds as folding
from passband.retrieval.featherweight.model import (
    WEIGHTS,
    WEIGHTS_13,
    DangerousWords,
    best_counts,
    choose,
    given_ranking,
    ranking,
)
from passband.retrieval.featherweight.selection import inner_cv
from passband.retrieval.featherweight.sweep import FLAG_ALL, THRESHOLDS, every_k, f2, sweep
from passband.retrieval.featherweight.system import Featherweight

# ---- splitting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "words"), [
    ("png_read_chunk", ["png", "read", "chunk"]),
    ("readChunk", ["read", "Chunk"]),
    ("HTTPServer", ["HTTPServer"]),
    ("abc12d", ["abc", "12d"]),
    ("x264Encode2Pass", ["x", "264", "Encode", "2", "Pass"]),
    ("TIFFReadJPEGTable", ["TIFF", "Read", "JPEG", "Table"]),
    ("__init__", ["init"]),
    ("___", [""]),
    ("a.b-c", ["a.b-c"]),
])
def test_names_are_split(name, words):
    assert split(name) == words


def letter_by_letter(name):
    """The same rules without regular expressions, each as a pass over the letters."""
    def passed(text, cut):
        out = text[:1]
        for before, after in pairwise(text):
            out += "_" + after if cut(before, after) else after
        return out

    lower = "abcdefghijklmnopqrstuvwxyz"
    text = passed(name, lambda a, b: a in lower + "0123456789" and b in lower.upper())
    text = passed(text, lambda a, b: a not in "0123456789" and b in "0123456789")
    for word in ("JPEG", "TIFF"):
        text = text.replace(word, f"_{word}_")
    while "__" in text:
        text = text.replace("__", "_")
    text = text[1:] if text.startswith("_") else text
    return (text[:-1] if text.endswith("_") else text).split("_")


@given(st.text(sorted(CHARACTERS) + list("aB1_JPEGTIFF"), min_size=1, max_size=20))
def test_splitting_is_that_of_single_passes(name):
    assert split(name) == letter_by_letter(name)


# ---- the plain formulation -----------------------------------------------------------------------


def plain_list(names, vulnerable, plus, minus, least):
    scores = {}
    for name, bad in zip(names, vulnerable, strict=True):
        for word in split(name):
            scores[word] = scores.get(word, 0) + (plus if bad else -minus)
    kept = [(word, value) for word, value in scores.items() if least < -900 or value >= least]
    return [word for word, _ in sorted(kept, key=lambda pair: -pair[1])]


def plain_score(name, words, rule):
    unique = set(split(name))
    if rule == "set":
        return len(unique & set(words)) / len(unique)
    total = sum(Fraction(len(words) - words.index(w), len(words)) for w in unique if w in words)
    return float(total / len(unique))


def plain_f2(names, vulnerable, words, threshold, rule):
    tp = fp = fn = 0
    for name, bad in zip(names, vulnerable, strict=True):
        flagged = plain_score(name, words, rule) > threshold
        tp, fp, fn = tp + (flagged and bad), fp + (flagged and not bad), fn + (not flagged and bad)
    return 5 * tp / (5 * tp + 4 * fn + fp) if 5 * tp + 4 * fn + fp else 0.0


def plain_search(names, vulnerable, words, rule):
    start, most = 1, len(words) + 1
    stop, step, best = most, max(1, len(words) // 20), (-1, None, None)
    while step >= 1:
        for k in [*range(start, stop, step), stop - 1]:
            for t in THRESHOLDS:
                value = plain_f2(names, vulnerable, words[:k], t, rule)
                if value > best[0]:
                    best = (value, k, t)
        start, stop, step = max(1, best[1] - step), min(most, best[1] + step), step // 10
    return best


def plain_choice(names, vulnerable, weights, least, rule):
    best = (-1,)
    for plus, minus in weights:
        words = plain_list(names, vulnerable, plus, minus, least)
        found = plain_search(names, vulnerable, words, rule)
        if found[0] >= best[0]:
            best = (*found, plus, minus)
    return best


def made(seed, count=40):
    """Names of few words with repetitions, single letters and duplicates."""
    rng = np.random.default_rng(seed)
    words = ["read", "copy", "Buf", "len", "x", "2", "get", "png", "JPEG", "free", "alloc", "io"]
    names = ["_".join(rng.choice(words, rng.integers(1, 6))) for _ in range(count)]
    danger = np.array(["copy" in n or "alloc" in n for n in names])
    vulnerable = rng.random(count) < np.where(danger, 0.7, 0.1)
    vulnerable[0] = True
    return names, vulnerable


@pytest.mark.parametrize("rule", ["set", "rank"])
@pytest.mark.parametrize("least", [-999.0, 0.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_choice_is_that_of_the_plain_formulation(seed, least, rule):
    names, vulnerable = made(seed)
    weights = WEIGHTS if rule == "set" else WEIGHTS_13[::4]
    value, k, threshold, plus, minus = plain_choice(names, vulnerable, weights, least, rule)
    choice, words = best_counts(Bag.of(names), vulnerable, weights, least, rule)
    bag = Bag.of(names)
    assert [bag.vocabulary[w] for w in words.order] == plain_list(
        names, vulnerable, plus, minus, least
    )
    assert (choice.plus, choice.minus, choice.k, choice.threshold) == (plus, minus, k, threshold)
    assert choice.f2 == value


@pytest.mark.parametrize("rule", ["set", "rank"])
def test_every_k_and_threshold_has_the_plain_f2(rule):
    names, vulnerable = made(7, count=25)
    bag = Bag.of(names)
    words = ranking(bag, vulnerable, 3, 2)
    texts = [bag.vocabulary[w] for w in words.order]
    thresholds = (FLAG_ALL, *THRESHOLDS, 0.5, 1 / 3, 0.25, 1.0)
    table = sweep(bag, vulnerable, words.rank, len(texts), rule, thresholds).f2
    for k in range(1, len(texts) + 1):
        for row, t in enumerate(thresholds):
            assert table[row, k] == plain_f2(names, vulnerable, texts[:k], t, rule), (k, t)
    best = every_k(sweep(bag, vulnerable, words.rank, len(texts), rule))
    assert best.f2 == table[1 : 1 + len(THRESHOLDS), 1:].max()


def test_names_of_words_that_are_not_listed():
    bag = Bag.of(["a_b", "c"])
    words = ranking(bag, np.array([True, False]), 1, 1, min_score=0.0)
    assert [bag.vocabulary[w] for w in words.order] == ["a", "b"]
    table = sweep(bag, np.array([True, False]), words.rank, 2, "set")
    assert table.true[:, 2].tolist() == [1] * 13
    assert not table.false.any()


def test_an_empty_list_flags_nothing():
    choice, words = best_counts(
        Bag.of(["a", "b"]), np.array([True, False]), ((1, 1),), min_score=5.0
    )
    assert (len(words.order), choice.k, choice.f2) == (0, 0, 0.0)


def test_f2_by_hand_and_by_scikit_learn():
    from sklearn.metrics import fbeta_score

    assert float(f2(2, 1, 3)) == pytest.approx(10 / 15)
    assert float(f2(0, 0, 0)) == 0.0
    truth, found = np.array([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 1, 0, 0])
    assert float(f2(2, 1, 3)) == pytest.approx(fbeta_score(truth, found, beta=2))


# ---- folds ---------------------------------------------------------------------------------------


def test_folds_are_those_of_the_released_code():
    """Its shuffle is NumPy's global one, seeded with 99, of a list; pieces of N // 5 + 1."""
    state = np.random.get_state()
    np.random.seed(99)
    names = [f"n{i}" for i in range(23)]
    shuffled = list(names)
    np.random.shuffle(shuffled)
    np.random.set_state(state)
    assert [names[i] for i in folding._order(23, 99)] == shuffled
    place = folding._cut(np.zeros(23, bool), 5, 99)
    assert [place[names.index(n)] for n in shuffled] == [i // 5 for i in range(23)]


def test_a_fold_is_chosen_on_the_others_and_scored_by_hand():
    names, vulnerable = made(3, count=60)
    table = folding.cross_validate(names, vulnerable, weights=((2, 1), (1, 1)))
    order = folding._order(60, 99)
    size = 60 // 5 + 1
    for number, fold in enumerate(table):
        test = order[number * size : (number + 1) * size]
        train = [i for i in order if i not in set(test)]
        pick = lambda places: ([names[i] for i in places], vulnerable[list(places)])  # noqa: E731
        value, k, t, plus, minus = plain_choice(*pick(train), ((2, 1), (1, 1)), -999, "set")
        words = plain_list(*pick(train), plus, minus, -999)
        assert fold.best_train == value
        assert fold.predicted == plain_f2(*pick(test), words[:k], t, "set")
        assert fold.best_test == plain_search(*pick(test), words, "set")[0]
        assert fold.words == len(words)
        assert fold.flag_all == plain_f2(*pick(test), words, -1, "set")


def test_leaving_a_project_out_leaves_its_names_out():
    names = ["copy_a", "get_a", "copy_b", "get_b", "copy_a", "get_c"]
    vulnerable = [True, False, True, False, True, False]
    projects = ["x", "x", "y", "y", "z", "z"]
    table = folding.leave_one_project_out(names, vulnerable, projects)
    assert [fold.name for fold in table] == ["x", "y", "z"]
    assert table[0].words == 4  # copy, b, get, c: copy_a of z occurs in x as well
    with pytest.raises(DataError, match="1 project"):
        folding.leave_one_project_out(names, vulnerable, ["x"] * 6)


def test_too_few_vulnerable_names_for_the_folds():
    with pytest.raises(DataError, match="2 vulnerable names for 5 folds"):
        folding.cross_validate(["a", "b", "c", "d"], [True, True, False, False])
    # Seven of 200 as they fall: some fold has none, dealt out each has one.
    names, labels = [f"w{i}" for i in range(200)], np.arange(200) < 5
    with pytest.raises(DataError, match="has no vulnerable name"):
        folding.cross_validate(names, labels)
    assert len(folding.cross_validate(names, labels, stratified=True)) == 5


# ---- selection -----------------------------------------------------------------------------------


def test_selection_inside_promises_less_and_keeps_it():
    gaps = []
    for seed in range(2000, 2005):
        train, test = halves(800, 40, seed)
        promised, kept = {}, {}
        for kind in ("training", "inner-cv"):
            system = Featherweight.from_preset("paper", selection=kind)
            promised[kind] = system.fit(Data(train=train))["f2"]
            found = system.flag(test.names).flags
            hits = int((found & test.vulnerable).sum())
            kept[kind] = float(f2(hits, int(found.sum()) - hits, test.positives))
        gaps.append([promised[k] - kept[k] for k in promised])
    training, inner = np.mean(gaps, axis=0)
    assert training > 0.1
    assert abs(inner) < training / 2


def test_where_words_say_nothing_everything_is_flagged():
    """Names of one word each, all distinct: the best that can be done is to flag all."""
    names = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(120)]
    choice, _ = inner_cv(Bag.of(names), np.arange(120) % 4 == 0)
    assert choice.threshold == FLAG_ALL
    assert choice.f2 == pytest.approx(float(f2(30, 90, 30)))


# ---- the model and its file ----------------------------------------------------------------------


def test_the_model_is_a_file_that_can_be_edited(tmp_path):
    names, vulnerable = made(5)
    model = choose(names, vulnerable)
    path = model.save(tmp_path / "words.json")
    again = DangerousWords.open(path)
    assert again == model
    facts = json.loads(path.read_text())
    assert facts["words"][0] == "{} {} {}".format(*model.top(1)[0])
    facts["words"].insert(0, "strcpy 1 0")
    facts["k"], facts["threshold"] = 1, 0.3
    path.write_text(json.dumps(facts))
    edited = DangerousWords.open(path)
    assert edited.flags(["my_strcpy", "copy"]).tolist() == [True, False]
    assert edited.why("my_strcpy_fast") == [("strcpy", pytest.approx(1 / 3))]


@pytest.mark.parametrize(("change", "message"), [
    ({"format": 9}, "format 9"),
    ({"words": ["copy"]}, "word 1 of"),
    ({"words": ["a 1 0", "a 2 0"]}, "'a' is twice"),
    ({"k": -1}, "k = -1"),
    ({"rule": "sum"}, "rule 'sum'"),
])
def test_a_damaged_model_is_named(tmp_path, change, message):
    path = choose(["copy", "get"], [True, False]).save(tmp_path / "words.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises((CheckpointError, DataError), match=message):
        DangerousWords.open(path)


def test_contributions_sum_to_the_score():
    names, vulnerable = made(9)
    for rule in ("set", "rank"):
        model = choose(names, vulnerable, rule=rule)
        for name, value in zip(names, model.scores(names), strict=True):
            assert sum(share for _, share in model.why(name)) == pytest.approx(value)
            listed = list(model.words[: model.length])
            assert value == plain_score(name, listed, rule)


def test_k_above_the_list_is_clipped():
    model = DangerousWords(("a",), (1,), (0,), k=99, threshold=0.5, rule="rank")
    assert model.scores(["a", "b"]).tolist() == [1.0, 0.0]


def test_words_can_be_scored_by_anything():
    bag = Bag.of(["a_b", "c", "__"])
    words = given_ranking(bag, np.array([0.2, 0.9, 0.1, 1.0]), min_score=0.15)
    assert [bag.vocabulary[w] for w in words.order] == ["b", "a"]  # the empty word is none


# ---- the system ----------------------------------------------------------------------------------


def test_saved_words_can_be_edited_in_the_folder(tmp_path):
    train, _ = halves(200, 20, 0)
    system = passband.create("featherweight", "smoke")
    system.fit(Data(train=train))
    folder = system.save(tmp_path / "saved")
    path = folder / "config.json"
    facts = json.loads(path.read_text())
    word = facts["extra"]["model"]["words"][0].split()[0]
    assert word == system.top_words(1)[0][0]
    facts["extra"]["model"]["words"][0] = "harmless 1 0"
    path.write_text(json.dumps(facts))
    again = passband.load(folder)
    assert again.flag([word]).scores[0] == 0.0
    assert again.flag(["harmless"]).scores[0] == 1.0


def test_the_network_scores_words_instead_of_counts():
    train, _ = halves(20, 5, 0)
    system = Featherweight.from_preset("smoke", words="network", min_score=0.0)
    found = system.fit(Data(train=train), passband.bench.budget.Budget(steps=5))
    assert found["steps"] == 5
    assert len(system.model.words) == len(Bag.of(train.names).vocabulary)
    with pytest.raises(ConfigError, match="selection = training"):
        Featherweight.from_preset("smoke", words="network", selection="inner-cv")


def test_wrong_names_are_counted_and_get_no_score():
    train, _ = halves(100, 10, 0)
    system = Featherweight.from_preset("smoke")
    with pytest.raises(ConfigError, match="learned nothing"):
        system.flag("a")
    system.fit(Data(train=train))
    with pytest.warns(passband.errors.PassbandWarning, match="1 other characters, 1 too long"):
        found = system.flag([train.names[0], "größe", "x" * 51])
    assert np.isnan(found.scores).tolist() == [False, True, True]
    assert not found.flags[1:].any()
    with pytest.raises(DataError, match="a name is 3"):
        system.flag(["a", 3])
    with pytest.raises(DataError, match="0 vulnerable"):
        system.fit(Data(train=Named(("a", "b"), np.zeros(2, bool))))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["copy_a", "get_b", "x", "alloc_2", "readJPEG"]), max_size=8))
def test_a_name_scores_the_same_in_any_company(names):
    model = choose(["copy_a", "alloc_b", "get_b", "x"], [True, True, False, False])
    alone = [float(model.scores([name])[0]) for name in names]
    assert model.scores(names).tolist() == alone
