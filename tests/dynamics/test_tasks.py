"""What the tasks measure, by systems whose answers are known; and what the report shows of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, roc_auc_score

from passband.bench.task import Artifact, Data
from passband.data.labelled.labelled import Labelled
from passband.dynamics.pictures import draw
from passband.dynamics.scores import auroc, confusion, evaluated, memory
from passband.dynamics.tasks import TASKS, Classification


class Oracle:
    """Answers from a table: the test's truth, and the given labels of some training examples."""

    verbs = ("classify",)
    id = "oracle"

    def __init__(self, data: Data[Labelled], learned: float) -> None:
        self.answers = {}
        for x, y in zip(data.test.x, data.test.y, strict=True):
            self.answers[x.numpy().tobytes()] = int(y)
        wrong = data.train.wrong.nonzero().ravel()
        self.memorised = set(wrong[: round(learned * len(wrong))].tolist())
        for i, x in enumerate(data.train.x):
            known = data.train.y if i in self.memorised else data.train.right
            self.answers[x.numpy().tobytes()] = int(known[i])

    def classify(self, x: np.ndarray) -> np.ndarray:
        return np.array([self.answers[row.tobytes()] for row in x])

    def suspicion(self, labelled: Labelled) -> np.ndarray:
        return (torch.as_tensor(self.classify(labelled.x.numpy())) != labelled.y).double().numpy()


@pytest.mark.parametrize("name", ["digits", "digits-noisy", "digits-noisy-pair", "digits-few"])
@pytest.mark.parametrize("learned", [0.0, 0.25, 1.0])
def test_a_known_answer_has_known_scores(name: str, learned: float) -> None:
    task = TASKS[name]
    data = task.data(seed=1, size="smoke")
    assert data.for_fit().test is None
    found = task.evaluate(Oracle(data, learned), data)
    wrong = int(data.train.wrong.sum())
    assert found["accuracy"] == 100.0
    assert (wrong > 0) == ("noisy" in name)
    if wrong:
        share = round(learned * wrong) / wrong
        assert found["memorised"] == pytest.approx(100 * share)
        assert found["recovered"] == pytest.approx(100 * (1 - share))
        # Those that are not memorised stand above all others, which tie.
        assert found["flag_auroc"] == pytest.approx(1 - share / 2)
    else:
        assert set(found) == {"accuracy"}


def test_the_worst_group_is_named_and_only_what_is_declared_is_reported() -> None:
    data = TASKS["digits"].data(size="smoke")
    system = Oracle(data, 0.0)
    groups = torch.arange(len(data.test)) % 3
    test = replace(data.test, groups=groups, group_names=("a", "b", "c"))
    y = test.y.clone()
    y[groups == 1] = (y[groups == 1] + 1) % 10  # a third is answered wrongly
    y[1] = test.y[1]
    data = replace(data, test=replace(test, y=y))
    system.diagnose = lambda data: {"undeclared": 1.0}
    found = TASKS["digits"].evaluate(system, data)
    assert found == {
        "accuracy": pytest.approx(100 * 201 / 300), "worst_group": pytest.approx(1.0)
    }
    assert evaluated(system, data)["undeclared"] == 1.0


def test_test_labels_are_judged_by_the_truth_where_it_is_known() -> None:
    data = TASKS["digits"].data(size="smoke")
    system = Oracle(data, 0.0)
    noisy = data.test.relabelled((data.test.y + 1) % 10)
    assert TASKS["digits"].evaluate(system, replace(data, test=noisy)) == {"accuracy": 100.0}


def test_scores_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 20, 200) / 20, rng.random(200) < 0.3
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    a, b = rng.integers(0, 5, 300), rng.integers(0, 5, 300)
    ours = confusion(torch.from_numpy(a), torch.from_numpy(b), 6)
    np.testing.assert_array_equal(ours, confusion_matrix(b, a, labels=range(6)))


def test_memory_counts_wrong_rows_only() -> None:
    truth = torch.tensor([0, 0, 0, 1, 2])
    labels = torch.tensor([0, 1, 2, 1, 0])
    found = memory(torch.tensor([2, 1, 0, 0, 1]), labels, truth)  # wrong rows: 1, 2, 4
    assert found == {"memorised": pytest.approx(100 / 3), "recovered": pytest.approx(100 / 3)}


def test_pictures_show_confusion_suspects_and_what_the_system_adds(tmp_path: Path) -> None:
    task: Classification = TASKS["digits-noisy"]  # type: ignore[assignment]
    data = task.data(size="smoke")
    system = Oracle(data, 0.5)
    own = Artifact("table", "Own", "own.json")
    system.pictures = lambda data, folder: [own]
    artifacts = task.artifacts(system, data, tmp_path)
    assert [a.file for a in artifacts] == ["confusion.svg", "suspects.svg", "own.json"]
    for artifact in artifacts[:2]:
        assert (tmp_path / artifact.file).read_text().count("<svg") == 1
    assert "100.0 %" in artifacts[0].caption
    rows = Labelled(torch.randn(30, 4), torch.arange(30) % 3, ("a", "b", "c"))
    plain = Data(train=rows.relabelled(rows.y.flip(0)), test=rows)
    shown = draw(Oracle(plain, 0.0), plain, tmp_path / "rows")
    assert [a.file for a in shown] == ["confusion.svg"]  # rows of numbers can't be drawn
