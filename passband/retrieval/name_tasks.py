"""Jobs for the verb `flag`: which functions are worth a look, by their names alone.

    data     Data of Named (`passband.data.names.named`); train and test, no validation part
    read     users' lists of names (`passband.data.names.readers`)
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from passband.bench.system import System
from passband.bench.task import Artifact, Data, Metric, Size, Task

if TYPE_CHECKING:
    from passband.data.names.named import Named

_METRICS = (
    Metric("f2", "", "higher", about="F2 of the flags: recall counts four times"),
    Metric("over_all", "", "higher", about="F2 relative to that of flagging every name"),
    Metric("precision", "", "higher"),
    Metric("recall", "", "higher"),
    Metric("average_precision", "", "higher", about="of the ranking by score"),
    Metric("auc", "", "higher", about="area under the ROC curve; 0.5 is chance"),
    Metric("flag_all_f2", "", "higher", about="F2 of flagging every name: what to compare with"),
)


class NamesTask(Task):
    """make  (seed, size) -> (train, test), as "module:function"."""

    family, verb, version, metrics = "retrieval", "flag", 1, _METRICS
    pareto = (("f2", "parameters"), ("f2", "seconds"))

    def __init__(self, name: str, summary: str, make: str) -> None:
        self.name, self.summary, self._make = name, summary, make

    def data(self, seed: int = 0, size: Size = "small", model: Path | None = None) -> Data[Named]:
        module, name = self._make.split(":")
        train, test = getattr(import_module(module), name)(seed, size)
        return Data(train=train, test=test, name=self.name)

    def read(self, path: Path, model: Path | None = None) -> Data[Named]:
        from passband.data.names.parts import of_users

        train, test = of_users(path)
        return Data(train=train, test=test, name=self.name)

    def evaluate(self, system: System, data: Data[Named]) -> dict[str, float]:
        if data.test is None:
            return {}
        from passband.retrieval.name_scores import score

        return score(system.flag(data.test.names), data.test.vulnerable)  # type: ignore[attr-defined]

    def artifacts(self, system: System, data: Data[Named], folder: Path) -> list[Artifact]:
        if data.test is None:
            return []
        from passband.retrieval.name_scores import table

        return [table(system.flag(data.test.names), data.test.vulnerable, folder)]  # type: ignore[attr-defined]


_ALL = (
    NamesTask(
        "dangerous-names", "find risky functions of a project by words seen in its own",
        "passband.data.names.parts:within",
    ),
    NamesTask(
        "dangerous-names-across", "find risky functions of a project by words seen in seven others",
        "passband.data.names.parts:across",
    ),
    NamesTask(
        "stdlib-names", "find functions of Python's library that run or write something",
        "passband.data.names.parts:standard",
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
