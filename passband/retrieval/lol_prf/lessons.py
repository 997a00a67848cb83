"""Training queries with what was found for them, as batches of revisions.

    found       places of the K best documents of the first search, which is never done again
    subset      P documents that all revisions are ranked over: the best of every training query
                and all positives
    a batch     queries, of each R = 1 + c revisions that read nested sets of passages

A query without a relevant document, or that found too few passages for its revisions, is left out
with a count.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from passband.data.documents.collection import Collection
from passband.errors import DataError, PassbandWarning
from passband.retrieval.lol_prf.feedback import Drawn, draw, first
from passband.retrieval.lol_prf.sequences import Batch, Frame, Read, stack
from passband.retrieval.wordpieces import WordPieces


class Step(NamedTuple):
    """B = queries x R revisions, the revisions of a query together, most feedback first.

        positives [B, M], left_out [B, 1] places in the subset, -1 where there is none
        owners [B] which query of the lessons; relevant [B, K] of the passages that were read
        label [B, 1] the positive that is asked for; [B, 0]: the hardest one
    """

    batch: Batch
    positives: Tensor
    left_out: Tensor
    owners: Tensor
    relevant: Tensor
    label: Tensor


@dataclass(frozen=True)
class Asked:
    """A query: its tokens, what it found, and what is relevant; places are in the corpus.

    own  place of the document that the query is, which evaluation takes out; -1: there is none
    """

    id: str
    tokens: list[int]
    found: tuple[int, ...]
    positives: tuple[int, ...]
    own: int = -1


class Lessons:
    """Indexable by query; `draw(i, rng)` gives the revisions of one, `collate` a `Step`.

    asked      queries, all with positives
    passages   place in the corpus -> tokens
    subset     [P] places in the corpus, rising
    revisions  R
    fixed      read this many passages instead of drawn numbers (R = 1)
    shuffle    random subsets in random order; else the best ones in theirs
    label      "drawn": one of the positives at random, the same for all revisions of a query
    """

    def __init__(
        self, asked: Sequence[Asked], passages: Mapping[int, list[int]], subset: Sequence[int],
        frame: Frame, *, revisions: int, pad: int = 0, fixed: int | None = None,
        shuffle: bool = True, label: str = "hardest",
    ) -> None:
        self.asked, self.passages, self.frame = list(asked), passages, frame
        self.subset = np.asarray(subset)
        self.revisions, self.pad, self.fixed, self.shuffle = revisions, pad, fixed, shuffle
        self.label = label
        self._in_subset = {int(p): i for i, p in enumerate(self.subset)}

    def __len__(self) -> int:
        return len(self.asked)

    def draw(self, index: int, rng: np.random.Generator) -> tuple[int, int, Drawn]:
        """Number of the query, place of the positive to ask for, what its revisions read."""
        one = self.asked[index]
        positive = one.positives[int(rng.integers(len(one.positives)))]
        if self.fixed is not None:
            taken = first(one.found, self.fixed)
            return index, positive, Drawn(taken, (len(taken),))
        return index, positive, draw(one.found, self.revisions, rng, shuffle=self.shuffle)

    def collate(self, drawn: Sequence[tuple[int, int, Drawn]]) -> Step:
        reads: list[Read] = []
        read_places: list[tuple[int, ...]] = []
        owners, wanted = [], []
        for index, positive, feedback in drawn:
            whole = self.read(index, feedback.passages)
            for size in feedback.sizes:
                reads.append(whole.prefix(size))
                read_places.append(feedback.passages[:size])
                owners.append(index)
                wanted.append((positive,) if self.label == "drawn" else ())
        batch = stack(reads, self.pad)
        asked = [self.asked[i] for i in owners]
        relevant = torch.zeros(len(reads), batch.separators.shape[1] - 1)
        for row, (one, places) in enumerate(zip(asked, read_places, strict=True)):
            for column, place in enumerate(places[: relevant.shape[1]]):
                relevant[row, column] = float(place in one.positives)
        return Step(
            batch, self.places([one.positives for one in asked]),
            self.places([(one.own,) for one in asked]), torch.tensor(owners), relevant,
            self.places(wanted),
        )

    def read(self, index: int, places: Sequence[int]) -> Read:
        """A query and passages as the reformulator reads them."""
        return self.frame.assemble(
            self.asked[index].tokens, [self.passages[p] for p in places]
        )

    def places(self, groups: Sequence[Sequence[int]]) -> Tensor:
        """Places in the corpus -> places in the subset [B, longest], -1 for others."""
        longest = max(len(g) for g in groups)
        found = torch.full((len(groups), longest), -1, dtype=torch.int64)
        for row, group in enumerate(groups):
            for column, place in enumerate(group):
                found[row, column] = self._in_subset.get(int(place), -1)
        return found


def gather(
    data: Collection, found: Sequence[Sequence[int]], pieces: WordPieces, frame: Frame, *,
    feedback: int, candidates: int, **options: Any,
) -> Lessons:
    """Lessons of a collection's judged queries, which are in the order of `judged`.

    found       places of the documents that each query found, best first
    feedback    passages that a revision reads at most
    candidates  of each query's best, those that join the subset
    options     of `Lessons`

    Raises `DataError` where no query is left.
    """
    corpus, ids = data.corpus, judged(data)
    least = 0 if options.get("fixed") is not None else options["revisions"] - 1
    asked, few = [], 0
    texts = [data.queries[q] for q in ids]
    tokens = tokens_of(pieces, texts, frame.max_query)
    for q, words, places in zip(ids, tokens, found, strict=True):
        positives = tuple(
            corpus.place(d) for d, grade in data.judgements[q].items()
            if grade > 0 and d in corpus and not (data.queries_are_documents and d == q)
        )
        places = first(places, max(feedback, candidates))
        if not positives or len(places[:feedback]) < least:
            few += 1
            continue
        own = corpus.place(q) if data.queries_are_documents and q in corpus else -1
        asked.append(Asked(q, words, places, positives, own))
    if few:
        warnings.warn(
            f"{few} of {len(ids)} queries have no relevant document or found fewer than {least} "
            "passages, and are left out", PassbandWarning, stacklevel=2,
        )
    if not asked:
        raise DataError(
            f"none of {len(ids)} queries can be learned from",
            expected="queries with a relevant document that find passages at first",
            mend="check that judgements and corpus have the same ids",
        )
    subset = {p for one in asked for p in (*one.found[:candidates], *one.positives)}
    asked = [
        Asked(one.id, one.tokens, one.found[:feedback], one.positives, one.own) for one in asked
    ]
    needed = sorted({p for one in asked for p in one.found})
    passages = pieces.rows([corpus[p].full for p in needed], frame.max_passage, specials=False)
    return Lessons(
        asked, {p: passages[i].tolist() for i, p in enumerate(needed)}, sorted(subset), frame,
        pad=pieces.pad, **options,
    )


def tokens_of(pieces: WordPieces, queries: Sequence[str], most: int) -> list[list[int]]:
    """Tokens of queries, cut after `most` of them: a warning counts those."""
    rows = pieces.rows(queries, most, specials=False)
    if rows.cut:
        warnings.warn(
            f"{rows.cut} of {len(queries)} queries are longer than {most} tokens and are cut",
            PassbandWarning, stacklevel=2,
        )
    return [rows[i].tolist() for i in range(len(rows))]


def judged(data: Collection) -> list[str]:
    """Ids of the queries with a judgement."""
    return [q for q in data.queries if q in data.judgements]


def given_rankings(data: Collection) -> list[list[int]] | None:
    """Somebody's first search, where the data bring one; `DataError` names unknown ids."""
    if not data.rankings:
        return None
    unknown = [d for found in data.rankings.values() for d in found if d not in data.corpus]
    if unknown:
        raise DataError(
            f"{len(unknown)} ranked documents are not in the corpus: "
            + ", ".join(map(repr, unknown[:5])), expected="ids of the corpus",
            mend="take the run file that belongs to this corpus",
        )
    return [
        [data.corpus.place(d) for d in data.rankings.get(q, ())] for q in judged(data)
    ]
