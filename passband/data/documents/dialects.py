"""Two dialects: what is meant is the same, the words are not.

>>> data = two_dialects(size="smoke")
>>> query, found = next(iter(data.test.judgements.items()))
>>> words = set(data.test.queries[query].split())
>>> document = data.test.corpus[data.test.corpus.place(next(iter(found)))].text
>>> len(words), words & set(document.split())
(5, set())

Each of 400 concepts has a word in dialect A and another in B. A document is about two topics, 12
concepts of each, in one dialect; three in ten use both, word by word. A query is five concepts of
one document in the other dialect: no word is shared, so counting words finds nothing. That the
two words of a concept keep the same company can be seen from the documents that mix them.

What is learned from has all documents; what is searched are those in dialect A alone, as passages
of one language are where questions come in another. Where documents in the query's own dialect
are searched with them, whoever learns the dialects apart finds those first, whatever they mean.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from passband.data.documents.collection import Collection, Document, Listed
from passband.data.documents.made_words import Noise, made_words
from passband.data.documents.parts import Parts, split
from passband.errors import DataError, UnknownNameError

CONCEPTS, TOPICS = 400, 50
OF_TOPIC, OF_DOCUMENT, OF_QUERY = 20, 12, 5  # concepts: of a topic; of each of two; of a query
# size -> documents, queries of all parts
SIZES = {"full": (20_000, 10_000), "small": (5_000, 2_500), "smoke": (300, 150)}


def two_dialects(
    seed: int = 0, size: str = "small", *, same: bool = False, mixed: float = 0.3,
    anchors: int = 0,
) -> Parts:
    """Collections: to learn from over all documents, valid and test over those in dialect A.

    seed     draws everything
    size     "full" 20,000, "small" 5,000 or "smoke" 300 documents
    same     queries in the dialect of the documents: what counting words is good at
    mixed    share of documents in both dialects
    anchors  words of each topic, of 40, that are the same in both dialects, as names and numbers
             are; each document and each query has one of each of its topics

    A query has one relevant document.
    """
    if size not in SIZES:
        raise UnknownNameError("size", size, SIZES)
    if not 0 <= mixed < 1 or not 0 <= anchors <= 40:
        raise DataError(
            f"mixed = {mixed}, anchors = {anchors}", expected="shares in [0, 1), 0 to 40 anchors",
        )
    rng = np.random.default_rng([seed, 20])
    documents, queries = SIZES[size]
    words = np.array(made_words(2 * CONCEPTS, rng)).reshape(2, CONCEPTS)
    names = np.array(made_words(40 * TOPICS, rng, syllables=4)).reshape(TOPICS, 40)[:, :anchors]
    topics = np.stack([rng.permutation(CONCEPTS)[:OF_TOPIC] for _ in range(TOPICS)])
    noise = Noise(rng)

    def text(concepts: np.ndarray, dialect: np.ndarray, about: np.ndarray) -> list[str]:
        shared = [str(rng.choice(names[topic])) for topic in about] if anchors else []
        return [*words[dialect, concepts], *shared]

    listed, dialects, meant, abouts = [], [], [], []
    for number in range(documents):
        about = rng.permutation(TOPICS)[:2]
        concepts = np.unique(np.concatenate(
            [rng.permutation(topics[topic])[:OF_DOCUMENT] for topic in about]
        ))
        pure = rng.random() >= mixed
        dialect = np.full(len(concepts), rng.integers(2))
        used = dialect if pure else rng.integers(2, size=len(concepts))
        listed.append(Document(f"d{number}", noise.among(text(concepts, used, about), rng)))
        dialects.append(int(dialect[0]) if pure else -1)
        meant.append(concepts)
        abouts.append(about)
    asked, relevant = {}, {}
    library = np.flatnonzero(np.array(dialects) == 0)
    for number, place in enumerate(np.resize(rng.permutation(library), queries)):
        chosen = rng.permutation(meant[place])[:OF_QUERY]
        dialect = np.full(OF_QUERY, 0 if same else 1)
        asked[f"q{number}"] = " ".join(text(chosen, dialect, abouts[place]))
        relevant[f"q{number}"] = {listed[place].id: 1}
    about = {"seed": seed, "same": same, "mixed": mixed, "anchors": anchors}
    whole = Collection(Listed(listed), asked, relevant, about=about)
    parts = split(whole, seed, len(asked) // 10, len(asked) // 5)
    searched = Listed(listed[place] for place in library)
    return Parts(
        parts.train, replace(parts.valid, corpus=searched), replace(parts.test, corpus=searched)
    )


def same_dialect(seed: int = 0, size: str = "small") -> Parts:
    """The same documents, queries in the words that their document uses."""
    return two_dialects(seed, size, same=True)


def named_dialects(seed: int = 0, size: str = "small") -> Parts:
    """Dialects that share ten names a topic, as two languages do."""
    return two_dialects(seed, size, anchors=10)
