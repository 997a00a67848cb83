"""The character network against a letter-by-letter formulation, and the regression on words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from passband.bench.budget import Budget
from passband.bench.task import Data
from passband.data.names.parts import halves
from passband.parts.identifiers import LONGEST, split
from passband.retrieval.baselines.word_logistic.system import WordLogistic, _best_threshold
from passband.retrieval.character_flagger import CharacterFlagger
from passband.retrieval.character_lstm import (
    ALPHABET,
    LSTM,
    Both,
    CharacterLSTM,
    encode,
    vulnerability,
    word_scores,
)


def by_hand(layer: LSTM, x: np.ndarray, phi) -> np.ndarray:
    """[T, I] -> [T, H] with one equation a line, in float64."""
    kernel, recurrent, bias = (
        p.detach().double().numpy() for p in (layer.kernel, layer.recurrent, layer.bias)
    )
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    h = c = np.zeros(recurrent.shape[1])
    out = []
    for row in x:
        i, f, g, o = np.split(kernel @ row + recurrent @ h + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * phi(g)
        h = sigmoid(o) * phi(c)
        out.append(h)
    return np.array(out)


ELU = lambda v: np.where(v > 0, v, np.expm1(v))  # noqa: E731


@pytest.mark.parametrize(("activation", "phi"), [("elu", ELU), ("tanh", np.tanh)])
def test_the_cell_is_that_of_its_equations(activation, phi):
    torch.manual_seed(0)
    layer, x = LSTM(5, 7, activation).double(), torch.randn(3, 11, 5).double()
    for row, found in zip(x.numpy(), layer(x).detach().numpy(), strict=True):
        np.testing.assert_allclose(found, by_hand(layer, row, phi), atol=1e-12)


def test_with_tanh_it_is_the_library_s():
    torch.manual_seed(0)
    both, plain = Both(5, 7, "tanh"), nn.LSTM(5, 7, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for layer, end in ((both.ahead, ""), (both.backward_, "_reverse")):
            getattr(plain, f"weight_ih_l0{end}").copy_(layer.kernel)
            getattr(plain, f"weight_hh_l0{end}").copy_(layer.recurrent)
            getattr(plain, f"bias_ih_l0{end}").copy_(layer.bias)
            getattr(plain, f"bias_hh_l0{end}").zero_()
    x = torch.randn(2, 9, 5)
    torch.testing.assert_close(both(x), plain(x)[0])


def test_sizes_are_those_of_keras():
    """4 (inputs + units + 1) units a direction: the published summary, layer by layer."""
    network = CharacterLSTM(units=120)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    layers = (network.first, network.second, network.third, network.head)
    assert [count(layer) for layer in layers] == [89_760, 231_360, 346_560, 482]
    assert len(ALPHABET) == 66


def test_letters_are_placed_by_code_point():
    assert list(ALPHABET) == sorted(ALPHABET)
    row = encode(["a_9"])[0]
    assert [ALPHABET[i] for i in row] == ["a", "_", "9", *" " * 47]


def test_the_last_states_of_both_directions_are_read():
    torch.manual_seed(0)
    network = CharacterLSTM(units=3).eval()
    x = torch.nn.functional.one_hot(encode(["read_me"]), 66).float()
    hidden = network.second(network.first(x))
    ahead = network.third.ahead(hidden)[:, -1]
    back = LSTM(6, 3, "tanh")
    back.load_state_dict(network.third.backward_.state_dict())
    wanted = network.head(torch.cat([ahead, back(hidden.flip(1))[:, -1]], dim=1))
    torch.testing.assert_close(network(encode(["read_me"])), wanted)


def test_a_word_is_scored_at_its_most_dangerous_place():
    torch.manual_seed(1)
    network = CharacterLSTM(units=4).eval().requires_grad_(False)
    wanted = []
    for word in ("read_nothing", "a" * 50):
        places = range(LONGEST - len(word)) if len(word) < LONGEST else range(1)
        shifted = [(" " * s + word).ljust(LONGEST) for s in places]
        wanted.append(max(float(network(encode([t])).softmax(1)[0, 0]) for t in shifted))
    assert word_scores(network, ["read_nothing", "a" * 50]) == pytest.approx(wanted, rel=1e-5)


def test_dropout_is_the_same_at_all_letters():
    torch.manual_seed(0)
    network = CharacterLSTM(units=16, dropout=0.5).train()
    seen = []
    network.second.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network(encode(["read_file"]))
    dropped = (seen[0][0] == 0).float().mean(0)
    assert set(dropped.tolist()) == {0.0, 1.0}


def test_classes_weigh_the_same_and_noise_is_benign():
    """A network that can't tell names apart settles at the weighted share of class 0."""
    train, _ = halves(200, 20, 0)
    shares = {}
    for balanced in (True, False):
        system = CharacterFlagger.from_preset(
            "smoke", units=1, dropout=0.0, balanced=balanced, lr=0.05
        )
        system.fit(Data(train=train), Budget(steps=40))
        shares[balanced] = float(np.mean(system.flag(train.names).scores))
    assert 0.3 < shares[True] < 0.7
    assert shares[False] < 0.25


def test_an_obvious_word_is_learned():
    names = [f"{head}_{tail}" for head in ("copy", "view", "load", "size") for tail in "abcdefgh"]
    from passband.data.names.named import Named

    named = Named.labelled(names, [n.startswith("copy") for n in names])
    system = CharacterFlagger.from_preset("smoke", lr=3e-2)
    system.fit(Data(train=named), Budget(steps=80))
    assert (system.flag(names).flags == named.vulnerable).mean() > 0.95


def test_probabilities_do_not_depend_on_blocks():
    network = CharacterLSTM(units=4).eval()
    places = encode([f"n{i}" for i in range(700)])
    torch.testing.assert_close(
        vulnerability(network, places)[600:], vulnerability(network, places[600:])
    )


# ---- regression ----------------------------------------------------------------------------------


def test_the_regression_is_scikit_learn_s():
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, test = halves(300, 40, 0)
    system = WordLogistic.from_preset("small", threshold=0.5)
    system.fit(Data(train=train))
    plain = make_pipeline(
        CountVectorizer(analyzer=split), LogisticRegression(class_weight="balanced", max_iter=1000)
    )
    plain.fit(train.names, train.vulnerable)
    np.testing.assert_allclose(
        system.flag(test.names).scores, plain.predict_proba(test.names)[:, 1], atol=2e-3
    )


def test_the_threshold_is_the_best_of_all():
    rng = np.random.default_rng(0)
    truth = rng.random(80) < 0.3
    scores = (truth * 0.3 + rng.random(80)).round(1)
    from sklearn.metrics import fbeta_score

    every = [fbeta_score(truth, scores > t, beta=2) for t in np.linspace(-0.05, 1.35, 29)]
    found = fbeta_score(truth, scores > _best_threshold(scores, truth), beta=2)
    assert found == pytest.approx(max(every))


def test_what_counts_for_a_name():
    train, _ = halves(300, 40, 0)
    system = WordLogistic.from_preset("smoke")
    system.fit(Data(train=train))
    name = train.names[int(np.argmax(system.flag(train.names).scores))]
    reasons = system.why(name)
    assert reasons
    assert {word for word, _ in reasons} <= set(split(name))
    assert [value for _, value in reasons] == sorted((v for _, v in reasons), reverse=True)
