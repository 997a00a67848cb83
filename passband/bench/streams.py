"""Random numbers in three separate streams: order of the data, initialisation, training noise.

>>> streams = Streams(seed=0)
>>> with streams.initialising():
...     model = torch.nn.Linear(4, 1)
>>> streams.train.at(17)          # the noise of iteration 17, whatever was drawn before
>>> torch.rand(3, generator=streams.train.torch)

Two systems with the same seed see the same data order, and the same noise at the same iteration
even when one of them draws more numbers than the other: common random numbers make paired
comparisons sharp. A position fixes everything that is drawn after it, so a resumed run needs no
stored generator states.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_MASK = (1 << 63) - 1  # torch takes signed 64-bit seeds


class Stream:
    """One stream, as a `torch` and a `numpy` generator that move together.

    seed   of the run
    path   tells streams of one seed apart
    """

    def __init__(self, seed: int, *path: int) -> None:
        self.seed, self.path = seed, path
        self.torch = torch.Generator()
        self.numpy = np.random.Generator(np.random.PCG64(self._sequence()))
        self.at()

    def at(self, *position: int) -> None:
        """Move both generators to a position, e.g. (iteration,)."""
        self.torch.manual_seed(self.torch_seed(*position))
        self.numpy.bit_generator.state = np.random.PCG64(self._sequence(*position)).state

    def torch_seed(self, *position: int) -> int:
        """A seed for torch's own generators at a position."""
        return int(self._sequence(*position).generate_state(1, np.uint64)[0]) & _MASK

    def _sequence(self, *position: int) -> np.random.SeedSequence:
        return sequence(self.seed, *self.path, *position)


class Streams:
    """The streams of one run.

    seed     of the run
    process  rank among several processes: they share data order and initialisation, and differ
             in training noise
    """

    def __init__(self, seed: int, process: int = 0) -> None:
        self.seed = seed
        self.data = Stream(seed, 0)
        self.init = Stream(seed, 1)
        self.train = Stream(seed, 2, process)

    def for_process(self, process: int) -> Streams:
        """The same run's streams as another process sees them."""
        return Streams(self.seed, process)

    @contextmanager
    def initialising(self) -> Iterator[None]:
        """Layers built inside draw their weights from `init`; torch's own state is put back."""
        with torch.random.fork_rng(devices=[]):
            # The CPU generator alone: torch.manual_seed would also touch every GPU.
            torch.default_generator.manual_seed(self.init.torch_seed())
            yield


def sequence(seed: int, *path: int) -> np.random.SeedSequence:
    """Entropy of one place in a run's random numbers; different paths are independent."""
    return np.random.SeedSequence(seed, spawn_key=path)
