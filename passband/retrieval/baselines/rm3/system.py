"""RM3 as a system, on BM25."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from passband.bench.system import Config
from passband.retrieval.baselines.rm3.model import rm3
from passband.retrieval.classic_prf import ClassicConfig, ClassicPRF
from passband.retrieval.first_stage import Bm25Stage
from passband.retrieval.prf import Found

if TYPE_CHECKING:
    from passband.retrieval.index import Index


class RM3Config(ClassicConfig):
    """How many passages and words, and how much of the query stays."""

    feedback: int = Field(10, ge=0, le=1000, description="passages that are read")
    terms: int = Field(10, gt=0, description="words of the relevance model")
    weight: float = Field(0.5, ge=0, le=1, description="of the query itself")
    common: float = Field(
        0.1, gt=0, le=1, description="words in a larger share of the documents are not added"
    )


class RM3(ClassicPRF):
    """
    >>> system = RM3.from_preset("small", common=1.0)
    >>> _ = system.index(["ice melts in spring", "spring water", "moss"])
    >>> system.search("ice", k=2).ids
    [['0', '1']]
    """

    Config: ClassVar[type[Config]] = RM3Config
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "small": {}, "smoke": {}}

    def revise(self, queries: Sequence[str], found: Found, index: Index) -> Any:
        c, stage = self.config, self.stage
        assert isinstance(stage, Bm25Stage)
        places = sorted({p for some in found.places for p in some})
        counts = stage.tokens.count(self.texts(places, index)) if places else (
            stage.tokens.count([""])
        )
        where = {p: i for i, p in enumerate(places)}
        allowed = stage.statistics.frequencies <= c.common * stage.statistics.documents
        return rm3(
            stage.queries(queries), [counts[[where[p] for p in some]] for some in found.places],
            found.scores, weight=c.weight, terms=c.terms, allowed=allowed,
        )
