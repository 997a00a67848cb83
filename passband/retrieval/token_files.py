"""A corpus as one vector of token ids on disk, mapped into memory: cut anywhere, whatever its size.

>>> from passband.data.documents.collection import Document, Listed
>>> from passband.retrieval.wordpieces import wordpieces
>>> corpus = Listed([Document("a", "the cat sat"), Document("b", "the dog")])
>>> tokens = token_file(corpus, wordpieces(60, corpus))
>>> len(tokens), tokens.dtype.name
(5, 'uint16')

Documents follow one another without a mark between them. Written once, then read from the cache;
memory is that of a block of documents.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from passband.data.cache import stored
from passband.data.documents.collection import Corpus
from passband.retrieval.token_rows import TokenRows
from passband.retrieval.wordpieces import WordPieces

TOGETHER = 1024  # documents tokenised at a time


def token_file(
    corpus: Corpus, pieces: WordPieces, fold: Callable[[str], str] | None = None
) -> np.ndarray:
    """Token ids of all documents [N], uint16 where the vocabulary fits, else int32; read-only.

    fold  applied to each text before; its name is part of the cache's key
    """
    kind = np.dtype(np.uint16 if len(pieces) <= 1 << 16 else np.int32)
    blocks = (rows.ids for rows in _blocks(corpus, pieces, fold))
    return _stored(blocks, kind, corpus, pieces, fold, ".tokens")


def token_counts(
    corpus: Corpus, pieces: WordPieces, fold: Callable[[str], str] | None = None
) -> np.ndarray:
    """How many of them each document has, int32 [documents]."""
    blocks = (np.asarray(rows.lengths) for rows in _blocks(corpus, pieces, fold))
    return _stored(blocks, np.dtype(np.int32), corpus, pieces, fold, ".counts")


def _stored(
    blocks: Iterator[np.ndarray], kind: np.dtype[Any], corpus: Corpus, pieces: WordPieces,
    fold: Callable[[str], str] | None, suffix: str,
) -> np.ndarray:
    key = {
        "version": 1, "data": corpus.fingerprint, "pieces": pieces.fingerprint,
        "fold": fold.__name__ if fold else "", "kind": kind.name,
    }

    def make(path: Path) -> None:
        with path.open("wb") as file:
            _write(blocks, kind, file)

    path = stored("token-files", key, make, suffix=suffix)
    if not path.stat().st_size:
        return np.empty(0, kind)
    return np.memmap(path, kind, mode="r")


def _blocks(
    corpus: Corpus, pieces: WordPieces, fold: Callable[[str], str] | None
) -> Iterator[TokenRows]:
    texts = (document.full for document in corpus)
    while block := list(islice(texts, TOGETHER)):
        if fold is not None:
            block = [fold(text) for text in block]
        yield pieces.rows(block, specials=False)


def _write(blocks: Iterator[np.ndarray], kind: np.dtype[Any], file: IO[bytes]) -> None:
    for ids in blocks:
        file.write(ids.astype(kind).tobytes())
    file.flush()
    os.fsync(file.fileno())
