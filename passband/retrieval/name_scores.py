"""Scores of flagged names against the truth.

>>> flags = Flags(("a", "b", "c", "d"), np.array([0.9, 0.6, 0.2, 0.1]),
...               np.array([True, True, False, False]), ((),) * 4)
>>> found = score(flags, np.array([True, False, True, False]))
>>> found["f2"], found["precision"], found["recall"], found["auc"]
(0.5, 0.5, 0.5, 0.75)
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from passband.bench.task import Artifact
from passband.errors import MissingExtraError
from passband.retrieval.flags import Array, Flags

SHOWN = 40  # rows of a table


def score(flags: Flags, vulnerable: Array) -> dict[str, float]:
    """Metrics by name; vulnerable [N] bool. A name without a score counts as the least risky."""
    try:
        from sklearn.metrics import average_precision_score, roc_auc_score
    except ModuleNotFoundError:
        raise MissingExtraError("scikit-learn", "retrieval") from None
    values = np.nan_to_num(flags.scores, nan=-1.0)
    positives, flagged = int(vulnerable.sum()), int(flags.flags.sum())
    hits = int((flags.flags & vulnerable).sum())
    f2 = _f2(hits, flagged, positives)
    everything = _f2(positives, len(vulnerable), positives)
    both = 0 < positives < len(vulnerable)
    return {
        "f2": f2,
        "over_all": f2 / everything if everything else 0.0,
        "precision": hits / flagged if flagged else 0.0,
        "recall": hits / positives if positives else 0.0,
        "average_precision": float(average_precision_score(vulnerable, values)) if both else 0.0,
        "auc": float(roc_auc_score(vulnerable, values)) if both else 0.5,
        "flag_all_f2": everything,
    }


def _f2(hits: int, flagged: int, positives: int) -> float:
    below = flagged + 4 * positives
    return 5 * hits / below if below else 0.0


def table(flags: Flags, vulnerable: Array, folder: Path) -> Artifact:
    """The names at the top of the list, with the truth."""
    rows = [
        [flags.names[i], f"{flags.scores[i]:.2f}", "yes" if flags.flags[i] else "",
         " ".join(word for word, _ in flags.words[i]), "yes" if vulnerable[i] else ""]
        for i in flags.order()[:SHOWN]
    ]
    columns = ["name", "score", "flagged", "because of", "vulnerable"]
    (folder / "names.json").write_text(json.dumps({"columns": columns, "rows": rows}))
    return Artifact("table", "The riskiest names", "names.json")
