"""The first of two searches: vectors of documents that stay as they are, and of plain queries.

    sparse  documents CSR [N, V], queries CSR [Q, V]         "bm25": impacts and counts of terms
    dense   documents [N, D],     queries [Q, D]             "lsa": their projection on D axes
    any retriever that was trained and saved before          the path of its folder

>>> stage = Bm25Stage(Words())
>>> stage.prepare([["the cat sat", "a dog ran"], ["cats and dogs"]])
>>> (stage.queries(["dog"]) @ stage.documents(["a dog ran", "the cat sat"]).T).toarray().round(2)
array([[0.54, 0.  ]], dtype=float32)

Statistics of a corpus (`prepare`) belong to the documents' side alone: an index that was built with
them can be searched without.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from passband.bench import saved
from passband.errors import CheckpointError, DataError
from passband.retrieval.impacts import BM25, Pieces, Words

Blocks = Iterable[Sequence[str]]


class FirstStage(ABC):
    """What makes the vectors that the first search compares.

    sparse  whether they are CSR matrices
    """

    sparse: bool = True

    def prepare(self, blocks: Blocks) -> None:
        """Learn what documents' vectors need from a corpus, read in blocks of texts, once."""
        return None

    @property
    @abstractmethod
    def width(self) -> int:
        """Entries of a vector."""

    @abstractmethod
    def documents(self, texts: Sequence[str]) -> Any: ...

    @abstractmethod
    def queries(self, texts: Sequence[str]) -> Any: ...

    def terms(self) -> list[str] | None:
        """Names of a sparse vector's entries."""
        return None

    def state(self) -> dict[str, Any]:
        """Arrays by name."""
        return {}

    def extra(self) -> dict[str, Any]:
        """Small facts in JSON."""
        return {}

    @abstractmethod
    def load(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None: ...


class Bm25Stage(FirstStage):
    """BM25 impacts of words or word pieces; a query is the counts of its terms."""

    def __init__(self, tokens: Words | Pieces, k1: float = 0.9, b: float = 0.4) -> None:
        self.tokens, self.k1, self.b = tokens, k1, b
        self.bm25: BM25 | None = None

    def prepare(self, blocks: Blocks) -> None:
        if isinstance(self.tokens, Words):
            self.tokens = Words(self.tokens.stem)
        counts = (self.tokens.count(block, grow=True) for block in blocks)
        self.bm25 = BM25.of(counts, self.k1, self.b)

    @property
    def width(self) -> int:
        return len(self.tokens)

    @property
    def statistics(self) -> BM25:
        if self.bm25 is None:
            raise DataError(
                "the first search knows no corpus", expected="`index` or `fit` before",
                mend="call system.index(corpus)",
            )
        return self.bm25

    def documents(self, texts: Sequence[str]) -> Any:
        statistics = self.statistics
        return statistics.impacts(self.tokens.count(texts))

    def queries(self, texts: Sequence[str]) -> Any:
        return self.tokens.count(texts)

    def terms(self) -> list[str]:
        return self.tokens.known

    def state(self) -> dict[str, Any]:
        return self.bm25.state() if self.bm25 else {}

    def extra(self) -> dict[str, Any]:
        return {"words": self.tokens.known} if isinstance(self.tokens, Words) else {}

    def load(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        if isinstance(self.tokens, Words):
            self.tokens = Words(self.tokens.stem, extra.get("words", ()))
        self.bm25 = BM25.load(state, self.k1, self.b) if state else None


class LatentStage(FirstStage):
    """Latent semantic analysis: BM25 impacts on the axes of their largest singular values.

    A dense first search that is there in seconds; a query is its terms weighted by idf, projected.
    Vectors have length 1.

    axes     D, at most
    sample   documents that the axes are found from, spread over the corpus
    """

    sparse = False

    def __init__(self, impacts: Bm25Stage, axes: int = 128, sample: int = 20_000) -> None:
        self.impacts, self.size, self.sample = impacts, axes, sample
        self.axes: np.ndarray[Any, Any] | None = None

    def prepare(self, blocks: Blocks) -> None:
        texts = [text for block in blocks for text in block]
        self.impacts.prepare([texts])
        places = np.unique(np.linspace(0, len(texts) - 1, self.sample).astype(int))
        found = self.impacts.documents([texts[i] for i in places])
        axes = min(self.size, min(found.shape) - 1)
        if axes < 1:
            raise DataError(
                f"{found.shape[0]} documents of {found.shape[1]} terms", expected="2 at least"
            )
        start = np.random.default_rng(0).standard_normal(min(found.shape))
        _, values, right = scipy.sparse.linalg.svds(_unit_rows(found), k=axes, v0=start)
        order = np.argsort(-values)
        filled = np.zeros((self.size, found.shape[1]), dtype=np.float32)
        # An axis may point either way: its largest entry is made positive.
        chosen = right[order]
        signs = np.sign(chosen[np.arange(axes), np.abs(chosen).argmax(1)])
        filled[:axes] = chosen * signs[:, None]
        self.axes = filled

    @property
    def width(self) -> int:
        return self.size

    def documents(self, texts: Sequence[str]) -> Any:
        return self._project(self.impacts.documents(texts))

    def queries(self, texts: Sequence[str]) -> Any:
        counts = self.impacts.queries(texts)
        weighted = counts.copy()
        weighted.data = weighted.data * self.impacts.statistics.idf[counts.indices]
        return self._project(weighted)

    def _project(self, vectors: Any) -> np.ndarray[Any, Any]:
        self.impacts.statistics  # noqa: B018  (says what is missing)
        assert self.axes is not None
        found = np.asarray(vectors @ self.axes.T, dtype=np.float32)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return found / np.maximum(lengths, 1e-9)

    def state(self) -> dict[str, Any]:
        return self.impacts.state() | ({} if self.axes is None else {"axes": self.axes})

    def extra(self) -> dict[str, Any]:
        return self.impacts.extra()

    def load(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        rest = {name: array for name, array in state.items() if name != "axes"}
        self.impacts.load(rest, extra)
        self.axes = np.asarray(state["axes"]) if "axes" in state else None


class SavedStage(FirstStage):
    """A retriever of this library, trained and saved before. Its folder is not needed again."""

    def __init__(self, folder: str | Path | None = None, system: Any = None) -> None:
        if system is None:
            system = _searching(saved.load(folder or ""), f"{folder} holds")
        self.system = system
        first = self.system.encode_queries(["a"])
        self.sparse, self._width = scipy.sparse.issparse(first), int(first.shape[1])

    @property
    def width(self) -> int:
        return self._width

    def documents(self, texts: Sequence[str]) -> Any:
        return self.system.encode_documents(list(texts))

    def queries(self, texts: Sequence[str]) -> Any:
        return self.system.encode_queries(list(texts))

    def state(self) -> dict[str, Any]:
        return dict(self.system.state())

    def extra(self) -> dict[str, Any]:
        return saved.facts_of(self.system)

    def load(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        self.system.load_state(state, extra["extra"])

    @classmethod
    def restore(cls, state: Mapping[str, Any], extra: Mapping[str, Any]) -> SavedStage:
        """From what `state` and `extra` gave."""
        return cls(system=_searching(saved.rebuild(extra, state), "a saved system contains"))


def _searching(system: Any, where: str) -> Any:
    if not (hasattr(system, "encode_queries") and hasattr(system, "encode_documents")):
        raise CheckpointError(
            f"{where} a {system.id or type(system).__name__}",
            expected="a system that searches by vectors",
            mend="save a trained contriever or idf-flops, or say 'bm25' or 'lsa'",
        )
    return system


def _unit_rows(vectors: Any) -> Any:
    lengths = np.sqrt(np.asarray(vectors.multiply(vectors).sum(1)).ravel())
    scale = scipy.sparse.diags_array(1.0 / np.maximum(lengths, 1e-9))
    return (scale @ vectors).tocsr()
