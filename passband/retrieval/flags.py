"""What a system with the verb `flag` gives: names with scores, flags and the words behind them.

>>> flags = Flags(("copy_buffer", "get"), np.array([0.5, 0.0]), np.array([True, False]),
...               ((("copy", 0.5),), ()))
>>> flags.rows()[0]
{'name': 'copy_buffer', 'score': 0.5, 'flag': True, 'words': 'copy', 'contributions': '0.5'}
>>> [row["name"] for row in flags.rows(ranked=True)]
['copy_buffer', 'get']
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Flags:
    """N names in the order they came.

    scores  [N] in [0, 1], NaN for a name that can't be scored
    flags   [N] bool: worth a look before the others; no finding
    words   of each name with what each adds to the score, the largest first
    """

    names: tuple[str, ...]
    scores: Array
    flags: Array
    words: tuple[tuple[tuple[str, float], ...], ...]

    def __len__(self) -> int:
        return len(self.names)

    def order(self) -> Array:
        """Places by falling score; equal ones as they came, names without a score last."""
        return np.argsort(np.where(np.isnan(self.scores), np.inf, -self.scores), kind="stable")

    def rows(self, *, ranked: bool = False) -> list[dict[str, Any]]:
        """One mapping a name, for `csv.DictWriter` or `pandas.DataFrame`."""
        places = self.order() if ranked else range(len(self))
        return [
            {
                "name": self.names[i], "score": round(float(self.scores[i]), 6),
                "flag": bool(self.flags[i]), "words": " ".join(word for word, _ in self.words[i]),
                "contributions": " ".join(f"{share:.4g}" for _, share in self.words[i]),
            }
            for i in places
        ]


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Rows with equal keys as a CSV file; written under another name first."""
    rows = list(rows)
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]) if rows else ["name"])
        table.writeheader()
        table.writerows(rows)
    temporary.replace(path)
    return path
