"""Peak memory of a stretch of code.

>>> with PeakMemory() as peak:
...     work()
>>> peak.bytes
8388608
"""

from __future__ import annotations

import resource
import sys
import threading
from typing import Self

import psutil

PERIOD = 0.01  # seconds between two looks at the resident size


class PeakMemory:
    """Highest resident memory above the level at the start, and of torch's GPU allocator.

    The process's own high-water mark is exact, but counts only when it rises; below an older mark
    a thread that samples the resident size stands in.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.gpu_bytes = 0
        self._process = psutil.Process()
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._start = self._highest = self._process.memory_info().rss
        self._mark = _high_water()
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._sampler.join()
        mark = _high_water()
        highest = mark if mark > self._mark else self._highest
        self.bytes = max(0, highest - self._start)
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            self.gpu_bytes = int(torch.cuda.max_memory_allocated())

    def _sample(self) -> None:
        while not self._done.wait(PERIOD):
            self._highest = max(self._highest, self._process.memory_info().rss)


def _high_water() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
