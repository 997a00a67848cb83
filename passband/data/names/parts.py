"""Names in two parts: what is learned from, and what is scored.

>>> train, test = within(seed=0, size="smoke")
>>> len(train), train.positives, len(test), test.positives
(400, 40, 400, 40)
>>> set(train.names) & set(test.names)
set()
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from passband.data.names.generated import generate
from passband.data.names.named import Named
from passband.data.names.readers import read
from passband.data.names.stdlib import standard_names
from passband.errors import DataError

SIZES = {"full": (5000, 200), "small": (2000, 100), "smoke": (400, 40)}  # names, vulnerable ones
PROJECTS = 8
PROJECT_SIZES = {"full": (1500, 100), "small": (600, 40), "smoke": (150, 15)}
FRACTION = 5  # one of five names of real lists is held out


def within(seed: int, size: str) -> tuple[Named, Named]:
    """Train and test of one project: equal sizes, no name in both."""
    names, positives = SIZES[size]
    return halves(names, positives, seed)


def halves(names: int, positives: int, seed: int) -> tuple[Named, Named]:
    """The same at any size."""
    whole = generate(seed, names=2 * names, positives=2 * positives)
    danger, benign = np.flatnonzero(whole.vulnerable), np.flatnonzero(~whole.vulnerable)
    # The generator deals names out in random order: every second one of a kind is a fair half.
    return tuple(  # type: ignore[return-value]
        whole.take(np.sort(np.concatenate([danger[part::2], benign[part::2]])))
        for part in (0, 1)
    )


def across(seed: int, size: str) -> tuple[Named, Named]:
    """Seven projects to learn from and an eighth, none with the dangerous words of another."""
    names, positives = PROJECT_SIZES[size]
    whole = generate(seed, names=names, positives=positives, projects=PROJECTS)
    last = np.array(whole.projects) == f"project-{PROJECTS - 1}"
    return whole.take(np.flatnonzero(~last)), whole.take(np.flatnonzero(last))


def standard(seed: int, size: str) -> tuple[Named, Named]:
    """Names of Python's own library; `smoke` takes the first 600."""
    whole = standard_names()
    return held_out(whole.take(np.arange(600)) if size == "smoke" else whole, seed)


def of_users(path: Path) -> tuple[Named, Named]:
    """The user's own list; one in five of each label is held out."""
    whole = read(path).warn()
    if whole.positives < FRACTION:
        raise DataError(
            f"{path} has {whole.positives} vulnerable names", expected=f"at least {FRACTION}",
            mend="give more names" if whole.positives else "check the labels: 1 is vulnerable",
        )
    return held_out(whole.needs(FRACTION, "a part to learn from and one to score"), seed=99)


def held_out(whole: Named, seed: int) -> tuple[Named, Named]:
    """Four fifths and a fifth of each label, shuffled by the seed."""
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(whole))
    test = np.zeros(len(whole), dtype=bool)
    for label in (True, False):
        mine = order[whole.vulnerable[order] == label]
        test[mine[: max(1, len(mine) // FRACTION)]] = True
    return whole.take(order[~test[order]]), whole.take(order[test[order]])
