"""What counts as a method's failure, to be recorded, and what as a defect in code, to be raised."""

from __future__ import annotations

import sys

import numpy as np

from passband.errors import PassbandError


def failures() -> tuple[type[BaseException], ...]:
    """Errors of a method that breaks down on its data: bad input, overflow, a singular matrix,
    memory used up."""
    found: tuple[type[BaseException], ...] = (
        PassbandError, ArithmeticError, np.linalg.LinAlgError, MemoryError
    )
    torch = sys.modules.get("torch")
    if torch is not None:
        found += (torch.linalg.LinAlgError, torch.OutOfMemoryError)
    return found


def describe(error: BaseException) -> str:
    """The text of a failure for a row."""
    return str(error) if isinstance(error, PassbandError) else f"{type(error).__name__}: {error}"
