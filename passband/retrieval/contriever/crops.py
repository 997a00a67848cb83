"""Positive pairs out of raw text: two independent random crops of one chunk of tokens.

    corpus -> one vector of tokens [N], documents not separated
    epoch: offset o ~ U{0 .. C-1};   chunk i = tokens[o + iC : o + (i+1)C]
    crop:  ratio r ~ U(r_min, r_max), length floor(C r), start ~ U{0 .. C - length}, twice
    or, within documents: a chunk is a document, or a piece of it of at most C tokens

>>> tokens = np.arange(10, 1010)
>>> crops = Crops([tokens], CropRecipe(chunk=64), batch_size=4, cls=2, sep=3, vocabulary=1010)
>>> ids, mask, keys, key_mask = crops.batch(0)
>>> len(ids), ids[0, 0].item(), bool((crops.batch(0)[0] == ids).all())
(4, 2, True)

A batch depends on the seed and its number alone, and is cut without a Python loop over texts.

    B pairs a batch, C tokens a chunk, L of the longest crop with [CLS] and [SEP]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from torch import Tensor

from passband.bench.streams import sequence
from passband.errors import DataError
from passband.retrieval.contriever.augmentation import AUGMENTATIONS, Ragged
from passband.retrieval.token_rows import padded

Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # ids, mask [B, L] of queries; the same of keys


@dataclass(frozen=True)
class CropRecipe:
    """How pairs are cut.

    pairs         "crop": both sides are crops; "ict": the query is one span of a chunk and the key
                  what is left of the chunk (the inverse cloze task)
    augmentation  of each side: "delete", "mask", "replace", "shuffle" or "none"
    share         of the tokens that it changes
    """

    chunk: int = 256
    shortest: float = 0.05
    longest: float = 0.5
    pairs: Literal["crop", "ict"] = "crop"
    augmentation: str = "delete"
    share: float = 0.1


class Crops:
    """An endless iterable of batches.

    corpora      token vectors, one a data set; memory-mapped files do as well
    vocabulary   tokens from `plain` to here are drawn by "replace"
    mask         id of [MASK], for the augmentation of that name
    documents    of each data set the tokens of each document: chunks end where documents do, and
                 those of fewer than 8 tokens are left out; None: over the ends, as published
    coefficient  data set i is drawn with probability proportional to size_i ** coefficient: 0 is
                 uniform, 1 by size

    Raises `DataError` for a data set of fewer tokens than a chunk.
    """

    def __init__(
        self, corpora: Sequence[np.ndarray], recipe: CropRecipe, batch_size: int, *, cls: int,
        sep: int, vocabulary: int, mask: int = 0, plain: int = 5, coefficient: float = 0.0,
        seed: int = 0, documents: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.tables = None if documents is None else [_pieces(d, recipe.chunk) for d in documents]
        for number, tokens in enumerate(corpora):
            if self.tables is None and len(tokens) < recipe.chunk:
                which = f"data set {number + 1} has" if len(corpora) > 1 else "the corpus has"
                raise DataError(
                    f"{which} {len(tokens)} tokens, a chunk {recipe.chunk}",
                    expected="at least one chunk of text",
                    mend="give more text, or lower chunk_length",
                )
            if self.tables is not None and not self.tables[number].size:
                raise DataError(
                    f"no document of data set {number + 1} has {LEAST} tokens",
                    expected="documents long enough to be cropped", mend="within_documents=False",
                )
        self.corpora, self.recipe, self.batch_size = list(corpora), recipe, batch_size
        self.cls, self.sep, self.seed = cls, sep, seed
        self.plain, self.vocabulary, self.mask = plain, vocabulary, mask
        self.counts = np.array(
            [len(tokens) // recipe.chunk for tokens in corpora] if self.tables is None
            else [table.shape[1] for table in self.tables]
        )
        weights = self.counts.astype(np.float64) ** coefficient
        self.chances = weights / weights.sum()
        self._order = lru_cache(maxsize=4)(self._permutation)

    def __iter__(self) -> Iterator[Batch]:
        number = 0
        while True:
            yield self.batch(number)
            number += 1

    def batch(self, number: int) -> Batch:
        """Batch `number` of the run."""
        rng = np.random.default_rng(sequence(self.seed, 3, number))
        corpus, starts, sizes = self._chunks(number, rng)
        left, right = SIDES[self.recipe.pairs](self.recipe, sizes, rng)
        sides = []
        for pieces in (left, right):
            rows = self._cut(corpus, starts, pieces)
            augment = AUGMENTATIONS[self.recipe.augmentation]
            rows = augment(rows, self.recipe.share, rng, self.mask, (self.plain, self.vocabulary))
            sides += rows.between(self.cls, self.sep)
        return (*padded(sides[0], sides[1], sides[2]), *padded(sides[3], sides[4], sides[5]))

    # ---- chunks ------------------------------------------------------------------------------

    def _chunks(
        self, number: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Data set, first token and tokens of each chunk of a batch, [B] all."""
        size, chunk = self.batch_size, self.recipe.chunk
        if len(self.corpora) > 1:
            corpus = rng.choice(len(self.corpora), size, p=self.chances)
            if self.tables is not None:
                item = np.floor(rng.random(size) * self.counts[corpus]).astype(np.int64)
                rows = [self.tables[c][:, i] for c, i in zip(corpus, item, strict=True)]
                return corpus, *np.stack(rows, 1)
            lengths = np.array([len(tokens) for tokens in self.corpora])[corpus]
            # Uniform over the chunks of an offset that is drawn anew for each.
            offset = np.minimum(rng.integers(0, chunk, size), lengths - chunk)
            item = np.floor(rng.random(size) * ((lengths - offset) // chunk)).astype(np.int64)
            return corpus, offset + item * chunk, np.full(size, chunk)
        items = int(self.counts[0])
        numbers = np.arange(number * size, (number + 1) * size)
        starts, sizes = np.empty(size, np.int64), np.full(size, chunk)
        for epoch in np.unique(numbers // items):
            offset, order = self._order(int(epoch))
            here = numbers // items == epoch
            item = order[numbers[here] % items]
            if self.tables is None:
                # The offset may push the last chunk over the end.
                starts[here] = np.minimum(offset + item * chunk, len(self.corpora[0]) - chunk)
            else:
                starts[here], sizes[here] = self.tables[0][:, item]
        return np.zeros(size, np.int64), starts, sizes

    def _permutation(self, epoch: int) -> tuple[int, np.ndarray]:
        rng = np.random.default_rng(sequence(self.seed, 4, epoch))
        return int(rng.integers(self.recipe.chunk)), rng.permutation(int(self.counts[0]))

    def _cut(
        self, corpus: np.ndarray, starts: np.ndarray, pieces: Sequence[tuple[np.ndarray, ...]]
    ) -> Ragged:
        """Token rows; row i joins the pieces (first, length) of chunk i."""
        lengths = sum(length for _, length in pieces)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids = np.empty(int(offsets[-1]), np.int64)
        begun = offsets[:-1].copy()
        for first, length in pieces:
            inside = _within(length)
            source = np.repeat(starts + first, length) + inside
            target = np.repeat(begun, length) + inside
            owner = np.repeat(corpus, length)
            for number in np.unique(owner):
                mine = owner == number
                ids[target[mine]] = self.corpora[number][source[mine]]
            begun += length
        return Ragged(ids, lengths)


LEAST = 8  # tokens of a document that is cropped


def _pieces(lengths: np.ndarray, chunk: int) -> np.ndarray:
    """[2, n]: first token and tokens of the pieces of documents, at most `chunk` each.

    >>> _pieces(np.array([10, 3, 20]), 16)
    array([[ 0, 13, 23],
           [10, 10, 10]])
    """
    lengths = np.asarray(lengths, np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    parts = -(-lengths // chunk)
    owner = np.repeat(np.arange(len(lengths)), parts)
    number = _within(parts)
    first = number * lengths[owner] // parts[owner]
    size = (number + 1) * lengths[owner] // parts[owner] - first
    found = np.stack([starts[owner] + first, size])
    return found[:, size >= LEAST]


def _within(lengths: np.ndarray) -> np.ndarray:
    """0 .. length-1 of each row, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)


Pieces = list[tuple[np.ndarray, np.ndarray]]  # (first token in the chunk, length) of each row


def _span(
    recipe: CropRecipe, sizes: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    ratio = rng.uniform(recipe.shortest, recipe.longest, len(sizes))
    length = np.maximum(1, (sizes * ratio).astype(np.int64))
    return rng.integers(0, sizes - length, endpoint=True), length


def two_crops(
    recipe: CropRecipe, sizes: np.ndarray, rng: np.random.Generator
) -> tuple[Pieces, Pieces]:
    """Independent spans of chunks of these sizes; they may overlap."""
    return [_span(recipe, sizes, rng)], [_span(recipe, sizes, rng)]


def inverse_cloze(
    recipe: CropRecipe, sizes: np.ndarray, rng: np.random.Generator
) -> tuple[Pieces, Pieces]:
    """A span, and the chunk without it."""
    first, length = _span(recipe, sizes, rng)
    end = first + length
    return [(first, length)], [(np.zeros_like(first), first), (end, sizes - end)]


SIDES = {"crop": two_crops, "ict": inverse_cloze}
