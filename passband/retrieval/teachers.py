"""Teachers: frozen systems that score candidates, by name.

    "bm25", "lsa"      built from the corpus in seconds
    FOLDER             any retriever that was trained and saved before
    another name       a system of the catalog, trained here first on the same data

A teacher is frozen, so each text is encoded once, with the teacher's own words, and a batch's
scores are products of rows.

>>> teacher = Teacher(Bm25Stage(Words()), ["rivers of ice", "hot springs"], ["ice", "springs"])
>>> teacher.scores([0, 1], [0, 1]).gt(0).tolist()
[[True, False], [False, True]]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from passband.bench.budget import Budget
from passband.bench.saved import create
from passband.bench.system import Monitor, System
from passband.bench.task import Data
from passband.errors import ConfigError
from passband.retrieval.first_stage import Bm25Stage, FirstStage, LatentStage, SavedStage
from passband.retrieval.impacts import Words

BLOCK = 1024  # texts encoded at a time
_BUILT = {
    "bm25": lambda: Bm25Stage(Words("english")),
    "lsa": lambda: LatentStage(Bm25Stage(Words("english"))),
}


class Teacher:
    """A teacher's vectors of some documents and queries.

    stage      what makes the vectors; it learns from `documents` what it needs of a corpus
    documents  texts, by number
    queries    texts, by number
    """

    def __init__(
        self, stage: FirstStage, documents: Sequence[str], queries: Sequence[str]
    ) -> None:
        stage.prepare(_blocks(documents))
        self.documents = _stacked([stage.documents(b) for b in _blocks(documents)])
        self.queries = _stacked([stage.queries(b) for b in _blocks(queries)])

    def scores(self, queries: Any, documents: Any) -> Tensor:
        """Scores float32 [B, C] of documents [C] for queries [B], all given by their numbers."""
        asked, wanted = np.asarray(queries), np.asarray(documents)
        found = self.queries[asked] @ self.documents[wanted].T
        whole = found.toarray() if scipy.sparse.issparse(found) else found
        return torch.from_numpy(np.ascontiguousarray(whole, dtype=np.float32))


def teacher_stage(
    name: str, data: Data[Any], seed: int, budget: Budget, monitor: Monitor | None = None, *,
    preset: str = "small",
) -> FirstStage:
    """What a name stands for; `ConfigError` for a system that does not search by vectors.

    budget, preset  of a system that is trained here
    """
    if name in _BUILT:
        return _BUILT[name]()
    if Path(name).is_dir():
        return SavedStage(name)
    system: System = create(name, preset, seed=seed)
    if not hasattr(system, "encode_queries"):
        raise ConfigError(
            f"teacher {name!r} has no vectors of texts", expected="a system that searches",
            mend=f"one of {', '.join(_BUILT)}, the folder of a saved retriever, or contriever",
        )
    system.fit(data.for_fit(), budget, monitor)
    return SavedStage(system=system)


def _blocks(texts: Sequence[str]) -> list[Sequence[str]]:
    return [texts[i : i + BLOCK] for i in range(0, len(texts), BLOCK)]


def _stacked(parts: list[Any]) -> Any:
    if scipy.sparse.issparse(parts[0]):
        return scipy.sparse.vstack(parts, format="csr")
    return np.concatenate(parts)
