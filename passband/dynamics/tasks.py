"""Jobs of the family: classes from few or wrongly labelled examples, judged by clean ones.

    data     Data of Labelled (`passband.data.labelled`); validation is as noisy as training
    read     users' folders, arrays and tables (`passband.data.labelled.readers`)

Besides the accuracy on the test part, a task reports what became of wrong training labels wherever
the truth is known, and what a system says of itself (`diagnose`), if the task declares it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passband.bench.system import System
from passband.bench.task import Artifact, Data, Metric, Size, Task
from passband.dynamics.modular_tasks import TASKS as MODULAR_TASKS
from passband.dynamics.risk_tasks import TASKS as RISK_TASKS

if TYPE_CHECKING:
    from passband.data.labelled.labelled import Labelled

ACCURACY = Metric("accuracy", "%", "higher", about="on clean test examples")
WORST_GROUP = Metric("worst_group", "%", "higher", about="accuracy on the group that fares worst")
MEMORY = (
    Metric("memorised", "%", "lower", about="wrongly labelled training examples that are given "
           "their wrong label"),
    Metric("recovered", "%", "higher", about="of the same: given their true one"),
    Metric("flag_auroc", "", "higher", about="how well the system's suspicion tells wrong labels "
           "from right ones: 0.5 is chance"),
)
ROBUSTNESS = (
    Metric("robust", "%", "higher", about="accuracy under an attack that moves images by 0.5"),
    Metric("certified", "%", "higher", about="accuracy that no move by 0.5 can take away, of "
           "systems that can prove it"),
    Metric("lipschitz", "", "lower", log=True, about="proved constant, images to logits"),
)
ALIGNED = (
    Metric("train_accuracy", "%", "higher", about="on the domains of training, where a colour or "
           "the like may help: nothing to select by"),
    Metric("gradient_gap", "", "lower", about="distance of the training domains' gradients in the "
           "head, mean over pairs"),
    Metric("hessian_gap", "", "lower", about="the same of their Hessians, Frobenius"),
)


class Classification(Task):
    """Examples with one class each.

    make     (seed, size) -> Parts, as "module:function"
    reader   (path) -> Parts of the user's data, likewise
    metrics  the first is the primary one; those that a result lacks are left out
    more     (system, data) -> further metrics, likewise
    """

    family = "dynamics"
    version = 1
    verb = "classify"

    def __init__(
        self, name: str, summary: str, *, make: str, metrics: tuple[Metric, ...],
        reader: str = "passband.data.labelled.readers:read", more: str = "",
    ) -> None:
        self.name, self.summary, self.metrics = name, summary, metrics
        self._make, self._reader, self._more = make, reader, more
        self.pareto = ((metrics[0].name, "seconds"), (metrics[0].name, "parameters"))

    def data(
        self, seed: int = 0, size: Size = "small", model: Path | None = None
    ) -> Data[Labelled]:
        return self._data(_function(self._make)(seed, size))

    def read(self, path: Path, model: Path | None = None) -> Data[Labelled]:
        return self._data(_function(self._reader)(path))

    def _data(self, parts: Any) -> Data[Labelled]:
        return Data(train=parts.train, valid=parts.valid, test=parts.test, name=self.name)

    def evaluate(self, system: System, data: Data[Labelled]) -> dict[str, float]:
        from passband.dynamics.scores import evaluated

        if data.test is None:
            return {}
        found, declared = evaluated(system, data), {metric.name for metric in self.metrics}
        if self._more:
            found |= _function(self._more)(system, data)
        return {name: value for name, value in found.items() if name in declared}

    def artifacts(
        self, system: System, data: Data[Labelled], folder: Path
    ) -> list[Artifact]:
        from passband.dynamics.pictures import draw

        return draw(system, data, folder)


def _function(path: str) -> Callable[..., Any]:
    module, name = path.split(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


_DIGITS, _COLOURED = "passband.data.labelled.digits", "passband.data.labelled.coloured"
_NOISY = (ACCURACY, *MEMORY, WORST_GROUP)

_ALL: tuple[Task, ...] = (
    Classification(
        "digits", "handwritten digits of 8x8 pixels, all labels right", make=f"{_DIGITS}:clean",
        metrics=(ACCURACY, WORST_GROUP),
    ),
    Classification(
        "digits-noisy", "digits, 40 % of the training labels drawn at random; the test is clean",
        make=f"{_DIGITS}:symmetric_noise", metrics=_NOISY,
    ),
    Classification(
        "digits-noisy-pair", "digits, 40 % of five classes labelled as one that looks like them",
        make=f"{_DIGITS}:pair_noise", metrics=_NOISY,
    ),
    Classification(
        "digits-robust", "digits, judged under attack as well",
        make=f"{_DIGITS}:clean", metrics=(ACCURACY, *ROBUSTNESS, WORST_GROUP),
        more="passband.dynamics.attacks:robustness",
    ),
    Classification(
        "digits-few", "300 digits to learn from, 1,197 to be judged by",
        make=f"{_DIGITS}:few", metrics=(ACCURACY, WORST_GROUP),
    ),
    Classification(
        "coloured-digits", "two domains whose colour tells the class, a third where it tells the "
        "other", make=f"{_COLOURED}:coloured_digits", reader=f"{_COLOURED}:read",
        metrics=(ACCURACY, *ALIGNED, WORST_GROUP),
    ),
    Classification(
        "coloured-digits-many", "the same with four draws of label and colour for each digit",
        make=f"{_COLOURED}:many_coloured_digits", reader=f"{_COLOURED}:read",
        metrics=(ACCURACY, *ALIGNED, WORST_GROUP),
    ),
    Classification(
        "coloured-digits-imbalanced", "the same, either domain with few examples of one class",
        make=f"{_COLOURED}:imbalanced_digits", reader=f"{_COLOURED}:read",
        metrics=(ACCURACY, *ALIGNED, WORST_GROUP),
    ),
)

TASKS: dict[str, Task] = {**{task.name: task for task in _ALL}, **RISK_TASKS, **MODULAR_TASKS}
