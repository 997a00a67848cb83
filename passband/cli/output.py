"""What commands print: JSON for machines, Rich for people.

Rich is imported when something is shown, so that `--json` and `--help` start without it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 120  # columns


def write_json(value: Any) -> None:
    """One JSON document on stdout; NaN and infinity, which JSON lacks, become null."""
    sys.stdout.write(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Dataclasses, paths, tuples and NumPy numbers as what JSON knows.

    >>> plain({"a": (1.0, float("nan"))})
    {'a': [1.0, None]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy and torch, neither of them imported here
        return plain(value.tolist())
    return str(value)


@cache
def console(stderr: bool = False) -> Console:
    """The terminal. Text stays text: no markup is read from titles, paths or errors."""
    import os

    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # A file or a pipe has no width of its own; COLUMNS still rules.
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=width)


def say(text: str = "", style: str = "") -> None:
    """A line for people on stdout, never wrapped: paths stay whole."""
    console().print(text, style=style or None, soft_wrap=True)


def paragraph(text: str, first: str = "", style: str = "") -> None:
    """Running text, wrapped to the terminal; `first` begins it and indents the rest."""
    import textwrap

    say(textwrap.fill(
        text, console().width, initial_indent=first, subsequent_indent=" " * len(first),
        break_long_words=False, break_on_hyphens=False,
    ), style=style)


def complain(text: str, style: str = "") -> None:
    """The same on stderr."""
    console(stderr=True).print(text, style=style or None, soft_wrap=True)


def number(value: Any, digits: int = 3) -> str:
    """
    >>> number(0.000123456), number(12000), number(None)
    ('0.000123', '12000', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return str(value)
