"""Ambiguous words: each belongs to two topics, and mostly to one of them.

>>> data = ambiguous_topics(size="smoke")
>>> query = next(iter(data.test.queries))
>>> len(data.test.queries[query].split()), len(data.test.judgements[query])
(2, 30)

A topic has 40 terms, 16 of which it shares with one other topic. Of the documents that have a
shared term, the share `p` is of the topic that mostly uses it. A query is two shared terms of the
same main topic, and all documents of that topic are relevant: also those without the query's
words, which only the other terms of the topic can lead to. What a first search finds is on the
right topic for the share `p`, roughly, and the rest leads away.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from passband.data.documents.collection import Collection, Document, Listed
from passband.data.documents.made_words import Noise, made_words
from passband.data.documents.parts import Parts, split
from passband.errors import DataError, UnknownNameError

OWN, SHARED = 24, 16  # terms of a topic
DRAWN = 20  # of its own terms in a document, with repetition
PRESENCE = 0.4  # chance of a shared term in a document, both topics of the pair together
# size -> topics, documents of each
SIZES = {"full": (50, 200), "small": (50, 60), "smoke": (10, 30)}


def ambiguous_topics(seed: int = 0, size: str = "small", *, p: float = 0.7) -> Parts:
    """Collections over one corpus.

    seed  draws everything
    size  "full" 10,000, "small" 3,000 or "smoke" 300 documents
    p     share of the main topic among the documents with a shared term, above 0.5
    """
    if size not in SIZES:
        raise UnknownNameError("size", size, SIZES)
    if not 0.5 < p <= 1:
        raise DataError(f"p = {p}", expected="above 0.5, at most 1")
    rng = np.random.default_rng([seed, 21])
    topics, each = SIZES[size]
    pool = np.array(made_words(topics * OWN + topics // 2 * SHARED, rng))
    own = pool[: topics * OWN].reshape(topics, OWN)
    shared = pool[topics * OWN :].reshape(topics // 2, SHARED)
    noise = Noise(rng)
    listed = []
    for topic in np.repeat(np.arange(topics), each):
        terms = rng.choice(own[topic], size=DRAWN)
        chance = PRESENCE * np.where(_main(topic), p, 1 - p)
        also = shared[topic // 2][rng.random(SHARED) < chance]
        text = noise.among([*terms, *also], rng, share=0.35)
        listed.append((int(topic), Document(f"d{len(listed)}", text)))
    # The order says nothing of the topic: equal scores are ranked by it.
    listed = [listed[i] for i in rng.permutation(len(listed))]
    members = {t: {d.id: 1 for topic, d in listed if topic == t} for t in range(topics)}
    asked, relevant = {}, {}
    for topic in range(topics):
        for pair in combinations(shared[topic // 2][_main(topic)], 2):
            name = f"q{len(asked)}"
            asked[name], relevant[name] = " ".join(pair), members[topic]
    about = {"seed": seed, "p": p}
    whole = Collection(Listed(document for _, document in listed), asked, relevant, about=about)
    return split(whole, seed, len(asked) // 10, len(asked) // 5)


def _main(topic: int) -> np.ndarray:
    """Which of the shared terms are mostly this topic's: one half, the other half its partner's."""
    return np.arange(SHARED) % 2 == topic % 2
