"""Models of equal quality: intruders are compared at the same task metric, or they mirror size.

>>> nearest_checkpoint([0.2, 0.6, 0.8, 0.9, 0.85], target=0.78)
2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from passband.errors import ConfigError, DataError
from passband.tuning.adaptation import Adaptation

DISTANCE = "distance"  # what a matched run selects by


def nearest_checkpoint(values: Sequence[float], target: float) -> int:
    """Index of the first checkpoint whose metric is nearest to the target.

    Raises `DataError` for no checkpoints or NaN among them.
    """
    if not values or any(math.isnan(v) for v in values):
        raise DataError(
            f"metrics {list(values)[:5]} of {len(values)} checkpoints", expected="numbers",
        )
    return min(range(len(values)), key=lambda i: abs(values[i] - target))


def match_metric(
    runs: Mapping[str, Sequence[tuple[Any, float]]], target: float | None = None
) -> dict[str, Any]:
    """Of each run's (checkpoint, metric) pairs, the checkpoint nearest to a common target.

    target  None: the best that the weakest run has reached, for a metric where more is better

    >>> match_metric({"full": [("a", 0.7), ("b", 0.9)], "lora": [("c", 0.5), ("d", 0.72)]})
    {'full': 'a', 'lora': 'd'}
    """
    if not runs:
        raise DataError("no runs to match", expected="checkpoints with a metric for each")
    if target is None:
        target = min(max(value for _, value in run) for run in runs.values())
    return {
        name: run[nearest_checkpoint([value for _, value in run], target)][0]
        for name, run in runs.items()
    }


def matched(problem: Adaptation, metric: str, target: float) -> Adaptation:
    """The same job, whose validation also says how far a checkpoint is from the target.

    Selecting by "lowest distance" then ends a run at the checkpoint nearest to it.
    """
    if problem.validation is None:
        raise ConfigError(
            f"the job {problem.name!r} has no validation to match a metric by",
            expected="a job with validation data", mend="leave match_metric out",
        )
    validation: Callable[[Any], Mapping[str, float]] = problem.validation

    def validate(model: Any) -> dict[str, float]:
        values = dict(validation(model))
        return values | {DISTANCE: abs(named(values, metric) - target)}

    return replace(problem, validation=validate)


def named(values: Mapping[str, float], metric: str) -> float:
    """One metric of a validation. Raises `ConfigError` with the names that there are."""
    if metric not in values:
        raise ConfigError(
            f"the validation gives no {metric!r}", expected=f"one of {', '.join(values)}",
        )
    return float(values[metric])
