"""BM25 by the library bm25s, its impacts in our inverted index.

    score(q, d) = sum over terms t of q:  idf_t tf / (tf + k1 (1 - b + b |d| / mean |d|))
    idf_t       = log(1 + (N - df_t + 1/2) / (df_t + 1/2))                       (Lucene's variant)

>>> system = BM25Search.from_preset("small")
>>> index = system.index(["a cat sat", "the dogs sat", "birds"])
>>> system.search("dog").ids
[['1']]

Source: S. Robertson, H. Zaragoza, 2009; X. H. Lu, BM25S, arXiv 2407.03618.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import scipy.sparse
from pydantic import Field

from passband.bench.budget import Budget
from passband.bench.system import Config, Monitor
from passband.data.documents.collection import Corpus
from passband.errors import CheckpointError, ConfigError, MissingExtraError
from passband.retrieval.impacts import BM25
from passband.retrieval.retriever import BLOCK, Retriever

if TYPE_CHECKING:
    from passband.retrieval.search_page.encoders import PageEncoder


class BM25Config(Config):
    k1: float = Field(0.9, ge=0, le=100, description="saturation of repeated terms")
    b: float = Field(0.4, ge=0, le=1, description="how much the length of a document counts")
    method: Literal["lucene", "robertson", "atire"] = Field(
        "lucene", description="variant of the formula"
    )
    stemmer: str = Field(
        "english", description="language of the Snowball stemmer, empty for words as they are"
    )
    stopwords: Literal["english", "none"] = Field("english", description="words left out")


class BM25Search(Retriever):
    """Needs no training: its statistics are those of the corpus that is indexed."""

    Config: ClassVar[type[Config]] = BM25Config
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "small": {}, "smoke": {}}
    needs_fit: ClassVar[bool] = False

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._columns: dict[str, int] = {}  # term -> column
        self._terms: list[str] = []
        self._statistics: BM25 | None = None
        self._impacts: Any = None  # CSR of the corpus being indexed

    def fit(
        self, data: Any, budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        self._stem()  # an unknown language is refused here, not after an hour of others
        return {"steps": 0, "selected": "nothing to learn"}

    # ---- the corpus -------------------------------------------------------------------------

    def prepare(self, corpus: Corpus, folder: Path | None) -> None:
        bm25s = _bm25s()
        tokens = self._tokens([document.full for document in corpus], ids=True)
        if not tokens.vocab:
            self._know([], len(corpus), 1.0, np.zeros(0, np.int64))
            self._impacts = scipy.sparse.csr_array((len(corpus), 1), dtype=np.float32)
            return
        c = self.config
        found = bm25s.BM25(k1=c.k1, b=c.b, method=c.method)
        found.index(tokens, create_empty_token=False, show_progress=False)
        terms = sorted(tokens.vocab, key=tokens.vocab.__getitem__)
        columns = found.scores["data"], found.scores["indices"], found.scores["indptr"]
        shape = (len(corpus), len(terms))
        self._impacts = scipy.sparse.csc_array(columns, shape=shape).tocsr()
        length = sum(map(len, tokens.ids)) / len(corpus)
        self._know(terms, len(corpus), length, np.diff(found.scores["indptr"]))

    def _blocks(self, corpus: Corpus, monitor: Monitor | None) -> Iterator[Any]:
        impacts, self._impacts = self._impacts, None
        for start in range(0, impacts.shape[0], BLOCK):
            yield impacts[start : start + BLOCK]

    def _know(self, terms: Sequence[str], documents: int, length: float, df: Any) -> None:
        self._terms = list(terms)
        self._columns = {term: i for i, term in enumerate(terms)}
        self._statistics = BM25(documents, df, length, self.config.k1, self.config.b)

    def remember(self) -> dict[str, Any]:
        s = self._statistics
        assert s is not None
        return {"terms": self._terms, "documents": s.documents, "length": s.length,
                "frequencies": np.asarray(s.frequencies).tolist()}

    def recall(self, about: Mapping[str, Any]) -> None:
        try:
            df = np.asarray(about["frequencies"], dtype=np.int64)
            self._know(about["terms"], about["documents"], about["length"], df)
        except KeyError as error:
            raise CheckpointError(
                f"the index has no vocabulary of BM25 ({error})",
                expected="one that bm25 made", mend="index the documents with bm25",
            ) from None

    # ---- texts ------------------------------------------------------------------------------

    def encode_documents(self, texts: Sequence[str]) -> Any:
        """Impacts [N, V] of texts by the statistics of the corpus indexed last (lucene only)."""
        if self._statistics is None:
            raise ConfigError(
                "BM25 knows no corpus yet", expected="statistics of a corpus",
                mend="call index(documents) first",
            )
        if self.config.method != "lucene":
            raise ConfigError(
                f"impacts of single texts with method = {self.config.method!r}",
                expected="method = 'lucene'",
            )
        return self._statistics.impacts(self._count(texts))

    def encode_queries(self, texts: Sequence[str]) -> Any:
        """Counts [Q, V] of the terms that the corpus has."""
        return self._count(texts)

    def term(self, number: int) -> str:
        return self._terms[number]

    def page_encoder(self) -> PageEncoder:
        from passband.retrieval.search_page.encoders import TokenTable, Words

        stopwords: Sequence[str] = ()
        if self.config.stopwords != "none":
            stopwords = _bm25s().stopwords.STOPWORDS_EN
        stemmer = self._stem()
        return TokenTable(Words(self._columns, stopwords, stemmer and stemmer.stemWords))

    def _count(self, texts: Sequence[str]) -> Any:
        columns, starts = [], [0]
        for words in self._tokens(texts, ids=False):
            columns += [self._columns[word] for word in words if word in self._columns]
            starts.append(len(columns))
        entries = np.ones(len(columns), np.float32), np.asarray(columns, np.int32), starts
        found = scipy.sparse.csr_array(entries, shape=(len(texts), max(1, len(self._terms))))
        found.sum_duplicates()
        return found

    def _tokens(self, texts: Sequence[str], *, ids: bool) -> Any:
        stopwords = None if self.config.stopwords == "none" else self.config.stopwords
        return _bm25s().tokenize(
            list(texts), stopwords=stopwords, stemmer=self._stem(), return_ids=ids,
            show_progress=False,
        )

    def _stem(self) -> Any:
        language = self.config.stemmer
        if not language:
            return None
        try:
            import Stemmer
        except ModuleNotFoundError:
            raise MissingExtraError("PyStemmer", "retrieval") from None
        if language not in Stemmer.algorithms():
            raise ConfigError(
                f"stemmer = {language!r}",
                expected=f"empty, or one of {', '.join(Stemmer.algorithms())}",
            )
        return Stemmer.Stemmer(language)

    # ---- state: all belongs to the index ----------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        return None


def _bm25s() -> Any:
    try:
        import bm25s
    except ModuleNotFoundError:
        raise MissingExtraError("bm25s", "retrieval") from None
    return bm25s
