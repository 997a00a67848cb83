"""Errors that say what came, what was expected, and how to mend it.

>>> raise DataError("source f has 3 NaN", expected="finite numbers", mend="mask or fill them first")
Traceback (most recent call last):
...
passband.errors.DataError: source f has 3 NaN
  expected: finite numbers
  to mend:  mask or fill them first
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PassbandError(Exception):
    """Base of every error a user can cause. The command line prints it as a block and exits with 2.

    what      what came, with its name, value or shape
    expected  what would have been right
    mend      the shortest way there
    """

    def __init__(self, what: str, *, expected: str = "", mend: str = "") -> None:
        self.what, self.expected, self.mend = what, expected, mend
        super().__init__(what, expected, mend)

    def __str__(self) -> str:
        lines = [self.what]
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.mend:
            lines.append(f"  to mend:  {self.mend}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (joblib, Ray); keyword arguments are lost by default.
        return _rebuild, (type(self), self.what, self.expected, self.mend)


def _rebuild(cls: type[PassbandError], what: str, expected: str, mend: str) -> PassbandError:
    error = cls.__new__(cls)
    PassbandError.__init__(error, what, expected=expected, mend=mend)
    return error


class ConfigError(PassbandError):
    """A configuration value is unknown, of the wrong type or out of range."""


class DataError(PassbandError):
    """Data of the wrong shape, type, unit or content (NaN, empty, too short)."""


class ProblemError(DataError):
    """A PDE problem that is not well stated; the text names the field."""


class BudgetError(PassbandError):
    """A budget that can't be read or is empty."""


class CheckpointError(PassbandError):
    """A saved system or checkpoint that is damaged, of another version or of another system."""


class ResultsError(PassbandError):
    """A results file that can't be read or written."""


class MissingExtraError(PassbandError):
    """An optional dependency is not installed; the text gives the command."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"the package {module!r} is not installed",
            expected=f"the extra {extra!r} of passband",
            mend=f"pip install 'passband[{extra}]'",
        )


class UnknownNameError(PassbandError):
    """A name that is not in the catalog (system, task, preset, field), with the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, mend: str = "") -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        some = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        super().__init__(
            f"unknown {kind} {name!r}",
            expected=f"one of {some}" if names else f"a {kind}; there is none",
            mend=f"did you mean {' or '.join(map(repr, close))}?" if close else mend,
        )


class PassbandWarning(UserWarning):
    """Something was adjusted (a cap, a raised jitter): the text says what and why."""
