"""Jobs for the verb `complete`: the unknown entries of a table of residues, a part of the known
ones wrong.

    data     Data with `Known` to learn from and the `Modular` it comes from for the test
    read     a user's table (.npy, .csv): a tenth of its known entries is held back for the test
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from passband.bench.system import System
from passband.bench.task import Artifact, Data, Metric, Size, Task

if TYPE_CHECKING:
    from passband.data.modular import Known

HELD_BACK = 0.1  # of the known entries of a user's table

_METRICS = (
    Metric("accuracy", "%", "higher", about="on pairs that were not seen"),
    Metric("memorised", "%", "lower", about="wrong training labels that are given back"),
    Metric("recovered", "%", "higher", about="wrong training labels whose truth is found"),
    Metric("train_accuracy", "%", "higher", about="on training labels as they were given"),
    Metric("ipr", "", "higher", about="mean inverse participation ratio of the neurons"),
)
# metric -> what `Modular.accuracies` calls it
_SPLITS = {
    "accuracy": "test", "memorised": "memorised", "recovered": "recovered",
    "train_accuracy": "train",
}


class Completion(Task):
    """Completing a table.

    op         of `passband.data.modular`
    alpha, xi  known share, and the corrupted share of that
    """

    family, verb, version, metrics = "dynamics", "complete", 1, _METRICS
    pareto = (("accuracy", "seconds"), ("accuracy", "parameters"))

    def __init__(self, name: str, summary: str, *, op: str, alpha: float, xi: float) -> None:
        self.name, self.summary = name, summary
        self.op, self.alpha, self.xi = op, alpha, xi

    def data(self, seed: int = 0, size: Size = "small", model: Path | None = None) -> Data[Known]:
        from passband.data.modular import modular_dataset

        p, alpha, xi = 97, self.alpha, self.xi
        if size == "smoke":  # fewer residues need more of the table, and stand fewer wrong labels
            p, alpha, xi = 31, 0.7, min(self.xi, 0.2)
        whole = modular_dataset(p, self.op, alpha, xi, seed)
        return Data(train=whole.known, test=whole, name=self.name)

    def read(self, path: Path, model: Path | None = None) -> Data[Known]:
        from passband.data.modular import modular_dataset, read_table

        table = read_table(path)
        whole = modular_dataset(len(table), table, alpha=1.0 - HELD_BACK, seed=0)
        return Data(train=whole.known, test=whole, name=self.name)

    def evaluate(self, system: System, data: Data[Known]) -> dict[str, float]:
        if data.test is None:
            return {}
        import torch

        predicted = torch.from_numpy(system.complete(data.test.pairs))  # type: ignore[attr-defined]
        found = data.test.accuracies(predicted)
        shares = {metric: found[name] for metric, name in _SPLITS.items() if name in found}
        diagnose = getattr(system, "diagnose", None)
        more = {} if diagnose is None else diagnose(data)
        return {name: 100.0 * value for name, value in shares.items()} | more

    def artifacts(self, system: System, data: Data[Known], folder: Path) -> list[Artifact]:
        if data.test is None:
            return []
        draw = getattr(system, "draw", None)  # what there is to see lies inside of the system
        found: list[Artifact] = [] if draw is None else draw(data.test, folder)
        return found


_ALL = (
    Completion(
        "modular-addition", "half of a table of sums modulo 97, 35 % of the labels at random",
        op="add", alpha=0.5, xi=0.35,
    ),
    Completion(
        "modular-addition-clean", "half of a table of sums modulo 97, every label right",
        op="add", alpha=0.5, xi=0.0,
    ),
    Completion(
        "modular-addition-20", "65 % of a table of sums modulo 97, a fifth of the labels at random",
        op="add", alpha=0.65, xi=0.2,
    ),
    Completion(
        "modular-multiplication", "half of a table of products modulo 97, 35 % of the labels at "
        "random", op="multiply", alpha=0.5, xi=0.35,
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
