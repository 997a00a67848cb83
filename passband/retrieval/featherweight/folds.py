"""The paper's evaluation: what is chosen on some names, scored on the others.

>>> names = [f"copy_{c}" for c in "abcde"] * 3 + [f"get_{c}" for c in "abcde"] * 9
>>> table = cross_validate(names, [True] * 15 + [False] * 45)
>>> len(table), round(mean(table, "predicted"), 3)
(5, 1.0)

Each fold tells `flag_all` (F2 of flagging every test name), `best_train` (what the choice got on
its own names), `predicted` (the honest figure) and `best_test` (an oracle: the best K and
threshold on the test names).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from passband.errors import DataError
from passband.parts.identifiers import Bag
from passband.retrieval.featherweight.model import (
    NO_FILTER,
    WEIGHTS,
    Choice,
    Ranking,
    best_counts,
    best_of,
)
from passband.retrieval.featherweight.sweep import (
    THRESHOLDS,
    Array,
    Rule,
    f2,
    scores,
    sorted_ranks,
)

SEED = 99  # of the paper's shuffle

# (bag, vulnerable) of training names -> what was chosen, and the list it was chosen of
Chooser = Callable[[Bag, Array], tuple[Choice, Ranking]]


@dataclass(frozen=True)
class Fold:
    """F2 of one fold, all in [0, 1]; `words` on the list, of which `choice.k` count."""

    name: str
    choice: Choice
    words: int
    flag_all: float
    best_train: float
    predicted: float
    best_test: float


def mean(table: Sequence[Fold], figure: str) -> float:
    """Mean of one figure over the folds."""
    return float(np.mean([getattr(fold, figure) for fold in table]))


def cross_validate(
    names: Sequence[str], vulnerable: Sequence[bool] | Array, folds: int = 5, *,
    chooser: Chooser | None = None, rule: Rule = "set",
    weights: Sequence[tuple[float, float]] = WEIGHTS, min_score: float = NO_FILTER,
    stratified: bool = False, seed: int = SEED,
) -> list[Fold]:
    """Choose on all folds but one, score on that one, for each in turn.

    names       [N]; the paper's order has benign names first
    chooser     how to choose; None: the paper's way with `weights` and `min_score`
    stratified  vulnerable names are dealt out evenly; the paper's folds are cut as they fall
    seed        of the shuffle
    Raises `DataError` for fewer vulnerable names than folds, or a fold without any.
    """
    labels = np.asarray(vulnerable, dtype=bool)
    if labels.sum() < folds:
        raise DataError(
            f"{labels.sum()} vulnerable names for {folds} folds", expected=f"at least {folds}",
            mend="ask for fewer folds, or give more names",
        )
    bag = Bag.of(names)
    place = (_dealt if stratified else _cut)(labels, folds, seed)
    order = _order(len(labels), seed)
    table = []
    for fold in range(folds):
        test, train = order[place[order] == fold], order[place[order] != fold]
        if not labels[test].any() and not stratified:
            raise DataError(
                f"fold {fold} has no vulnerable name", expected="one at least",
                mend="stratified=True deals them out",
            )
        table.append(evaluate(
            str(fold), bag.take(train), labels[train], bag.take(test), labels[test],
            chooser or _paper(rule, weights, min_score), rule,
        ))
    return table


def leave_one_project_out(
    names: Sequence[str], vulnerable: Sequence[bool] | Array, projects: Sequence[str], *,
    chooser: Chooser | None = None, rule: Rule = "set",
    weights: Sequence[tuple[float, float]] = WEIGHTS, min_score: float = NO_FILTER,
) -> list[Fold]:
    """Test on each project in turn; training names that occur in it as well are left out.

    Of words with equal scores, those of vulnerable names come first, as in the released code.
    """
    labels = np.asarray(vulnerable, dtype=bool)
    owners = np.asarray(projects)
    kinds = list(dict.fromkeys(projects))
    if len(kinds) < 2:
        raise DataError(f"{len(kinds)} project", expected="two or more to leave one out")
    bag, texts = Bag.of(names), np.asarray(names)
    table = []
    for kind in kinds:
        test = np.flatnonzero(owners == kind)
        train = np.flatnonzero((owners != kind) & ~np.isin(texts, texts[test]))
        train = train[np.argsort(~labels[train], kind="stable")]
        table.append(evaluate(
            kind, bag.take(train), labels[train], bag.take(test), labels[test],
            chooser or _paper(rule, weights, min_score), rule,
        ))
    return table


def evaluate(
    name: str, train: Bag, vulnerable: Array, test: Bag, truth: Array, chooser: Chooser, rule: Rule
) -> Fold:
    """One fold. Both bags share a vocabulary."""
    choice, words = chooser(train, vulnerable)
    found = scores(sorted_ranks(test, words.rank), test.sizes, min(choice.k, len(words.order)),
                   rule) > choice.threshold
    positives = int(truth.sum())
    return Fold(
        name, choice, len(words.order), float(f2(positives, len(truth) - positives, positives)),
        choice.f2, float(f2((found & truth).sum(), (found & ~truth).sum(), positives)),
        best_of(test, truth, words, rule).f2,
    )


def _paper(rule: Rule, weights: Sequence[tuple[float, float]], min_score: float) -> Chooser:
    return lambda bag, vulnerable: best_counts(
        bag, vulnerable, weights, min_score, rule, thresholds=THRESHOLDS
    )


def _order(n: int, seed: int) -> Array:
    """The released code shuffles a list with NumPy's legacy generator: so does this."""
    order = list(range(n))
    np.random.RandomState(seed).shuffle(order)
    return np.array(order)


def _cut(labels: Array, folds: int, seed: int) -> Array:
    """[N] fold of each name: contiguous pieces of N // folds + 1 of the shuffled names."""
    place = np.empty(len(labels), np.int64)
    place[_order(len(labels), seed)] = np.arange(len(labels)) // (len(labels) // folds + 1)
    return place


def _dealt(labels: Array, folds: int, seed: int) -> Array:
    """[N] fold of each name: shuffled names of each label dealt out in turn."""
    order = _order(len(labels), seed)
    place = np.empty(len(labels), np.int64)
    for label in (True, False):
        mine = order[labels[order] == label]
        place[mine] = np.arange(len(mine)) % folds
    return place


def splits(labels: Array, folds: int, seed: int) -> Iterator[tuple[Any, Any]]:
    """(training places, held-out places) of stratified folds."""
    place = _dealt(labels, folds, seed)
    for fold in range(folds):
        yield np.flatnonzero(place != fold), np.flatnonzero(place == fold)
