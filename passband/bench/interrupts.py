"""Ctrl-C and SIGTERM as a note that is read between steps, where the state is whole.

>>> with Interrupts() as interrupts:
...     while True:
...         step()
...         if interrupts.received:
...             save()
...             interrupts.leave(interrupts.received)
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, NoReturn, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Catches the first signal; a second one ends the process at once, whatever it does."""

    def __init__(self) -> None:
        self.received = 0
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Python lets only the main thread handle signals; elsewhere there is nothing to catch.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # Ignored (nohup, a job in the background) stays ignored.
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former if former is not None else signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            self.leave(number)
        self.received = number

    def leave(self, number: int) -> NoReturn:
        """Raise what the signal means: `KeyboardInterrupt`, or `SystemExit` with 128 + number."""
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)


def leave_to_parent(_: int) -> None:
    """For reader processes: Ctrl-C is the parent's to handle, SIGTERM ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
