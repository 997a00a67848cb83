"""Learning tasks one after the other: how intruders pile up, and what is left of old tasks.

After each task the update is merged and a new adapter begins. Similarity is always computed with
the ORIGINAL model: each low-rank adapter leaves intruders of its own.

>>> _ = torch.manual_seed(0)
>>> model = torch.nn.Linear(64, 64)
>>> growth = Growth(model)
>>> with torch.no_grad():
...     model.weight += 3 * torch.ones(64, 64)               # a task was learned and merged
>>> growth.record("first", {"first": 0.9}).growth
[1]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from passband.errors import DataError
from passband.parts.edits import Edit, settle
from passband.tuning.intruder_dims.pairs import Weights, comparable, pairs, tensors
from passband.tuning.intruder_dims.report import Report, analyse


@dataclass(frozen=True)
class Round:
    """After one task. scores: metric by task, of the tasks seen so far (more is better)."""

    task: str
    report: Report
    scores: Mapping[str, float]


class Growth:
    """Follows a model through tasks; `options` are those of `report.analyse`.

    names  of the matrices that are followed; None: all that can be compared
    """

    def __init__(
        self, original: Weights, names: Sequence[str] | None = None, **options: Any
    ) -> None:
        self.names = list(names) if names is not None else comparable(original)
        known = tensors(original)
        self._original = {n: known[n].clone() for n in self.names}
        self._model, self._options = original, options
        self.rounds: list[Round] = []

    def record(
        self, task: str, scores: Mapping[str, float] | None = None, weights: Weights | None = None
    ) -> Growth:
        """The state after a task: of `weights`, or of the model that was given at first."""
        now = {n: t for n, t in tensors(weights or self._model).items() if n in self._original}
        report = analyse(pairs(self._original, now, names=self.names), **self._options)
        self.rounds.append(Round(task, report, dict(scores or {})))
        return self

    @property
    def growth(self) -> list[int]:
        """Intruders after each task."""
        return [one.report.count for one in self.rounds]

    @property
    def old_tasks(self) -> float:
        """Mean metric of all tasks but the last, at the end."""
        if len(self.rounds) < 2:
            raise DataError("fewer than two tasks", expected="an old task to look back at")
        last = self.rounds[-1]
        return sum(last.scores[r.task] for r in self.rounds[:-1]) / (len(self.rounds) - 1)

    def table(self) -> dict[str, Any]:
        """{"columns": [...], "rows": [[...]]}: a row a task."""
        tasks = [one.task for one in self.rounds]
        return {
            "columns": ["after", "intruders", "||dW||", "effective rank", *tasks],
            "rows": [
                [r.task, r.report.count, f"{r.report.update_norm:.3g}",
                 f"{r.report.effective_rank:.1f}",
                 *(f"{r.scores[t]:.1f}" if t in r.scores else "" for t in tasks)]
                for r in self.rounds
            ],
        }


def learn_in_turn(
    model: nn.Module, tasks: Iterable[tuple[str, Callable[[nn.Module], Edit]]],
    score: Callable[[nn.Module, str], float], **options: Any,
) -> Growth:
    """Tune a model on tasks in turn, in place, and follow it.

    tasks  (name, tune): `tune(model)` gives the edit of the model as it stands; it is merged here
    score  (model, task) -> metric, more is better
    """
    growth = Growth(model, **options)
    seen: list[str] = []
    for name, tune in tasks:
        tune(model).apply(model)
        settle(model)  # the next task begins from here
        seen.append(name)
        growth.record(name, {task: score(model, task) for task in seen})
    return growth
