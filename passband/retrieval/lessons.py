"""What a learned sparse retriever is trained on: queries, each with a group of documents.

An example with positives and negatives gives its (or one of its) positive and g - 1 negatives, new
ones each time. An example whose n documents a teacher has scored is cut into floor(n / g) groups,
group i = documents i, i + step, i + 2 step ... with step = floor(n / g), so that every group mixes
ranks; one of the groups is drawn.

>>> examples = [Example("cold", ("ice",), ("fire", "lava")), Example("hot", ("fire",), ("ice",))]
>>> lessons = Lessons.of(examples, group=2)
>>> drawn = lessons.draw(0, np.random.default_rng(0))
>>> lessons.documents[drawn.documents[0]], len(drawn.documents)
('ice', 2)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from passband.data.documents.collection import Collection, Example
from passband.data.documents.headings import headings
from passband.errors import DataError
from passband.retrieval.token_rows import TokenRows


class Drawn(NamedTuple):
    """One group: number of the query, numbers of its documents, the positive first [g]."""

    query: int
    documents: np.ndarray[Any, Any]
    scores: np.ndarray[Any, Any]  # [g], or empty


class Batch(NamedTuple):
    """B groups of g documents.

    query_ids, query_mask        [B, Lq] with [CLS] and [SEP]
    document_ids, document_mask  [B g, L], the documents of a query one after the other
    queries, documents           [B] and [B, g]: numbers, for teachers
    scores                       [B, g] of the examples' own teacher; empty where there is none
    """

    query_ids: Tensor
    query_mask: Tensor
    document_ids: Tensor
    document_mask: Tensor
    queries: Tensor
    documents: Tensor
    scores: Tensor


@dataclass
class Lessons:
    """Examples as numbers of texts; see `Lessons.of`."""

    queries: list[str]
    documents: list[str]
    positives: list[list[int]]
    negatives: list[list[int]]
    scores: list[Sequence[float] | None]
    group: int
    tokens: tuple[TokenRows, TokenRows] | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls, examples: Sequence[Example], group: int,
        mined: Mapping[int, Sequence[str]] | None = None,
    ) -> Lessons:
        """
        examples  with as many negatives or scored documents as there are
        group     g, documents of a query in a batch
        mined     number of an example -> texts that are negatives instead of its own

        Raises `DataError` where nothing is given, where scores and documents differ in number, and
        where a group can't be filled.
        """
        if not len(examples):
            raise DataError("no examples to learn from", expected="queries with documents")
        numbers: dict[str, int] = {}
        made = cls([], [], [], [], [], group)
        for i, one in enumerate(examples):
            negatives = one.negatives if mined is None else tuple(mined.get(i, ()))
            scored = one.scores if mined is None else None
            known = len(one.positives) + len(negatives)
            filled = known >= group if scored is not None else len(negatives) >= group - 1
            if scored is not None and len(scored) != known:
                raise DataError(
                    f"example {i + 1}: {len(scored)} scores for {known} documents",
                    expected="a score for each document",
                )
            if not one.positives or not filled:
                raise DataError(
                    f"example {i + 1} has {len(one.positives)} positives and {len(negatives)} "
                    f"negatives", expected=f"groups of {group}",
                    mend="lower group, give more negatives, or take negatives='bm25'",
                )
            made.queries.append(one.query)
            for texts, into in ((one.positives, made.positives), (negatives, made.negatives)):
                into.append([numbers.setdefault(text, len(numbers)) for text in texts])
            made.scores.append(scored)
        made.documents = list(numbers)
        return made

    def __len__(self) -> int:
        return len(self.queries)

    def draw(self, index: int, rng: np.random.Generator) -> Drawn:
        g, scored = self.group, self.scores[index]
        positives, negatives = self.positives[index], self.negatives[index]
        if scored is not None:
            every = np.array(positives + negatives)
            step = len(every) // g
            chosen = rng.integers(step) + step * np.arange(g)
            return Drawn(index, every[chosen], np.asarray(scored, np.float32)[chosen])
        first = positives[rng.integers(len(positives))]
        others = rng.choice(negatives, g - 1, replace=False) if g > 1 else []
        return Drawn(index, np.array([first, *others], np.int64), np.empty(0, np.float32))

    def tokenise(self, rows: Callable[..., TokenRows], query_length: int, length: int) -> None:
        """Token ids of all texts, once; rows(texts, max_length)."""
        self.tokens = rows(self.queries, query_length), rows(self.documents, length)

    def collate(self, drawn: Sequence[Drawn]) -> Batch:
        assert self.tokens is not None
        asked, texts = self.tokens
        numbers = np.stack([one.documents for one in drawn])
        scores = np.stack([one.scores for one in drawn])
        queries = np.array([one.query for one in drawn])
        return Batch(
            *asked.batch(queries), *texts.batch(numbers.ravel()), torch.from_numpy(queries),
            torch.from_numpy(numbers), torch.from_numpy(scores),
        )


def examples_of(collection: Collection, titles: int = 0) -> Sequence[Example]:
    """A collection's examples, or the pairs of its judged queries; without either, its headings.

    titles  with fewer examples than this the headings come besides, see
            `passband.data.documents.headings`

    Raises `DataError` where there is none of these.
    """
    given = collection.examples if len(collection.examples) else collection.pairs()
    few = len(given) < max(titles, 1)
    found = [*given, *headings(collection.corpus)] if few else given
    if not len(found):
        raise DataError(
            "nothing to learn from: no examples, no judged queries, and no document with a title "
            "or a second sentence", expected="queries with documents, or documents with titles",
            mend='give JSONL lines {"query", "pos", "negs"} or a folder with qrels',
        )
    return found


def candidates(queries: int, group: int, others: str) -> Tensor:
    """Which of a batch's B g documents each query ranks, its own positive first: [B, C].

    others  "own": the group alone; "negatives": of other groups all but the positives, as the
            reference's InfoNCE has it; "batch": all documents

    >>> candidates(2, 2, "negatives").tolist()
    [[0, 1, 3], [2, 1, 3]]
    """
    every = torch.arange(queries * group).view(queries, group)
    if others == "own":
        return every
    if others == "negatives":
        return torch.cat([every[:, :1], every[:, 1:].reshape(1, -1).expand(queries, -1)], 1)
    flat = every.reshape(1, -1).expand(queries, -1)
    rest = flat[flat != every[:, :1]].view(queries, -1)
    return torch.cat([every[:, :1], rest], 1)
