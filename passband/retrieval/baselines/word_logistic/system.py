"""Logistic regression on the words of names (scikit-learn)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from scipy import sparse
from scipy.special import expit

from passband.bench.budget import Budget
from passband.bench.system import Config, Monitor
from passband.bench.task import Data
from passband.data.names.named import Named
from passband.errors import MissingExtraError
from passband.parts.identifiers import Bag
from passband.retrieval.flagger import Flagger
from passband.retrieval.flags import Array


class LogisticConfig(Config):
    """Regression, and the threshold of flags."""

    penalty: float = Field(1.0, gt=0, description="inverse of scikit-learn's C: weight of L2")
    balanced: bool = Field(True, description="both classes weigh the same")
    folds: int = Field(
        5, ge=2, le=20, description="of the cross-validation that sets the threshold by F2"
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="names with a higher score are flagged; null: by F2"
    )


class WordLogistic(Flagger):
    """
    >>> system = WordLogistic.from_preset("small", threshold=0.5)
    """

    Config: ClassVar[type[Config]] = LogisticConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "small": {}, "smoke": {"folds": 2}}

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._words: dict[str, int] = {}
        self._weights = np.zeros(1)  # of the words, then the bias
        self._threshold = 0.5

    def fit(
        self, data: Data[Named], budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        try:
            from sklearn.linear_model import LogisticRegression
            from sklearn.model_selection import StratifiedKFold, cross_val_predict
        except ModuleNotFoundError:
            raise MissingExtraError("scikit-learn", "retrieval") from None
        c, named = self.config, data.train.needs(1, "a regression")
        bag = Bag.of(named.names)
        self._words = {word: place for place, word in enumerate(bag.vocabulary)}
        x, y = _counts(bag), named.vulnerable
        model = LogisticRegression(
            C=1 / c.penalty, class_weight="balanced" if c.balanced else None,
            max_iter=budget.steps or 1000,
        )
        folds = min(c.folds, named.positives)
        if c.threshold is not None or folds < 2:
            self._threshold = 0.5 if c.threshold is None else c.threshold
        else:
            dealt = StratifiedKFold(folds, shuffle=True, random_state=self.seed % 2**32)
            with _as_far_as_it_gets():
                held_out = cross_val_predict(model, x, y, cv=dealt, method="predict_proba")[:, 1]
            self._threshold = _best_threshold(held_out, y)
        with _as_far_as_it_gets():
            model.fit(x, y)
        self._weights = np.append(model.coef_[0], model.intercept_)
        self.fitted = True
        selected = "highest F2 of held-out folds" if c.threshold is None else "last"
        return {"steps": int(model.n_iter_[0]), "examples": len(named), "selected": selected}

    @property
    def threshold(self) -> float:
        return self._threshold

    def scores(self, names: Sequence[str]) -> Array:
        bag = Bag.of(names, tuple(self._words))
        known = _counts(bag)[:, : len(self._words)]
        return expit(known @ self._weights[:-1] + self._weights[-1])

    def why(self, name: str) -> Sequence[tuple[str, float]]:
        """Words that raise the odds, each with its logarithm of the odds ratio."""
        found = {word: float(self._weights[self._words[word]])
                 for word in Bag.of([name]).vocabulary if word in self._words}
        return sorted(
            ((word, value) for word, value in found.items() if value > 0),
            key=lambda pair: -pair[1],
        )

    def state(self) -> dict[str, Any]:
        return {"weights": self._weights, "threshold": np.array([self._threshold])}

    def extra(self) -> dict[str, Any]:
        return {"words": list(self._words), "fitted": self.fitted}

    def parameter_count(self) -> int:
        return len(self._weights)

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        self._weights = np.asarray(state["weights"])
        self._threshold = float(np.asarray(state["threshold"])[0])
        self._words = {word: place for place, word in enumerate(extra["words"])}
        self.fitted = bool(extra["fitted"])


@contextmanager
def _as_far_as_it_gets() -> Iterator[None]:
    """A budget may end before the solver converges: that is what a budget is for."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _counts(bag: Bag) -> sparse.csr_array:
    """[N, W] occurrences."""
    ones = np.ones(len(bag.words))
    shape = (len(bag), len(bag.vocabulary))
    return sparse.coo_array((ones, (bag.rows, bag.words)), shape=shape).tocsr()


def _best_threshold(scores: Array, truth: Array) -> float:
    """Half-way between the two neighbouring scores where F2 of flagging those above is best."""
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(truth[order])
    flagged = np.arange(1, len(ranked) + 1)
    f2 = 5 * hits / (flagged + 4 * truth.sum())
    last = np.append(ranked[:-1] != ranked[1:], True)  # equal scores are flagged together
    best = int(np.where(last, f2, -1.0).argmax())
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)
