"""BM25 as sparse vectors: a document's impacts, whose product with a query's counts is the score.

    tf term frequency, df documents with the term, N documents, dl length in terms

    idf    = log(1 + (N - df + 1/2) / (df + 1/2))
    impact = idf tf / (tf + k1 (1 - b + b dl / mean dl))                   (Lucene's variant)
    score  = sum over the query's terms of count * impact

>>> words = Words()
>>> counts = words.count(["the cat sat", "a cat and a cat"], grow=True)
>>> bm25 = BM25.of([counts])
>>> bm25.impacts(counts).toarray().round(3)
array([[0.365, 0.096, 0.365, 0.   ],
       [0.   , 0.126, 0.   , 0.365]], dtype=float32)

Source: S. Robertson, H. Zaragoza, 2009; C. Kamphuis et al., ECIR 2020 (variants).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import scipy.sparse

from passband.errors import CheckpointError, DataError, MissingExtraError
from passband.retrieval.wordpieces import WordPieces

_WORD = re.compile(r"(?u)\b\w\w+\b")


class Words:
    """Words of two letters and more in lower case, stemmed if asked, as columns of a matrix.

    stem    language of a Snowball stemmer, or None
    known   words in the order of their columns

    >>> words = Words(stem="english", known=["cat", "sit"])
    >>> words.count(["Cats sitting, cats unknown"]).toarray()
    array([[2., 1.]], dtype=float32)
    """

    def __init__(self, stem: str | None = None, known: Iterable[str] = ()) -> None:
        self.stem = stem
        self.columns: dict[str, int] = {word: i for i, word in enumerate(known)}
        self._stemmer = _stemmer(stem) if stem else None

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def known(self) -> list[str]:
        return list(self.columns)

    def split(self, text: str) -> list[str]:
        words = _WORD.findall(text.lower())
        return self._stemmer.stemWords(words) if self._stemmer else words

    def count(self, texts: Sequence[str], *, grow: bool = False) -> Any:
        """CSR [N, V] float32 of counts; grow: unknown words get new columns, else none."""
        rows, columns, values = [], [], []
        for row, text in enumerate(texts):
            for word, times in Counter(self.split(text)).items():
                column = self.columns.get(word)
                if column is None:
                    if not grow:
                        continue
                    column = self.columns[word] = len(self.columns)
                rows.append(row)
                columns.append(column)
                values.append(times)
        return _matrix(rows, columns, values, (len(texts), len(self.columns)))


class Pieces:
    """Word pieces as columns; special tokens have none.

    pieces  `passband.retrieval.wordpieces.WordPieces`
    width   columns, those of a model whose vocabulary is larger than its pieces; None: as many
    """

    def __init__(self, pieces: WordPieces, width: int | None = None) -> None:
        self.pieces, self.width = pieces, width or len(pieces)

    def __len__(self) -> int:
        return self.width

    @property
    def known(self) -> list[str]:
        return [*self.pieces.tokens, *[""] * (self.width - len(self.pieces.tokens))]

    def count(self, texts: Sequence[str], *, grow: bool = False) -> Any:
        """CSR [N, V] float32 of counts; the vocabulary never grows."""
        found = self.pieces.rows(texts, specials=False)
        rows = np.repeat(np.arange(len(found)), found.lengths)
        # [UNK] would make any two unknown words the same one.
        words = ~np.isin(found.ids, list(self.pieces.special))
        ones = np.ones(int(words.sum()))
        return _matrix(rows[words], found.ids[words], ones, (len(texts), len(self)))


@dataclass
class BM25:
    """Statistics of a corpus, and the impacts that they give.

    documents  N; frequencies [V] documents with each term; length mean of terms a document
    k1, b      saturation of repeated terms, and how much length counts
    """

    documents: int
    frequencies: np.ndarray[Any, Any]
    length: float
    k1: float = 0.9
    b: float = 0.4

    @classmethod
    def of(cls, blocks: Iterable[Any], k1: float = 0.9, b: float = 0.4) -> BM25:
        """From counts in blocks [N, V], whose V may grow; raises `DataError` without documents."""
        documents, total, frequencies = 0, 0.0, np.zeros(0, dtype=np.int64)
        for counts in blocks:
            here = np.bincount(counts.indices, minlength=counts.shape[1])
            frequencies = _longer(frequencies, len(here))
            frequencies[: len(here)] += here
            documents += counts.shape[0]
            total += float(counts.data.sum())
        if not documents:
            raise DataError("no documents to count", expected="a corpus with at least one")
        return cls(documents, frequencies, total / documents, k1, b)

    @property
    def idf(self) -> np.ndarray[Any, Any]:
        df = self.frequencies
        return np.log1p((self.documents - df + 0.5) / (df + 0.5)).astype(np.float32)

    def impacts(self, counts: Any) -> Any:
        """Counts [N, V] -> impacts [N, V], CSR float32."""
        if counts.shape[1] != len(self.frequencies):
            raise DataError(
                f"counts of {counts.shape[1]} terms", expected=f"{len(self.frequencies)} terms",
                mend="count with the vocabulary that the statistics are of",
            )
        tf = counts.data.astype(np.float64)
        lengths = np.asarray(counts.sum(1)).ravel() / max(self.length, 1e-9)
        norm = self.k1 * (1 - self.b + self.b * lengths)
        weights = self.idf[counts.indices] * tf / (tf + np.repeat(norm, np.diff(counts.indptr)))
        shape = (weights.astype(np.float32), counts.indices, counts.indptr)
        return scipy.sparse.csr_array(shape, shape=counts.shape)

    def state(self) -> dict[str, Any]:
        return {
            "frequencies": np.asarray(self.frequencies, dtype=np.int64),
            "length": np.array([self.documents, self.length], dtype=np.float64),
        }

    @classmethod
    def load(cls, state: Mapping[str, Any], k1: float, b: float) -> BM25:
        try:
            documents, length = np.asarray(state["length"]).tolist()
            frequencies = np.asarray(state["frequencies"], dtype=np.int64)
        except KeyError as error:
            raise CheckpointError(
                f"the statistics of the corpus lack {error}", expected="frequencies and length"
            ) from None
        return cls(int(documents), frequencies, float(length), k1, b)


def _matrix(rows: Any, columns: Any, values: Any, shape: tuple[int, int]) -> Any:
    entries = (np.asarray(values, dtype=np.float32), (np.asarray(rows), np.asarray(columns)))
    found = scipy.sparse.coo_array(entries, shape=shape).tocsr()
    found.sum_duplicates()
    return found


def _longer(values: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    return np.pad(values, (0, max(0, size - len(values))))


@cache
def _stemmer(language: str) -> Any:
    try:
        import Stemmer
    except ModuleNotFoundError:
        raise MissingExtraError("PyStemmer", "retrieval") from None
    try:
        return Stemmer.Stemmer(language)
    except KeyError:
        raise DataError(
            f"stemmer {language!r}", expected=f"one of {', '.join(Stemmer.algorithms())}"
        ) from None
