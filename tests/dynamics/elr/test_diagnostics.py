"""Suspects, memorisation and the theory, against counts by hand and other libraries."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_curve, roc_auc_score
from torch import nn

from passband.dynamics.elr.memorization import MemorizationTracker
from passband.dynamics.elr.model import ELRLoss
from passband.dynamics.elr.suspects import flag_mislabeled
from passband.dynamics.elr.theory import clusters, linear_memorisation
from passband.errors import ConfigError, DataError

TARGETS = torch.tensor([[0.6, 0.2, 0.1], [0.1, 0.1, 0.7], [0.0, 0.0, 0.0], [0.2, 0.25, 0.0]])


def test_flags_by_hand() -> None:
    found = flag_mislabeled(TARGETS, [1, 0, 1, 0], classes="abc", names=["w", "x", "y", "z"])
    assert found.index.tolist() == [1, 0, 3]  # row 2 was never seen
    assert found.suggested.tolist() == [2, 0, 1]
    torch.testing.assert_close(found.score, torch.tensor([8 / 9, 7 / 9, 5 / 9]))
    torch.testing.assert_close(found.scores, torch.tensor([7 / 9, 8 / 9, 0, 5 / 9]))
    assert found.table(1)["rows"][0][:4] == [1, "x", "a", "c"]


def test_tables_of_both_kinds(tmp_path) -> None:
    found = flag_mislabeled(TARGETS, torch.tensor([1, 0, 1, 0]), classes=("cat", "dog, big", "ox"))
    rows = list(csv.DictReader(found.save(tmp_path / "s.csv").open(newline="")))
    assert [(r["index"], r["label"], r["suggested"]) for r in rows] == [
        ("1", "cat", "ox"), ("0", "dog, big", "cat"), ("3", "cat", "dog, big"),
    ]
    told = json.loads(found.save(tmp_path / "s.json").read_text())
    assert told[0]["suggested"] == "ox" and told[0]["score"] == pytest.approx(8 / 9)
    with pytest.raises(DataError, match="csv"):
        found.save(tmp_path / "s.xlsx")


def test_judged_as_scikit_learn_does() -> None:
    rng = np.random.default_rng(0)
    targets = torch.from_numpy(rng.dirichlet([1, 1, 1], 200)).float()
    labels, wrong = rng.integers(3, size=200), rng.random(200) < 0.4
    found = flag_mislabeled(targets, labels)
    judged = found.judged(wrong)
    scores = 1 - targets.numpy()[np.arange(200), labels]
    assert judged["auroc"] == pytest.approx(roc_auc_score(wrong, scores))
    precision, recall, _ = precision_recall_curve(wrong, scores)
    assert judged["precision_at_recall"] == pytest.approx(precision[recall >= 0.9][-1])
    flagged = targets.numpy().argmax(1) != labels
    assert judged["precision"] == pytest.approx((flagged & wrong).sum() / flagged.sum())
    assert judged["recall"] == pytest.approx((flagged & wrong).sum() / wrong.sum())


@pytest.mark.parametrize("arguments", [
    {"labels": [0, 1]}, {"labels": [0, 1, 2, 3]}, {"labels": [0.0, 1, 2, 0]},
    {"labels": [0, 1, 2, 0], "names": ["a"]},
])
def test_labels_that_do_not_fit(arguments) -> None:
    with pytest.raises(DataError, match="expected"):
        flag_mislabeled(TARGETS, **arguments)
    with pytest.raises(DataError, match="marks"):
        flag_mislabeled(TARGETS, [0, 1, 2, 0]).judged([True])


def test_every_row_is_one_of_the_kinds() -> None:
    truth, noisy = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 1, 0, 1, 2])
    tracker = MemorizationTracker(torch.eye(5, 3), truth, noisy)
    found = tracker.count(torch.tensor([0, 2, 2, 1, 0]))
    assert found == pytest.approx({
        "clean_right": 0.5, "clean_missed": 0.5, "recovered": 1 / 3, "memorised": 1 / 3,
        "other": 1 / 3,
    })


def test_advice_where_early_learning_is_missing() -> None:
    x, truth = torch.eye(4), torch.arange(4)
    noisy = torch.tensor([0, 1, 3, 2])
    tracker = MemorizationTracker(x, truth, noisy)
    assert tracker.advice() == ""  # nothing was seen yet
    swapped = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        swapped.weight.copy_(torch.eye(4)[noisy].T)
    tracker(nn.Identity(), 0)  # untrained: not learned
    tracker(swapped, 1)
    assert not tracker.early_learning and "nothing for ELR" in tracker.advice()
    tracker(nn.Identity(), 2)
    assert tracker.early_learning and tracker.advice() == ""


def test_a_tracker_needs_both_kinds() -> None:
    y = torch.tensor([0, 1])
    for noisy in (y, 1 - y):
        with pytest.raises(DataError, match="labels are wrong"):
            MemorizationTracker(torch.eye(2), y, noisy)
    with pytest.raises(DataError, match="as many"):
        MemorizationTracker(torch.eye(2), y, y[:1])


def test_the_linear_story() -> None:
    story = linear_memorisation(seeds=[3, 4], lr=2.0, steps=400)
    assert (story.alignment[:, 0] > 0.7).all()
    assert (story.recovered.amax(1) > 0.5).all()
    assert (story.recovered[:, -1] < 0.05).all()
    assert (story.wrong.amax(1) > 0.5).all() and (story.clean[:, 1:] < 0.5).all()
    torch.testing.assert_close(story.memorised, 1 - story.recovered)


def test_gradient_descent_ends_where_logistic_regression_does() -> None:
    """More rows than a plane can part: the optimum is finite, and scikit-learn's is the same."""
    options = {"n": 200, "p": 4, "sigma": 1.0, "flip": 0.3}
    story = linear_memorisation(**options, lr=1.0, steps=3000, every=3000, seeds=[1])
    x, y, truth, _ = (part.numpy() for part in clusters(**options, seed=1))
    other = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(x, y)
    wrong = y != truth
    assert float(story.recovered[0, -1]) == pytest.approx(
        (other.predict(x)[wrong] == truth[wrong]).mean(), abs=1e-9
    )
    margin = y * (x @ other.coef_[0])
    assert float(story.wrong[0, -1]) == pytest.approx((1 / (1 + np.exp(margin)))[wrong].mean(),
                                                      rel=1e-4)


@pytest.mark.parametrize("options", [{"flip": 0.5}, {"flip": 0.0}, {"n": 0}, {"seeds": []}])
def test_stories_without_sense(options) -> None:
    with pytest.raises(ConfigError, match="expected"):
        linear_memorisation(**options)


def test_an_elr_loss_can_be_read() -> None:
    elr = ELRLoss(4, 3, storage="topk", k=3)
    elr.update(torch.arange(4), torch.eye(3)[[0, 1, 2, 0]] + 0.1)
    assert flag_mislabeled(elr, [0, 1, 0, 0]).index.tolist() == [2]
