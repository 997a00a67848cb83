"""The contract of a task: what data, which verb, which metrics.

A task is written for a verb, so every system that has the verb can enter; that is what makes
`compare` possible. Systems never see the test part: `fit` receives `data.for_fit()`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from passband.bench.system import System
from passband.errors import DataError

T = TypeVar("T")
Size = Literal["full", "small", "smoke"]


@dataclass(frozen=True)
class Metric:
    """A number that a task reports. The first of a task's metrics is its primary one."""

    name: str
    unit: str
    better: Literal["lower", "higher"]
    log: bool = False  # shown on a logarithmic axis, averaged geometrically
    about: str = ""


COSTS: dict[str, Metric] = {
    cost.name: cost for cost in (
        Metric("peak_memory", "bytes", "lower", log=True, about="of fitting and evaluating"),
        Metric("seconds", "s", "lower", log=True, about="to fit"),
        Metric("file_bytes", "bytes", "lower", log=True, about="of the saved system"),
        Metric("parameters", "", "lower", log=True, about="learned scalars"),
    )
}
"""What every result has besides its task's metrics, and a picture may be drawn against."""


@dataclass(frozen=True)
class Data(Generic[T]):
    """One seed's data. `test` is for `evaluate` only."""

    train: T
    valid: Any = None
    test: Any = None
    name: str = ""

    def for_fit(self) -> Data[T]:
        """The same without its test part: this is all that a system gets to see."""
        return replace(self, test=None)


@dataclass(frozen=True)
class Artifact:
    """Something to look at or listen to in the report; `file` lies beside the result row.

    kind  "image" (svg, png), "audio" (wav), "table" (json: {"columns": [...], "rows": [[...]]}),
          "page" (html that needs nothing else; shown in a frame that reaches neither the report
          nor a network)
    """

    kind: Literal["image", "audio", "table", "page"]
    title: str
    file: str
    caption: str = ""
    group: str = ""  # artifacts of one group stand side by side (before, after, truth)


class Task(ABC):
    """Base class of all tasks."""

    name: str = ""
    version: int = 1  # raised whenever the same system would get other numbers
    family: str = ""
    verb: str = ""
    summary: str = ""
    metrics: tuple[Metric, ...] = ()
    # Pictures of one thing against another for the report: pairs (x, y) of names of metrics or of
    # COSTS. Each shows every system and the front of those that no other beats.
    pareto: tuple[tuple[str, str], ...] = ()
    takes_model: bool = False  # `data` and `read` accept the user's own model (`--model DIR`)

    @abstractmethod
    def data(self, seed: int = 0, size: Size = "small", model: Path | None = None) -> Data[Any]:
        """Deterministic in (seed, size).

        model  folder of the user's own model in place of the embedded one; the engine gives it to
               tasks with `takes_model` alone, the others may leave the parameter out
        """

    @abstractmethod
    def evaluate(self, system: System, data: Data[Any]) -> dict[str, float]:
        """Metrics by name; can't depend on any batch size."""

    def read(self, path: Path, model: Path | None = None) -> Data[Any]:
        """The user's own data in place of the embedded data (`--data PATH`); model as in `data`."""
        raise DataError(
            f"the task {self.name!r} has no reader for user data", expected="its embedded data",
            mend="leave --data out",
        )

    def artifacts(self, system: System, data: Data[Any], folder: Path) -> list[Artifact]:
        """Write pictures, sounds or tables of one result into `folder`; none by default."""
        return []

    @property
    def primary(self) -> Metric:
        return self.metrics[0]
