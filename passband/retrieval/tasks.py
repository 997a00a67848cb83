"""Jobs of the retrieval family: find the documents that answer a query.

Queries of train, valid and test differ, mostly over one corpus; judgements of test queries never
reach `fit`. The seed draws which queries are which, and the whole of what is generated.

    data     Data of Collections (`passband.data.documents.collection`)
    read     users' folders and files (`passband.data.documents.folders`)
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passband.bench.system import System
from passband.bench.task import Artifact, Data, Metric, Size, Task
from passband.errors import DataError
from passband.retrieval.name_tasks import TASKS as NAME_TASKS

if TYPE_CHECKING:
    from passband.data.documents.collection import Collection

DEPTH = 100  # hits asked for

_SEARCH = (
    Metric("ndcg@10", "", "higher", about="normalised discounted cumulative gain, linear gain"),
    Metric("recall@100", "", "higher", about="share of the relevant documents among 100 hits"),
    Metric("mrr@10", "", "higher", about="reciprocal rank of the first relevant one of 10 hits"),
)


class Search(Task):
    """Rankings of a corpus for queries, scored by `passband.retrieval.scores`.

    make  (seed=, size=) -> parts train, valid and test, as "module:function"
    """

    family = "retrieval"
    verb = "search"
    version = 1
    metrics = _SEARCH
    pareto = (("ndcg@10", "parameters"), ("ndcg@10", "seconds"))

    def __init__(self, name: str, summary: str, *, make: str) -> None:
        self.name, self.summary, self._make = name, summary, make

    def data(
        self, seed: int = 0, size: Size = "small", model: Path | None = None
    ) -> Data[Collection]:
        module, name = self._make.split(":")
        return self._data(getattr(import_module(module), name)(seed=seed, size=size))

    def read(self, path: Path, model: Path | None = None) -> Data[Collection]:
        from passband.data.documents.folders import read

        return self._data(read(path))

    def _data(self, parts: Any) -> Data[Collection]:
        return Data(train=parts.train, valid=parts.valid, test=parts.test, name=self.name)

    def evaluate(self, system: System, data: Data[Collection]) -> dict[str, float]:
        if data.test is None or not data.test.judgements:
            return {}
        from passband.retrieval import scores

        # `rank` has left out what equals its query.
        return scores.mean(
            rank(system, data.test), data.test.judgements, ignore_identical_ids=False
        )

    def artifacts(self, system: System, data: Data[Collection], folder: Path) -> list[Artifact]:
        if data.test is None or not data.test.judgements:
            return []
        from passband.retrieval.pictures import draw

        return draw(system, data.test, folder)


def rank(system: Any, data: Collection, depth: int = DEPTH) -> dict[str, list[str]]:
    """Query id -> document ids, best first: of the judged queries, after indexing the corpus.

    Where queries are documents, those are left out of their own rankings.
    """
    queries = {q: text for q, text in data.queries.items() if q in data.judgements}
    if not queries:
        raise DataError("no query is judged", expected="queries with judgements")
    system.index(data.corpus)
    hits = system.search(list(queries.values()), k=depth + 1)
    return {
        q: [d for d in found if d != q or not data.queries_are_documents][:depth]
        for q, found in zip(queries, hits.ids, strict=True)
    }


_DOCUMENTS = "passband.data.documents"

_ALL: tuple[Task, ...] = (
    Search(
        "pydocs", "the docstring that follows a first paragraph, among those of installed packages",
        make=f"{_DOCUMENTS}.pydocs:pydocs",
    ),
    Search(
        "pydocs-see-also", "the functions that a function's section See Also names",
        make=f"{_DOCUMENTS}.see_also:see_also",
    ),
    Search(
        "two-dialects", "documents on the concepts of a query that is in other words for them",
        make=f"{_DOCUMENTS}.dialects:two_dialects",
    ),
    Search(
        "two-dialects-same", "the same documents, asked for in the words that they use",
        make=f"{_DOCUMENTS}.dialects:same_dialect",
    ),
    Search(
        "two-dialects-names", "documents in other words than the query's that share names with it",
        make=f"{_DOCUMENTS}.dialects:named_dialects",
    ),
    Search(
        "ambiguous-topics", "documents on the one of two topics that an ambiguous query is about",
        make=f"{_DOCUMENTS}.topics:ambiguous_topics",
    ),
)

TASKS: dict[str, Task] = {**{task.name: task for task in _ALL}, **NAME_TASKS}
