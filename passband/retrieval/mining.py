"""Hard negatives: documents that a search puts first and nobody judged relevant.

    own     the model that is being trained searches its own index of the corpus
    bm25    impacts of words in an inverted index

Positives are left out by their text, so that two copies of a document are no negatives either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from passband.data.documents.collection import Corpus, Example
from passband.parts.inverted_index import InvertedIndex
from passband.retrieval.first_stage import FirstStage

BLOCK = 1024


def mined(
    corpus: Corpus, examples: Sequence[Example], found: Sequence[Sequence[int]], least: int,
    rng: np.random.Generator,
) -> dict[int, list[str]]:
    """Number of an example -> texts of its negatives, at least `least` of them.

    found  places in the corpus for each example, best first; random documents fill up what is
           missing after positives were removed
    """
    chosen: dict[int, list[str]] = {}
    for i, (example, places) in enumerate(zip(examples, found, strict=True)):
        taken = set(example.positives)
        texts: list[str] = []
        _take((int(p) for p in places), corpus, taken, texts, len(places))
        if len(texts) < least:
            _take(rng.permutation(len(corpus))[: 20 * least].tolist(), corpus, taken, texts, least)
        chosen[i] = texts
    return chosen


def _take(places: Any, corpus: Corpus, taken: set[str], into: list[str], most: int) -> None:
    for place in places:
        if len(into) >= most:
            return
        text = corpus[place].full
        if text not in taken:
            taken.add(text)
            into.append(text)


def found_by_stage(
    stage: FirstStage, corpus: Corpus, queries: Sequence[str], depth: int
) -> list[list[int]]:
    """Places that a sparse first stage finds for each query; its statistics are the corpus'."""
    texts = [document.full for document in corpus]
    blocks = [texts[i : i + BLOCK] for i in range(0, len(texts), BLOCK)]
    stage.prepare(blocks)
    index = InvertedIndex.create(None, (stage.documents(block) for block in blocks))
    places = index.search(stage.queries(queries), min(depth, len(corpus))).places
    return [row[row >= 0].tolist() for row in places]
