"""What to do when validation stops improving: a lower learning rate, the best weights, an end.

    stale  validations since the best one
    lr     times `drop` whenever stale is a multiple of `patience`
    end    when stale reaches `stop_after`

>>> plateau = Plateau(patience=2, drop=0.5, stop_after=5)
>>> [plateau.see(better) for better in (True, False, False, True, False, False)]
[False, False, True, False, False, True]
>>> plateau.scale, plateau.stale, plateau.exhausted
(0.25, 2, False)

Unlike the schedules of `schedule`, which are functions of the budget spent, this one has a state:
two numbers, which are in every checkpoint. What counts as better is the rule of `select`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

from passband.errors import ConfigError

if TYPE_CHECKING:
    from passband.bench.loop_config import LoopConfig


class Plateau:
    """
    patience    validations without a better one until lr drops; None: it never does
    drop        what lr is multiplied with each time
    stop_after  validations without a better one until the run ends; None: the budget ends it

    scale       of the learning rate now
    """

    def __init__(
        self, patience: int | None = None, drop: float = 0.5, stop_after: int | None = None
    ) -> None:
        self.patience, self.drop, self.stop_after = patience, drop, stop_after
        self.scale, self.stale = 1.0, 0

    @classmethod
    def of(cls, config: LoopConfig) -> Self:
        patience = config.patience if config.schedule == "plateau" else None
        return cls(patience, config.drop, config.stop_after)

    def see(self, better: bool) -> bool:
        """Count a validation; returns whether the learning rate drops by it."""
        self.stale = 0 if better else self.stale + 1
        dropped = bool(self.patience and self.stale and self.stale % self.patience == 0)
        if dropped:
            self.scale *= self.drop
        return dropped

    @property
    def exhausted(self) -> bool:
        """Whether the run is over."""
        return self.stop_after is not None and self.stale >= self.stop_after

    def state(self) -> dict[str, float]:
        return {"scale": self.scale, "stale": self.stale}

    def load_state(self, state: Mapping[str, float]) -> None:
        self.scale, self.stale = state["scale"], int(state["stale"])


def check(config: LoopConfig, *, stateful: bool) -> None:
    """Raise `ConfigError` for settings that contradict each other.

    stateful  whether the run carries a state that may resize what is trained
    """
    plateau = config.schedule == "plateau"
    if (plateau or config.stop_after is not None) and config.select == "last":
        asked = "schedule = 'plateau'" if plateau else f"stop_after = {config.stop_after}"
        raise ConfigError(
            f"{asked} with select = 'last'", expected="a validation figure to watch",
            mend="name it: select='lowest NAME' or 'highest NAME'",
        )
    if config.reload and not plateau:
        raise ConfigError(
            f"reload with schedule = {config.schedule!r}", expected="schedule = 'plateau'",
            mend="leave reload out: `select` alone keeps the best weights for the end",
        )
    if config.reload and stateful:
        raise ConfigError(
            "reload in a run whose state may resize parameters", expected="no reload, or no state",
            mend="the optimiser's moments would have other shapes than the best weights",
        )
    if plateau and config.stop_after is not None and config.stop_after <= config.patience:
        raise ConfigError(
            f"stop_after = {config.stop_after} with patience = {config.patience}",
            expected="stop_after above patience", mend="else the run ends before lr ever drops",
        )
