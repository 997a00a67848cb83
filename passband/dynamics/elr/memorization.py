"""What becomes of right and wrong labels while a network trains, where the truth is known.

    of clean rows:  clean_right, clean_missed            of wrong rows:  recovered (the true class),
                                                         memorised (the wrong label), other

>>> x, truth = torch.eye(4), torch.tensor([0, 1, 2, 3])
>>> tracker = MemorizationTracker(x, truth, noisy=torch.tensor([0, 1, 3, 3]))
>>> tracker(nn.Identity(), step=0)
{'clean_right': 1.0, 'clean_missed': 0.0, 'recovered': 1.0, 'memorised': 0.0, 'other': 0.0}
>>> tracker.advice()
''

A probe as `passband.parts.probes` takes it: `Probes(tracker, every=20)` in any loop.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from passband.errors import DataError
from passband.parts.modes import evaluating

ROWS = 8192  # examples at a time


class MemorizationTracker:
    """
    x      [N, ...] as the model takes them
    truth  [N] classes;  noisy [N] the labels it learns from
    rows   what each call gave, with its step

    Raises DataError where no label is wrong, or all are.
    """

    def __init__(self, x: Tensor, truth: Tensor, noisy: Tensor) -> None:
        if not len(x) == len(truth) == len(noisy):
            raise DataError(
                f"{len(x)} examples, {len(truth)} true and {len(noisy)} given labels",
                expected="as many of each",
            )
        self.x, self.truth, self.noisy = x, truth, noisy
        self.wrong = truth != noisy
        if bool(self.wrong.all()) or not bool(self.wrong.any()):
            raise DataError(
                f"{int(self.wrong.sum())} of {len(x)} labels are wrong",
                expected="some wrong and some right: there is nothing to tell apart",
            )
        self.rows: list[dict[str, float]] = []

    def __call__(self, model: Any, step: int) -> dict[str, float]:
        with torch.no_grad(), evaluating(model):
            device = next((p.device for p in model.parameters()), self.x.device)
            found = [model(part.to(device)).argmax(1).cpu() for part in self.x.split(ROWS)]
        row = self.count(torch.cat(found))
        self.rows.append({"step": step, **row})
        return row

    def count(self, given: Tensor) -> dict[str, float]:
        """Shares of the classes [N] that a model gives."""
        clean, wrong = ~self.wrong, self.wrong
        right = _share(given == self.truth, clean)
        recovered = _share(given == self.truth, wrong)
        memorised = _share(given == self.noisy, wrong)
        return {
            "clean_right": right, "clean_missed": 1 - right, "recovered": recovered,
            "memorised": memorised, "other": max(0.0, 1 - recovered - memorised),
        }

    @property
    def early_learning(self) -> bool:
        """Whether wrong rows were ever given their true class more often than their label.

        What an untrained network says at step 0 doesn't count.
        """
        return any(row["recovered"] > row["memorised"] for row in self._trained)

    @property
    def _trained(self) -> list[dict[str, float]]:
        return [row for row in self.rows if row["step"] > 0]

    def advice(self) -> str:
        """Empty, or why ELR can't help here."""
        if self.early_learning or not self._trained:
            return ""
        return (
            "no early learning was seen: wrongly labelled examples were never given their true "
            "class more often than their wrong label, so there is nothing for ELR to hold on to"
        )


def _share(hits: Tensor, among: Tensor) -> float:
    return float(hits[among].double().mean())
