"""Made-up function names in which a few words are dangerous.

>>> named = generate(seed=0, names=200, positives=20)
>>> len(named), named.positives, len(set(named.names))
(200, 20, 200)

A name is verb, noun and perhaps a qualifier, in snake or camel case. A project has a vocabulary of
its own besides the words that all share, and ten of its own words are dangerous:

    P(vulnerable) = sigmoid(a + b * dangerous words in the name)

with a such that exactly as many names are vulnerable as asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from passband.data.names.named import Named

WORDS, SHARED, DANGEROUS = 300, 150, 10  # of a project; DANGEROUS are none of the shared ones
STRENGTH = 4.0  # b: each dangerous word multiplies the odds by 55
SNAKE = 0.7  # share of the names
QUALIFIED = 0.5

_FIRST = (
    *"bcdfghjklmnprstvw", "br", "ch", "dr", "fl", "gr", "pl", "sh", "st", "tr",
)
_VOWELS = (*"aeiou", "ai", "ea", "ou")
_LAST = ("", *"bdgklmnprtx", "ck", "nd", "rt", "sh", "ss", "st")


def generate(
    seed: int, *, names: int = 2000, positives: int = 100, projects: int = 1,
    strength: float = STRENGTH,
) -> Named:
    """Labelled names of one project or several, all distinct; each has its own dangerous words.

    names, positives  of each project
    projects          they share half of their vocabularies
    """
    rng = np.random.Generator(np.random.PCG64([seed, names, positives, projects]))
    pool = _words(rng, SHARED + projects * (WORDS - SHARED))
    texts: list[str] = []
    labels: list[Any] = []
    owners: list[str] = []
    taken: set[str] = set()
    for project in range(projects):
        start = SHARED + project * (WORDS - SHARED)
        own = pool[start : start + WORDS - SHARED]
        vocabulary = _Vocabulary.of(rng, pool[:SHARED], own)
        here, danger = vocabulary.names(rng, names, taken)
        # A logistic variable above a threshold is true with the sigmoid's probability.
        latent = strength * danger + rng.logistic(size=names)
        vulnerable = np.zeros(names, dtype=bool)
        vulnerable[np.argsort(-latent, kind="stable")[:positives]] = True
        texts += here
        labels.append(vulnerable)
        owners += [f"project-{project}"] * names
    return Named(tuple(texts), np.concatenate(labels), tuple(owners))


@dataclass(frozen=True)
class _Vocabulary:
    """Words by falling frequency; a quarter of them are verbs."""

    verbs: list[str]
    nouns: list[str]
    dangerous: frozenset[str]

    @classmethod
    def of(cls, rng: np.random.Generator, shared: list[str], own: list[str]) -> _Vocabulary:
        words = [*shared, *own]
        words = [words[i] for i in rng.permutation(len(words))]
        dangerous = frozenset(own[i] for i in rng.permutation(len(own))[:DANGEROUS])
        quarter = len(words) // 4
        return cls(words[:quarter], words[quarter:], dangerous)

    def names(
        self, rng: np.random.Generator, count: int, taken: set[str]
    ) -> tuple[list[str], Any]:
        """`count` names that nobody has, and how many dangerous words are in each."""
        found: list[str] = []
        danger: list[int] = []
        verbs, nouns = _zipf(len(self.verbs)), _zipf(len(self.nouns))
        while len(found) < count:
            size = 2 * (count - len(found)) + 10
            heads = rng.choice(len(self.verbs), size, p=verbs)
            tails = rng.choice(len(self.nouns), (size, 2), p=nouns)
            qualified, snake = rng.random(size) < QUALIFIED, rng.random(size) < SNAKE
            for head, pair, more, plain in zip(heads, tails, qualified, snake, strict=True):
                words = [self.verbs[head], *(self.nouns[i] for i in pair[: 1 + more])]
                name = "_".join(words) if plain else _camel(words)
                if name not in taken and len(found) < count:
                    taken.add(name)
                    found.append(name)
                    danger.append(len(self.dangerous.intersection(words)))
        return found, np.array(danger)


def _camel(words: list[str]) -> str:
    return words[0] + "".join(word.capitalize() for word in words[1:])


def _zipf(count: int) -> Any:
    weights = 1.0 / (np.arange(count) + 10.0)
    return weights / weights.sum()


def _words(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct words of two syllables."""
    found: dict[str, None] = {}
    while len(found) < count:
        parts = [
            kinds[rng.integers(len(kinds))]
            for kinds in (_FIRST, _VOWELS, _FIRST, _VOWELS, _LAST)
        ]
        found["".join(parts)] = None
    return list(found)
