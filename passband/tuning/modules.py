"""Systems that learn a module for each language of a job, then the task on top.

The budget is shared evenly: a run of N steps with modules for L languages gives N / (L + 1) to each
and to the task.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from passband.bench.budget import Budget
from passband.bench.part import Part
from passband.bench.system import Monitor, NullMonitor
from passband.bench.task import Data
from passband.parts.edits import Edit
from passband.tuning.adaptation import Adaptation
from passband.tuning.crosslingual import CrossLingual

if TYPE_CHECKING:
    from passband.tuning.tuner import Tuner

    _Base = Tuner
else:
    _Base = object


def shared(edit: Edit) -> Edit:
    """Without new values (heads): what fits every model with the same base.

    >>> from passband.parts.edits import Dense, Replace
    >>> body, head = Dense(torch.ones(2, 2)), Replace(torch.ones(9, 2))
    >>> list(shared(Edit({"body.weight": body, "head.weight": head})).changes)
    ['body.weight']
    """
    heads = {name for name, change in edit.changes.items() if change.kind == "replace"}
    return edit.only(lambda name: name not in heads)


class Modules(_Base):
    """Mixed into a `Tuner`. It gives `in_language`, and looks at `learning` in `attach`.

    modules   language -> what was learned of it
    source    the language of the task's examples; "" when none was learned
    learning  the language being learned; "" for the task
    """

    modules: dict[str, Edit]
    source: str = ""
    learning: str = ""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.modules = {}

    def languages_of(self, problem: CrossLingual) -> Mapping[str, Adaptation]:
        """Text of each language that gets a module."""
        return problem.texts

    @abstractmethod
    def in_language(self, problem: CrossLingual) -> Adaptation:
        """The task on a model that has the source language's module."""

    def fit(
        self, data: Data[Any], budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        """Languages first where the job has any, then the task."""
        problem = data.train
        self.modules, self.source = {}, ""
        if not (isinstance(problem, CrossLingual) and self.config.languages):
            return super().fit(data, budget, monitor)
        budget = Budget(steps=self.config.steps) if budget == Budget() else budget
        texts = self.languages_of(problem)
        share = 1 / (len(texts) + 1)
        monitor, folder = monitor or NullMonitor(), self.checkpoints
        reports: list[dict[str, Any]] = []
        facts: list[dict[str, float]] = []

        def learn(name: str, job: Adaptation) -> None:
            stretch = Part(
                monitor, share * len(reports), share, steps=sum(r["steps"] for r in reports),
                seconds=sum(r["seconds"] for r in reports),
            )
            self.checkpoints = folder / f"module-{name}" if folder else None
            part = replace(data, train=job)
            reports.append(super(Modules, self).fit(part, budget.part(share), stretch))
            facts.append(dict(self.facts))

        try:
            for self.learning, job in texts.items():
                learn(self.learning, job)
                self.modules[self.learning] = self.fitted()
            self.learning, self.source = "", problem.source
            learn("task", self.in_language(problem))
        finally:
            self.checkpoints, self.learning = folder, ""
        self.facts["attach_seconds"] = sum(fact["attach_seconds"] for fact in facts)
        spent = {n: sum(r[n] for r in reports) for n in ("steps", "seconds", "examples")}
        self.facts["step_seconds"] = spent["seconds"] / max(1, spent["steps"])
        return reports[-1] | spent | {"attach_seconds": self.facts["attach_seconds"]}

    # ---- state -----------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        languages = {
            f"{_MODULE}{language}/{key}": tensor
            for language, edit in self.modules.items() for key, tensor in edit.tensors().items()
        }
        return {**super().state(), **languages}

    def extra(self) -> dict[str, Any]:
        facts = {language: edit.facts() for language, edit in self.modules.items()}
        return {**super().extra(), "source": self.source, "languages": facts}

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        import torch

        own = {key: tensor for key, tensor in state.items() if not key.startswith(_MODULE)}
        super().load_state(own, extra)
        self.source, self.modules = extra["source"], {}
        for language, facts in extra["languages"].items():
            prefix = f"{_MODULE}{language}/"
            tensors = {
                key.removeprefix(prefix): torch.as_tensor(tensor)
                for key, tensor in state.items() if key.startswith(prefix)
            }
            self.modules[language] = Edit.build(tensors, facts)


_MODULE = "language:"
