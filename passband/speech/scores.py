"""How well a system separates, enhances or vocodes: figures of whole recordings, averaged.

    separation(system, pairs)    separate(mixture, sample_rate=r) -> [K, L], in the best order
    enhancement(system, pairs)   enhance(input, sample_rate=r) -> [L]; so does dereverberation
    vocoding(system, pairs)      vocode(analyse(wave, sample_rate=r)) -> [L]

PESQ and STOI are not defined for recordings without speech, which their means leave out, whatever
the system gives. Recordings go in one by one, so that no figure depends on a batch. What comes out
has to have the input's rate and length; a vocoder's wave has its own rate, and is compared as far
as it reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from passband.data.speech.pairs import Example, Pairs
from passband.errors import DataError
from passband.parts.metrics.pesq import pesq
from passband.parts.metrics.pit import best_permutation
from passband.parts.metrics.sdr import si_sdr
from passband.parts.metrics.stoi import stoi
from passband.parts.signal.mel import LogMel
from passband.parts.signal.resample import resample

Scores = dict[str, float]
WIDE, NARROW = 16_000, 8_000  # Hz, the two rates of PESQ
WORST_PESQ = 1.0


def separation(system: Any, pairs: Pairs) -> Scores:
    """SI-SDR and its improvement in dB, PESQ and STOI, means over all talkers."""
    return _mean(
        [of_talkers(e, separated(system, e, pairs.sample_rate), pairs.sample_rate) for e in pairs]
    )


def enhancement(system: Any, pairs: Pairs) -> Scores:
    """SI-SDR and its improvement in dB, PESQ and STOI."""
    return _mean(
        [of_wave(e, enhanced(system, e, pairs.sample_rate), pairs.sample_rate) for e in pairs]
    )


def dereverberation(system: Any, pairs: Pairs) -> Scores:
    """The same with the extended form of STOI."""
    rate = pairs.sample_rate
    return _mean([of_wave(e, enhanced(system, e, rate), rate, extended=True) for e in pairs])


def vocoding(system: Any, pairs: Pairs) -> Scores:
    """Log-mel L1, distance of spectra at several resolutions, PESQ."""
    rate = pairs.sample_rate
    return _mean([of_vocoded(e.target, vocoded(system, e, rate), rate) for e in pairs])


# ---- what a system gives -----------------------------------------------------------------------


def separated(system: Any, example: Example, rate: int) -> Tensor:
    """Its estimates [K, L] in the order of the sources."""
    target = example.target
    found = _wave(system.separate(example.input, sample_rate=rate), target.shape, system)
    matrix = _si_sdr_matrix(found, target)
    order = best_permutation(-matrix[None])[1][0]
    return found[order]


def enhanced(system: Any, example: Example, rate: int) -> Tensor:
    """Its estimate [L]."""
    found = system.enhance(example.input, sample_rate=rate)
    return _wave(found, example.target.shape, system)


def vocoded(system: Any, example: Example, rate: int) -> Tensor:
    """The wave made again from its mel spectrogram, at `rate`; a little shorter or longer."""
    mel = system.analyse(example.input, sample_rate=rate)
    found = torch.as_tensor(system.vocode(mel)).float()
    if found.ndim != 1 or len(found) == 0 or not bool(found.isfinite().all()):
        raise _strange(system, found, "[L], finite")
    own = int(getattr(system.config, "sample_rate", rate))
    return resample(found, own, rate)


def _wave(found: Any, shape: Sequence[int], system: Any) -> Tensor:
    wave = torch.as_tensor(found).float()
    if wave.shape != torch.Size(shape) or not bool(wave.isfinite().all()):
        raise _strange(system, wave, f"{list(shape)}, finite")
    return wave


def _strange(system: Any, found: Tensor, expected: str) -> DataError:
    kind = "" if bool(found.isfinite().all()) else " with NaN or Inf"
    return DataError(
        f"{type(system).__name__} gave {list(found.shape)}{kind}", expected=expected,
        mend="for mixtures of another number of talkers: set `talkers` and train anew",
    )


# ---- figures of one recording ------------------------------------------------------------------


def of_talkers(example: Example, found: Tensor, rate: int) -> Scores:
    """found [K, L] in the order of the sources."""
    return _mean([
        of_wave(Example(example.input, target), wave, rate)
        for target, wave in zip(example.target, found, strict=True)
    ])


def of_wave(example: Example, found: Tensor, rate: int, extended: bool = False) -> Scores:
    """found [L]; intelligibility in its extended form, `estoi`, or the plain one."""
    after = float(si_sdr(found.double(), example.target.double()))
    before = float(si_sdr(example.input.double(), example.target.double()))
    clean, wave = example.target.numpy(), found.numpy()
    return {
        "si_sdri": after - before, "si_sdr": after, "pesq": quality(clean, wave, rate),
        "estoi" if extended else "stoi": float(stoi(clean, wave, rate, extended)),
    }


def of_vocoded(wave: Tensor, found: Tensor, rate: int) -> Scores:
    length = min(len(wave), len(found))
    wave, found = wave[:length], found[:length]
    mel = _mel(rate)
    with torch.no_grad():
        return {
            "mel_l1": float((mel(found) - mel(wave)).abs().mean()),
            "mr_stft": float(_spectra()(found[None], wave[None])),
            "pesq": quality(wave.numpy(), found.numpy(), rate),
        }


def quality(clean: Any, wave: Any, rate: int) -> float:
    """PESQ, resampled to 16 kHz where the rate is neither.

    1, the worst there is, where no speech is found in the wave; NaN where the recording has none.
    """
    own = rate if rate in (NARROW, WIDE) else WIDE
    if own != rate:
        clean, wave = resample(clean, rate, own), resample(wave, rate, own)
    value = float(pesq(clean, wave, own))
    return WORST_PESQ if np.isnan(value) and np.isfinite(pesq(clean, clean, own)) else value


def _si_sdr_matrix(found: Tensor, target: Tensor) -> Tensor:
    """[i, j]: estimate i against source j."""
    count = len(target)
    estimates = found[:, None].expand(-1, count, -1).double()
    return si_sdr(estimates, target[None].expand(len(found), -1, -1).double())


@cache
def _mel(rate: int) -> LogMel:
    return LogMel(rate, n_fft=1024, hop_length=256, win_length=1024, n_mels=80, fmin=0.0,
                  fmax=rate / 2)


@cache
def _spectra() -> Callable[[Tensor, Tensor], Tensor]:
    from passband.parts.losses.spectral import MultiResolutionSTFT

    return MultiResolutionSTFT()


def _mean(scores: Sequence[Mapping[str, float]]) -> Scores:
    """Of each figure, over the recordings for which it is defined; none without any."""
    found: Scores = {}
    for name in scores[0]:
        values = [row[name] for row in scores if np.isfinite(row.get(name, np.nan))]
        if values:
            found[name] = float(np.mean(values))
    return found
