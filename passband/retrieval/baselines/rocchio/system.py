"""Rocchio as a system: on BM25 impacts, on latent axes or on a saved retriever's vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from passband.bench.system import Config
from passband.retrieval.baselines.rocchio.model import rocchio
from passband.retrieval.classic_prf import ClassicConfig, ClassicPRF
from passband.retrieval.prf import Found

if TYPE_CHECKING:
    from passband.retrieval.index import Index


class RocchioConfig(ClassicConfig):
    """How far the query moves, and by how many passages."""

    first_stage: str = Field(
        "bm25", min_length=1,
        description="of the first search: bm25, lsa (dense), or the folder of a saved retriever",
    )
    alpha: float = Field(1.0, ge=0, le=100, description="weight of the query")
    beta: float = Field(0.1, ge=0, le=100, description="weight of the mean of the passages")
    terms: int = Field(30, gt=0, description="terms of the mean that are added to a sparse query")
    axes: int = Field(128, gt=0, description="of the latent first stage")


class Rocchio(ClassicPRF):
    """
    >>> system = Rocchio.from_preset("small")
    >>> _ = system.index(["ice melts in spring", "spring water", "moss"])
    >>> system.search("ice", k=2).ids
    [['0', '1']]
    """

    Config: ClassVar[type[Config]] = RocchioConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "dense": {"first_stage": "lsa", "alpha": 0.4, "beta": 0.6, "feedback": 3},
        "small": {},
        "smoke": {"axes": 16},
    }

    def revise(self, queries: Sequence[str], found: Found, index: Index) -> Any:
        c = self.config
        # Documents' vectors are in the index: no text is read again.
        places = sorted({p for some in found.places for p in some})
        vectors = index.vectors(np.asarray(places, dtype=np.int64))
        where = {p: i for i, p in enumerate(places)}
        documents = [vectors[[where[p] for p in some]] for some in found.places]
        return rocchio(
            self.stage.queries(queries), documents, alpha=c.alpha, beta=c.beta,
            terms=c.terms,
        )
