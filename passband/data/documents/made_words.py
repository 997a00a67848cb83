"""Words of no language, for generated text.

>>> words = made_words(3, np.random.default_rng(0))
>>> len(set(words)), all(word.isalpha() for word in words)
(3, True)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_STARTS, _VOWELS, _ENDS = "bdfgklmnprtvz", "aiou", "kmpx"  # endings that no stemmer takes off


def made_words(count: int, rng: np.random.Generator, syllables: int = 3) -> list[str]:
    """Distinct words of consonants and vowels in turns."""
    found: dict[str, None] = {}
    while len(found) < count:
        starts = rng.integers(len(_STARTS), size=syllables)
        vowels = rng.integers(len(_VOWELS), size=syllables)
        word = "".join(_STARTS[c] + _VOWELS[v] for c, v in zip(starts, vowels, strict=True))
        found[word + _ENDS[int(rng.integers(len(_ENDS)))]] = None
    return list(found)


class Noise:
    """Function words: few and short, used as often as 1 / rank."""

    def __init__(self, rng: np.random.Generator, count: int = 60) -> None:
        self.words = np.array(made_words(count, rng, syllables=1))
        shares = 1.0 / np.arange(1, count + 1)
        self._shares = shares / shares.sum()

    def among(self, words: Sequence[str], rng: np.random.Generator, share: float = 0.5) -> str:
        """The words in a random order with noise between them, `share` of the text."""
        extra = round(len(words) * share / (1 - share))
        noise = rng.choice(self.words, size=extra, p=self._shares)
        return " ".join(rng.permutation(np.concatenate([np.asarray(words, dtype=str), noise])))
