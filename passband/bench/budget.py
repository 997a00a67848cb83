"""Budgets: how much work a system may do, the same for all that are compared.

>>> Budget.parse("2m")
Budget(steps=None, seconds=120.0, examples=None)
>>> Budget.parse("500 steps, 30s").steps
500
"""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from passband.errors import BudgetError

_SECONDS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_SCALE = {"": 1, "k": 1_000, "M": 1_000_000}
_PART = re.compile(r"^([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([kM]?)\s*([a-z]+)$")


@dataclass(frozen=True)
class Budget:
    """Limits on optimisation steps, wall-clock seconds and training examples; the first one ends.

    All None means that the system stops by its own rule (its preset's).
    """

    steps: int | None = None
    seconds: float | None = None
    examples: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value > 0:
                raise BudgetError(
                    f"budget {name} = {value!r}", expected="a number above 0 or None",
                    mend="give for example '2m', '500steps' or '10kexamples'",
                )

    @classmethod
    def parse(cls, text: str | Budget | None) -> Budget:
        """Read '90s', '2m', '1h', '500 steps', '10k examples', or several joined by commas."""
        if text is None:
            return cls()
        if isinstance(text, Budget):
            return text
        fields: dict[str, Any] = {}
        for part in text.split(","):
            match = _PART.match(part.strip())
            name, value = ("", 0.0)
            if match:
                number, scale, unit = match.groups()
                if unit in _SECONDS and not scale:
                    name, value = "seconds", float(number) * _SECONDS[unit]
                elif unit in ("step", "steps"):
                    name, value = "steps", float(number) * _SCALE[scale]
                elif unit in ("example", "examples"):
                    name, value = "examples", float(number) * _SCALE[scale]
            if not name:
                raise BudgetError(
                    f"budget {part.strip()!r} can't be read",
                    expected="a number with a unit: s, m, h, steps or examples",
                    mend="for example '2m', '500steps', '10kexamples' or '2m,500steps'",
                )
            fields[name] = value if name == "seconds" else round(value)
        return cls(**fields)

    def part(self, share: float) -> Budget:
        """A share of it, in (0, 1], for one of several phases; at least one step and example.

        >>> Budget(steps=100, seconds=3.0).part(0.25)
        Budget(steps=25, seconds=0.75, examples=None)
        """
        if share == 1.0:
            return self
        return Budget(
            None if self.steps is None else max(1, round(share * self.steps)),
            None if self.seconds is None else share * self.seconds,
            None if self.examples is None else max(1, round(share * self.examples)),
        )

    def start(self) -> Meter:
        """A running meter of this budget; the clock starts now."""
        return Meter(self)

    def __str__(self) -> str:
        parts = []
        if self.steps is not None:
            parts.append(f"{self.steps} steps")
        if self.seconds is not None:
            parts.append(f"{self.seconds:g} s")
        if self.examples is not None:
            parts.append(f"{self.examples} examples")
        return ", ".join(parts) or "the preset's own"


@dataclass
class Meter:
    """What has been spent of a budget. `earlier` carries the seconds of runs before a resume."""

    budget: Budget
    steps: int = 0
    examples: int = 0
    earlier: float = 0.0
    _start: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self._start

    def spend(self, steps: int = 1, examples: int = 0) -> None:
        self.steps += steps
        self.examples += examples

    @property
    def fraction(self) -> float:
        """Share of the tightest limit that is spent, in [0, 1]; 0 for an unlimited budget."""
        shares = [
            spent / limit
            for spent, limit in (
                (self.steps, self.budget.steps),
                (self.seconds, self.budget.seconds),
                (self.examples, self.budget.examples),
            )
            if limit is not None
        ]
        return min(1.0, max(shares, default=0.0))

    @property
    def exhausted(self) -> bool:
        return self.fraction >= 1.0

    def spent(self) -> dict[str, float]:
        return {"steps": self.steps, "seconds": self.seconds, "examples": self.examples}
