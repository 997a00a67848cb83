"""Dangerous words as a system: learned from labelled names, applied to names and source trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from passband.bench.budget import Budget
from passband.bench.system import Config, Monitor
from passband.bench.task import Data
from passband.data.names.named import Named
from passband.errors import ConfigError
from passband.parts.identifiers import Bag
from passband.retrieval.featherweight.folds import Chooser
from passband.retrieval.featherweight.model import (
    NO_FILTER,
    WEIGHTS,
    WEIGHTS_13,
    Choice,
    DangerousWords,
    best_counts,
    best_of,
    built,
    given_ranking,
)
from passband.retrieval.featherweight.selection import inner_cv
from passband.retrieval.featherweight.sweep import Array
from passband.retrieval.flagger import Flagger

if TYPE_CHECKING:
    from passband.retrieval.character_flagger import CharacterFlagger


class FeatherweightConfig(Config):
    """What makes a word dangerous, and how a name's words decide."""

    words: Literal["counts", "network"] = Field(
        "counts", description="scores of words: counts in labelled names, or a character network's"
    )
    network: str = Field(
        "", description="folder of a saved lavdnn that scores words; empty: one is trained"
    )
    network_preset: Literal["paper", "small", "smoke"] = Field(
        "small", description="of the lavdnn that is trained where words = network"
    )
    min_score: float = Field(
        NO_FILTER, ge=-999, description="words with a lower score are left out; -999: none is"
    )
    weights: tuple[tuple[float, float], ...] = Field(
        WEIGHTS_13, min_length=1, description="pairs (plus, minus) of counts that are tried"
    )
    rule: Literal["set", "rank"] = Field(
        "set", description="a name's score: the share of its words on the list, or their mean rank"
    )
    selection: Literal["training", "inner-cv"] = Field(
        "training", description="where weights, length and threshold are chosen: on the names that "
        "were counted, as in the paper, or by cross-validation inside them",
    )
    search: Literal["coarse", "all"] = Field(
        "coarse", description="lengths tried: the paper's search from coarse to fine, or every one"
    )
    folds: int = Field(5, ge=2, le=20, description="of the cross-validation inside")

    @model_validator(mode="after")
    def _fits(self) -> FeatherweightConfig:
        if self.words == "network" and self.selection == "inner-cv":
            raise ValueError("selection = training where words = network")
        return self


class Featherweight(Flagger):
    """
    >>> system = Featherweight.from_preset("small", rule="rank")

    model   the fitted `DangerousWords`: `system.model.save("words.json")`
    scorer  a fitted network in place of the configured one, where words = network
    """

    Config: ClassVar[type[Config]] = FeatherweightConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"weights": WEIGHTS},
        "paper-filtered": {"weights": WEIGHTS, "min_score": 0.0},
        "paper-vdisc": {"weights": ((10, 1),)},
        "paper-network": {"words": "network", "min_score": 0.0, "network_preset": "paper"},
        "code": {"rule": "rank"},
        "small": {"selection": "inner-cv"},
        "smoke": {"network_preset": "smoke"},
    }

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._model: DangerousWords | None = None
        self.scorer: CharacterFlagger | None = None

    @property
    def model(self) -> DangerousWords:
        if self._model is None:
            raise ConfigError(
                "featherweight has learned nothing yet", expected="a fitted system",
                mend="call fit(data), or load a trained one",
            )
        return self._model

    @model.setter
    def model(self, model: DangerousWords) -> None:
        self._model = model

    @property
    def fitted(self) -> bool:  # type: ignore[override]
        return self._model is not None

    def fit(
        self, data: Data[Named], budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        c, named = self.config, data.train.needs(1, "words to be counted")
        bag, labels = Bag.of(named.names), named.vulnerable
        spent: dict[str, Any] = {"steps": 0}
        if c.words == "network":
            scorer, spent = self._scorer(data, budget, monitor)
            words = given_ranking(bag, scorer.word_scores(bag.vocabulary), c.min_score)
            found = best_of(bag, labels, words, c.rule, c.search)
            choice = Choice(0, 0, found.k, found.threshold, found.f2)
        else:
            choice, words = self.chooser()(bag, labels)
        self._model = built(
            bag, labels, words, choice, c.rule, selection=c.selection, scored_by=c.words,
            left_out=named.note,
        )
        selected = f"highest F2 of {c.selection}"
        return {**spent, "examples": len(named), "selected": selected, "f2": choice.f2}

    def chooser(self) -> Chooser:
        """The configured choice, for `folds.cross_validate`."""
        c = self.config
        if c.selection == "inner-cv":
            return lambda bag, labels: inner_cv(
                bag, labels, c.weights, c.min_score, c.rule, folds=c.folds, seed=self.seed
            )
        return lambda bag, labels: best_counts(
            bag, labels, c.weights, c.min_score, c.rule, c.search
        )

    def _scorer(self, data: Data[Named], budget: Budget, monitor: Monitor | None) -> Any:
        from passband.retrieval.character_flagger import CharacterFlagger

        if self.scorer is not None:
            return self.scorer, {"steps": 0}
        if self.config.network:
            return CharacterFlagger.load(self.config.network), {"steps": 0}
        scorer = CharacterFlagger.from_preset(self.config.network_preset, seed=self.seed)
        return scorer, scorer.fit(data, budget, monitor)

    # ---- what Flagger asks for -----------------------------------------------------------------

    @property
    def threshold(self) -> float:
        return self.model.threshold

    def scores(self, names: Sequence[str]) -> Array:
        return self.model.scores(names)

    def why(self, name: str) -> Sequence[tuple[str, float]]:
        return self.model.why(name)

    def top_words(self, n: int = 20) -> tuple[tuple[str, int, int], ...]:
        """(word, occurrences in vulnerable names, in benign names), the most dangerous first."""
        return self.model.top(n)

    def about(self) -> dict[str, Any]:
        model = self.model
        return {
            **super().about(), "rule": model.rule, "words": model.length,
            "top": [word for word, _, _ in model.top(min(10, model.length))],
        }

    # ---- size and state ------------------------------------------------------------------------

    def parameter_count(self) -> int:
        """Words that count, and the four numbers that were chosen."""
        return 0 if self._model is None else self._model.length + 4

    def state(self) -> dict[str, Any]:
        about = self._model.about if self._model else {}
        # The words are text and lie in config.json, where a person can read and edit them.
        return {"trained_on": np.array([about.get("names", 0), about.get("vulnerable", 0)])}

    def extra(self) -> dict[str, Any]:
        return {} if self._model is None else {"model": self._model.to_json()}

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        model = extra.get("model")
        self._model = None if model is None else DangerousWords.from_json(model, "config.json")
