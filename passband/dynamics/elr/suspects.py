"""Which labels are wrong: the running targets against the labels they were learned beside.

    flagged  where argmax T[i] != y[i];     score = 1 - T[i, y[i]] / sum T[i]

>>> elr = ELRLoss(num_samples=3, num_classes=2)
>>> _ = elr.update(torch.arange(3), torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]))
>>> suspects = flag_mislabeled(elr, labels=[0, 0, 1], classes=("cat", "dog"))
>>> suspects.index.tolist(), suspects.suggested.tolist()      # the most suspicious first
([1, 2], [1, 0])
>>> suspects.save("suspects.csv").read_text().splitlines()[1]
'1,cat,dog,0.800000,0.800000'
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from passband.bench.results import write_atomic
from passband.dynamics.elr.model import ELRLoss
from passband.dynamics.scores import auroc
from passband.errors import DataError


@dataclass(frozen=True, eq=False)
class Suspects:
    """Flagged examples, the most suspicious first; M of them, N in all.

    index        [M] places in the training set
    label        [M] given
    suggested    [M] what the targets say
    score        [M] 1 - share of the targets on the given label
    probability  [M] their share on the suggested one
    scores       [N] of every example; 0 where it was never seen
    classes      names, or empty;  names: of the examples, or empty
    """

    index: Tensor
    label: Tensor
    suggested: Tensor
    score: Tensor
    probability: Tensor
    scores: Tensor
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.index)

    def table(self, limit: int | None = None) -> dict[str, list[Any]]:
        """{"columns", "rows"}: index, (name,) label, suggested, score, probability."""
        columns = ["index", *(["name"] if self.names else []), "label", "suggested", "score",
                   "probability"]
        rows = []
        for i, label, other, score, p in list(zip(
            self.index.tolist(), self.label.tolist(), self.suggested.tolist(),
            self.score.tolist(), self.probability.tolist(), strict=True,
        ))[:limit]:
            name = [self.names[i]] if self.names else []
            rows.append([i, *name, self._class(label), self._class(other), score, p])
        return {"columns": columns, "rows": rows}

    def save(self, path: str | Path) -> Path:
        """Write a .csv or .json table; DataError for another kind of file."""
        path = Path(path)
        writers = {".csv": _csv, ".json": _json}
        if path.suffix not in writers:
            raise DataError(f"a table as {path.name}", expected="a .csv or .json file")
        write_atomic(path, writers[path.suffix](self.table()).encode())
        return path

    def judged(self, wrong: Any) -> dict[str, float]:
        """How well wrong labels were found, where they are known: [N] True if wrong.

        precision, recall     of the flagged ones
        auroc                 of the scores
        precision_at_recall   share of wrong ones among the highest scores that hold 90 % of them
        """
        truth = np.asarray(wrong, dtype=bool)
        if truth.shape != tuple(self.scores.shape):
            raise DataError(
                f"{list(truth.shape)} marks for {len(self.scores)} examples", expected="one each"
            )
        flagged = np.zeros(len(truth), dtype=bool)
        flagged[self.index.numpy()] = True
        hits, all_wrong = int((flagged & truth).sum()), int(truth.sum())
        found = np.cumsum(truth[np.argsort(-self.scores.numpy(), kind="stable")])
        needed = int(np.ceil(0.9 * all_wrong - 1e-9))
        depth = int(np.searchsorted(found, needed)) + 1
        return {
            "precision": hits / max(1, len(self)), "recall": hits / max(1, all_wrong),
            "auroc": auroc(self.scores.numpy(), truth),
            "precision_at_recall": needed / depth if all_wrong else float("nan"),
        }

    def _class(self, place: int) -> str | int:
        return self.classes[place] if self.classes else place


def flag_mislabeled(
    loss: ELRLoss | nn.Module | Tensor, labels: Any, *, classes: Sequence[str] = (),
    names: Sequence[str] = (),
) -> Suspects:
    """Read the wrong labels out of the targets.

    loss    an `ELRLoss`, an `ELRPlus`, or targets [N, C]
    labels  [N] as in training
    """
    targets = loss if isinstance(loss, Tensor) else _dense(loss)
    y = torch.as_tensor(np.asarray(labels)) if not isinstance(labels, Tensor) else labels.cpu()
    if y.shape != targets.shape[:1] or y.is_floating_point():
        raise DataError(
            f"labels of shape {list(y.shape)} and type {y.dtype}",
            expected=f"[{len(targets)}] classes, in the order of the training set",
        )
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < targets.shape[1]:
        raise DataError(
            f"labels from {int(y.min())} to {int(y.max())}",
            expected=f"0 to {targets.shape[1] - 1}",
        )
    if names and len(names) != len(y):
        raise DataError(f"{len(names)} names for {len(y)} examples", expected="as many")
    y, total = y.long(), targets.sum(1)
    seen = total > 0
    p = targets / total.clamp_min(1e-12)[:, None]
    best, guess = p.max(1)
    scores = torch.where(seen, 1 - p.gather(1, y[:, None])[:, 0], torch.zeros_like(total))
    flagged = (seen & (guess != y)).nonzero()[:, 0]
    order = flagged[scores[flagged].argsort(descending=True, stable=True)]
    return Suspects(
        order, y[order], guess[order], scores[order], best[order], scores, tuple(map(str, classes)),
        tuple(map(str, names)),
    )


def _dense(loss: Any) -> Tensor:
    found: Tensor = loss.store.dense() if isinstance(loss, ELRLoss) else loss.dense()
    return found


def _csv(table: dict[str, list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table["columns"])
    for *row, score, p in table["rows"]:
        writer.writerow([*row, f"{score:.6f}", f"{p:.6f}"])
    return text.getvalue()


def _json(table: dict[str, list[Any]]) -> str:
    return json.dumps([dict(zip(table["columns"], row, strict=True)) for row in table["rows"]])
