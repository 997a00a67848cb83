"""From what a user gives to what a network takes, and back: type, rate, channels.

>>> import numpy as np
>>> wave = Wave.of(np.zeros(1000, np.float32), None, rate=8000)
>>> wave.samples.shape
torch.Size([1, 1000])
>>> wave.back(wave.samples).shape
(1000,)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from passband.data.audio import checked
from passband.errors import DataError
from passband.parts.signal.resample import resample


@dataclass(frozen=True)
class Wave:
    """A checked waveform at the network's rate, and what its results are turned back into.

    samples  [C, L] float32
    """

    samples: Tensor
    length: int  # of the original
    source: int  # Hz, of the original
    rate: int  # Hz, of the network
    array: bool  # it came as a NumPy array
    single: bool  # it came without a channel axis

    @classmethod
    def of(cls, given: Any, sample_rate: int | None, rate: int) -> Wave:
        """
        given        [L] or [C, L]; integers of 16 bits are scaled by 1 / 32768
        sample_rate  of it, in Hz; None: the network's
        Raises `DataError` for NaN, empty input, other shapes and rates that are none.
        """
        samples = checked(given)
        if samples.ndim not in (1, 2):
            raise DataError(
                f"a waveform of shape {tuple(samples.shape)}", expected="[L] or [channels, L]",
                mend="call once for each recording of a batch",
            )
        if samples.ndim == 2 and samples.shape[0] > 64 >= samples.shape[1]:
            raise DataError(
                f"a waveform of shape {tuple(samples.shape)}: {samples.shape[0]} channels",
                expected="[channels, L]", mend="give wave.T",
            )
        source = rate if sample_rate is None else int(sample_rate)
        if source <= 0:
            raise DataError(f"a sample rate of {sample_rate}", expected="Hz, above 0")
        single = samples.ndim == 1
        inner = samples[None] if single else samples
        return cls(
            resample(inner, source, rate), samples.shape[-1], source, rate,
            not isinstance(given, Tensor), single,
        )

    def back(self, result: Tensor) -> Any:
        """[C, ..., L'] at the network's rate -> [..., L] or [C, ..., L] at that of the input."""
        out = resample(result, self.rate, self.source)
        missing = self.length - out.shape[-1]
        out = torch.nn.functional.pad(out, (0, missing)) if missing > 0 else out[..., :self.length]
        out = out[0] if self.single else out
        return np.ascontiguousarray(out.numpy()) if self.array else out
