"""What Rocchio and RM3 share: nothing is trained, statistics come with the index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from passband.bench.budget import Budget
from passband.bench.system import Config, Monitor
from passband.bench.task import Data
from passband.retrieval.first_stage import Bm25Stage, FirstStage, LatentStage, SavedStage
from passband.retrieval.impacts import Words
from passband.retrieval.prf import FeedbackRetriever, blocks


class ClassicConfig(Config):
    """The first search by words."""

    feedback: int = Field(3, ge=0, le=1000, description="passages that are read")
    k1: float = Field(0.9, ge=0, le=10, description="saturation of repeated words in BM25")
    b: float = Field(0.4, ge=0, le=1, description="how much a document's length counts in BM25")
    stem: str | None = Field("english", description="language of the stemmer; null: none")


class ClassicPRF(FeedbackRetriever):
    """Base of the baselines that revise a query by a formula."""

    Config: ClassVar[type[Config]] = ClassicConfig
    needs_fit: ClassVar[bool] = False

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._stage: FirstStage | None = None

    @property
    def stage(self) -> FirstStage:
        if self._stage is None:
            self._stage = self._fresh()
        return self._stage

    def _fresh(self) -> FirstStage:
        c = self.config
        kind = getattr(c, "first_stage", "bm25")
        impacts = Bm25Stage(Words(c.stem), c.k1, c.b)
        if kind == "bm25":
            return impacts
        return LatentStage(impacts, c.axes) if kind == "lsa" else SavedStage(kind)

    def fit(
        self, data: Data[Any], budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        """Counts the corpus; there is nothing to train."""
        self.stage.prepare(blocks(data.train.corpus))
        return {"steps": 0, "selected": "closed form"}

    def state(self) -> dict[str, Any]:
        return self.stage.state()

    def extra(self) -> dict[str, Any]:
        return {"stage": self.stage.extra()}

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        stage = self._fresh() if "class" not in extra["stage"] else (
            SavedStage.restore(state, extra["stage"])
        )
        if not isinstance(stage, SavedStage):
            stage.load(state, extra["stage"])
        self._stage = stage

    def parameter_count(self) -> int:
        """Nothing is learned: statistics are no parameters."""
        return 0
