"""Two adapters trained apart and added: how much of both gains is left (S2FT's claim on fusion).

>>> left = left_in_the_sum("S2FT", seed=0, smoke=True)
>>> list(left)                                   # shares of gains; after 20 steps only a try-out
['lm-code', 'lm-json']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from passband.bench.budget import Budget
from passband.bench.randomness import isolated
from passband.tuning.tuner import Tuner

STEPS, SMOKE_STEPS = 150, 20
LEARNING_RATES = {"S2FT": 1e-1, "LoRA": 3e-2}  # as the claims' cells
RANK = 2


def left_in_the_sum(name: str, seed: int, smoke: bool) -> dict[str, float]:
    """Gain with both adapters over gain with the task's own alone, by task.

    name  S2FT, whose second adapter avoids the units of the first, or LoRA
    """
    import torch

    from passband.parts.edits import composed
    from passband.tuning.jobs.text import code, json
    from passband.tuning.s2ft.serving import disjoint

    size: Any = "smoke" if smoke else "small"
    budget = Budget(steps=SMOKE_STEPS if smoke else STEPS)
    jobs = {"lm-code": code(seed, size), "lm-json": json(seed, size)}
    edits, alone = [], {}
    avoid = None
    for task, data in jobs.items():
        with isolated(seed):
            system = _SYSTEMS[name](seed, smoke, avoid)
            system.fit(data.for_fit(), budget)
        edits.append(system.fitted())
        avoid = edits[-1].about.get("units")
        alone[task] = _target(system.adapt(data.test.model()), data)
    if name == "S2FT":
        assert disjoint(*edits)
    model = jobs["lm-code"].test.model()
    with composed(model, edits), torch.no_grad():
        both = {task: _target(model, data) for task, data in jobs.items()}
    starts = {task: data.test.start()["target"] for task, data in jobs.items()}
    return {t: (both[t] - starts[t]) / (alone[t] - starts[t]) for t in jobs}


def _target(model: Any, data: Any) -> float:
    """Bits/byte of the job."""
    import torch

    with torch.no_grad():
        measured: Mapping[str, float] = data.test.measure(model.eval())
    return measured["target"]


def _ours(seed: int, smoke: bool, avoid: Any) -> Tuner:
    from passband.tuning.s2ft.system import S2FTTuner

    overrides = {} if smoke else {"lr": LEARNING_RATES["S2FT"]}
    system = S2FTTuner.from_preset("smoke" if smoke else "small", seed=seed, **overrides)
    system.avoid = avoid
    return system


def _low_rank(seed: int, smoke: bool, _: Any) -> Tuner:
    """LoRA of the family's own factors: B = 0, A as PyTorch initialises a layer."""
    import torch
    from torch import Tensor, nn

    from passband.parts.low_rank import LowRankFactors
    from passband.tuning.factors import FactorHandle, start_factors
    from passband.tuning.tuner import TunerConfig

    def start(_: str, weight: Tensor) -> LowRankFactors:
        a = torch.empty(RANK, weight.shape[1])
        nn.init.kaiming_uniform_(a, a=5**0.5)
        return LowRankFactors(A=a, B=torch.zeros(weight.shape[0], RANK))

    class LoRA:
        def attach(
            self, model: nn.Module, calibration: Any = None, *, head: Sequence[str] = (),
            **options: Any,
        ) -> FactorHandle:
            factors = start_factors(model, ("all-linear",), RANK, start, head)
            return FactorHandle(model, factors, head=head, **options)

    class LowRank(Tuner):
        def method(self, targets: tuple[str, ...]) -> Any:
            return LoRA()

    rate = 1e-2 if smoke else LEARNING_RATES["LoRA"]
    return LowRank(TunerConfig(lr=rate, batch_size=8 if smoke else 32), seed=seed)


_SYSTEMS: dict[str, Callable[[int, bool, Any], Tuner]] = {"S2FT": _ours, "LoRA": _low_rank}
