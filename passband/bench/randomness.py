"""The global random streams (random, NumPy, torch): fixed for a cell, untouched for its caller."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def isolated(seed: int | None = None) -> Iterator[None]:
    """Restore the global streams at the end; with a seed, start them from it.

    Systems have streams of their own. This covers libraries that draw from the global ones: a
    cell gives the same numbers whatever ran before it in the process.
    """
    torch = sys.modules.get("torch")
    python, numpy = random.getstate(), np.random.get_state()
    tensors = torch.get_rng_state() if torch else None
    devices = torch.cuda.get_rng_state_all() if torch and torch.cuda.is_initialized() else None
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            if torch:
                torch.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if torch:
            torch.set_rng_state(tensors)
            if devices is not None:
                torch.cuda.set_rng_state_all(devices)
