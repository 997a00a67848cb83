"""One corpus in several indexes, on this machine or on a cluster, searched as one.

>>> from passband.retrieval.index import DenseIndex
>>> for name, place in (("a", 0), ("b", 1)):
...     _ = DenseIndex.create(name, [np.eye(2)[[place]]], [f"doc-{place}"])
>>> with Shards(["a", "b"]) as shards:
...     shards.search(np.array([[1.0, 2.0]]), k=2).ids
[['doc-1', 'doc-0']]

The ranking is that of one index of all documents in the order of the shards, to the last bit: a
score depends on the query and the document alone. (8-bit weights in steps by term are each index'
own: these scores depend on the shard.)
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from passband.errors import ConfigError, DataError, MissingExtraError, UnknownNameError
from passband.parts.inverted_index.index import expanded
from passband.parts.topk import TopK, merge
from passband.retrieval.hits import Hits
from passband.retrieval.index import Index, SparseIndex


class Shards:
    """Indexes that are searched together.

    indexes  folders; or, with the local engine, indexes. No document id may be in two of them.
    engine   "local": threads of this process; "ray": a worker for each shard on a Ray cluster (the
             extra `ray`), where the folders must be seen under the same names
    address  of a running cluster; None starts one on this machine
    workers  shards that are searched at a time; None: one for each core (local), all (ray)
    """

    def __init__(
        self, indexes: Sequence[str | Path | Index], *, engine: str = "local",
        address: str | None = None, workers: int | None = None,
    ) -> None:
        if engine not in ENGINES:
            raise UnknownNameError("engine", engine, ENGINES)
        if not indexes:
            raise DataError("no shards", expected="at least one index")
        self._engine = ENGINES[engine](indexes, address, workers)
        self.sizes = self._engine.ask("size")
        self.about: dict[str, Any] = self._one_kind(indexes)
        self._starts = list(accumulate(self.sizes, initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def search(self, vectors: Any, k: int) -> Hits:
        """The k best documents of all shards for each query's vector.

        `places` count through the shards in their order. Raises `DataError` where an id is found
        in two shards.
        """
        parts = self._engine.ask("search", vectors, k)
        return self._hits(merge(self._moved(parts), min(k, len(self))), parts)

    def two_phase(
        self, vectors: Any, k: int, *, ratio: float = 0.4, expansion: float = 5.0
    ) -> Hits:
        """As `SparseIndex.two_phase` of all documents: the candidates are chosen over all shards.

        Raises `ConfigError` for shards of dense vectors.
        """
        parts = self._engine.ask("phases", vectors, k, ratio, expansion)
        first = self._moved(parts)
        places, heavy = (np.concatenate(each, axis=1) for each in zip(*first, strict=True))
        scores = np.concatenate([part.whole for part in parts], axis=1)
        kept = np.lexsort((places, -heavy), axis=-1)[:, : expanded(k, expansion)]
        chosen = TopK(*(np.take_along_axis(each, kept, axis=1) for each in (places, scores)))
        return self._hits(merge([chosen], min(k, len(self))), parts)

    def vectors(self, places: Any) -> Any:
        """The vectors of documents by their places, which count through the shards."""
        places = np.asarray(places, dtype=np.int64)
        bounds = np.array(self._starts)
        shard = np.searchsorted(bounds, places, side="right") - 1
        local = [places[shard == i] - bounds[i] for i in range(len(self.sizes))]
        parts = self._engine.ask_each("vectors", [(each,) for each in local])
        order = np.argsort(np.argsort(shard, kind="stable"), kind="stable")
        whole = sparse.vstack(parts, format="csr") if sparse.issparse(parts[0]) else (
            np.concatenate(parts)
        )
        return whole[order]

    def _moved(self, parts: Sequence[Found]) -> list[TopK]:
        """Places that count through all shards."""
        return [
            TopK(np.where(part.places < 0, -1, part.places + start), part.scores)
            for part, start in zip(parts, self._starts, strict=False)
        ]

    def _hits(self, best: TopK, parts: Sequence[Found]) -> Hits:
        names: dict[int, str] = {}
        for part, start in zip(parts, self._starts, strict=False):
            names |= {place + start: id for place, id in part.ids.items()}
        hits = Hits.of(best, names)
        for row in hits.ids:
            if len(set(row)) < len(row):
                twice = next(id for id in row if row.count(id) > 1)
                raise DataError(
                    f"the document id {twice!r} is in two shards",
                    expected="every document in one shard",
                )
        return hits

    def explain(self, vectors: Any, document: str) -> list[tuple[Any, float]]:
        """As `Index.explain`, by the shard that has the document."""
        for shares in self._engine.ask("explain", vectors, document):
            if shares is not None:
                return list(shares)
        raise DataError(
            f"no document {document!r} in {len(self.sizes)} shards", expected="an id of the corpus"
        )

    def _one_kind(self, indexes: Sequence[str | Path | Index]) -> dict[str, Any]:
        """What the indexes say of themselves, which has to be the same of all."""
        first, *others = self._engine.ask("about")
        for index, other in zip(indexes[1:], others, strict=True):
            if other != first:
                raise ConfigError(
                    f"shard {index} was made by another system, or with counts of another corpus, "
                    f"than {indexes[0]}", expected="parts of one corpus",
                    mend="write them with index_shards(documents, folders)",
                )
        return dict(first)

    def close(self) -> None:
        """Let the workers of a cluster go."""
        self._engine.close()

    def __enter__(self) -> Shards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Found(NamedTuple):
    """What one shard found, with the ids of what is in it."""

    places: np.ndarray[Any, Any]  # [Q, k]
    scores: np.ndarray[Any, Any]
    ids: dict[int, str]
    whole: Any = None  # [Q, k]: `scores` are by the heavy terms, these by all


class Shard:
    """What an engine asks of one index."""

    def __init__(self, index: str | Path | Index) -> None:
        self.index = index if isinstance(index, Index) else Index.open(index)

    def size(self) -> int:
        return len(self.index)

    def about(self) -> dict[str, Any]:
        return dict(self.index.about)

    def search(self, vectors: Any, k: int) -> Found:
        return self._found(self.index.find(vectors, k))

    def phases(self, vectors: Any, k: int, ratio: float, expansion: float) -> Found:
        if not isinstance(self.index, SparseIndex):
            raise ConfigError(
                "two phases over dense vectors", expected="shards of a sparse index",
                mend="search them without",
            )
        first, whole = self.index.postings.phases(vectors, k, ratio=ratio, expansion=expansion)
        return self._found(first, whole)

    def vectors(self, places: Any) -> Any:
        return self.index.vectors(places)

    def _found(self, found: TopK, whole: Any = None) -> Found:
        ids = {p: self.index.ids[p] for p in np.unique(found.places).tolist() if p >= 0}
        return Found(found.places, found.scores, ids, whole)

    def explain(self, vectors: Any, document: str) -> list[tuple[Any, float]] | None:
        """None where the document is in another shard."""
        return list(self.index.explain(vectors, document)) if document in self.index.ids else None


class Engine(ABC):
    """Asks every shard; answers in their order."""

    @abstractmethod
    def __init__(
        self, indexes: Sequence[str | Path | Index], address: str | None, workers: int | None
    ) -> None: ...

    @abstractmethod
    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """The results of a method of `Shard`."""

    @abstractmethod
    def ask_each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The same with arguments of its own for each shard."""

    def close(self) -> None:
        return None


class Local(Engine):
    """Threads: the search loops do without the interpreter's lock."""

    def __init__(
        self, indexes: Sequence[str | Path | Index], address: str | None, workers: int | None
    ) -> None:
        if address is not None:
            raise ConfigError("an address for the local engine", mend="engine='ray', or leave it")
        self.shards = [Shard(index) for index in indexes]
        self.workers = workers or -1

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        return self.ask_each(method, [arguments] * len(self.shards))

    def ask_each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        import joblib

        parallel = joblib.Parallel(n_jobs=self.workers, backend="threading")
        return list(parallel(
            joblib.delayed(getattr(shard, method))(*given)
            for shard, given in zip(self.shards, arguments, strict=True)
        ))


class Ray(Engine):
    """An actor for each shard keeps its index open."""

    def __init__(
        self, indexes: Sequence[str | Path | Index], address: str | None, workers: int | None
    ) -> None:
        try:
            import ray
        except ImportError:
            raise MissingExtraError("ray", "ray") from None
        if any(isinstance(index, Index) for index in indexes):
            raise ConfigError(
                "an index in memory for a cluster", expected="folders that its machines see"
            )
        self.ray: Any = ray
        self.ours = not ray.is_initialized()
        if self.ours:
            where = {"address": address} if address else {
                "num_cpus": workers or os.cpu_count(), "include_dashboard": False,
            }
            try:
                self.ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=False,
                         **where)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"no Ray cluster at {address!r}: {error}", expected="host:port of a head node",
                    mend="start one with `ray start --head`, or leave the address out",
                ) from None
        # Less than a processor each: there may be more shards than processors.
        actor = self.ray.remote(Shard).options(num_cpus=0.01)
        self.actors = [actor.remote(str(Path(str(index)).absolute())) for index in indexes]
        self.workers = workers or len(self.actors)

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        arguments = tuple(self.ray.put(each) for each in arguments)  # sent once, not to each shard
        return self.ask_each(method, [arguments] * len(self.actors))

    def ask_each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        found: list[Any] = []
        asked = list(zip(self.actors, arguments, strict=True))
        try:
            for start in range(0, len(asked), self.workers):
                some = asked[start : start + self.workers]
                found += self.ray.get([getattr(a, method).remote(*given) for a, given in some])
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self.ray.exceptions.RayActorError as error:
            cause = getattr(error, "cause", None) or error
            raise DataError(f"a shard can't be searched: {cause}",
                            expected="folders that the cluster's machines see") from None
        return found

    def close(self) -> None:
        for actor in self.actors:
            self.ray.kill(actor)
        self.actors = []
        if self.ours:
            self.ray.shutdown()


ENGINES: dict[str, type[Engine]] = {"local": Local, "ray": Ray}
