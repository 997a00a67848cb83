"""A monitor's view of one of several stretches of a fit: phases, rounds, modules.

>>> from passband.bench.system import NullMonitor
>>> part = Part(NullMonitor(), start=0.7, share=0.3, steps=700, seconds=12.0)
>>> part.progress(0.5)                          # the whole fit is at 0.85
"""

from __future__ import annotations

from passband.bench.system import Monitor, System


class Part:
    """Steps and seconds go on where the stretches before ended; progress is shared.

    start, share    of the whole fit, in [0, 1]
    steps, seconds  spent before this stretch
    """

    def __init__(
        self, monitor: Monitor, start: float, share: float, *, steps: int = 0, seconds: float = 0.0
    ) -> None:
        self.monitor, self.start, self.share = monitor, start, share
        self.steps, self.seconds = steps, seconds

    def log(self, step: int, seconds: float, **values: float) -> None:
        self.monitor.log(self.steps + step, self.seconds + seconds, **values)

    def progress(self, fraction: float, text: str = "") -> None:
        self.monitor.progress(self.start + self.share * fraction, text)

    def test_error(self, system: System) -> None:
        self.monitor.test_error(system)
