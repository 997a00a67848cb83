"""A progress bar with the time left, on stderr; nothing where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """A `Monitor` (passband.bench.system) that draws one bar.

    Its `progress` is also the callback of everything that runs many cells or claims.
    """

    def __init__(self, drawn: Progress | None = None, task: TaskID | None = None) -> None:
        self._drawn, self._task = drawn, task
        self.figures: dict[str, float] = {}  # the last that was logged under each name

    def progress(self, fraction: float, text: str = "") -> None:
        if self._drawn is not None and self._task is not None:
            more: dict[str, Any] = {"text": text} if text else {}
            self._drawn.update(self._task, completed=min(1.0, max(0.0, fraction)), **more)

    def log(self, step: int, seconds: float, **values: float) -> None:
        """Curves are for the report; what the bar shows comes with `progress`."""
        self.figures |= values

    def test_error(self, system: Any) -> None:
        """The terminal shows nothing that was measured on the truth."""
        return None


@contextmanager
def bar(title: str) -> Iterator[Bar]:
    """
    >>> with bar("train gp-hm") as monitor:
    ...     monitor.progress(0.5)
    """
    if not sys.stderr.isatty():
        yield Bar()
        return
    from rich import progress

    from passband.cli.output import console

    text = progress.TextColumn
    columns = (
        text("{task.description}"), progress.BarColumn(), progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(), text("left"), progress.TimeRemainingColumn(),
        text("{task.fields[text]}"),
    )
    with progress.Progress(*columns, console=console(stderr=True), transient=True) as drawn:
        yield Bar(drawn, drawn.add_task(title, total=1.0, text=""))
