"""What a result sounds and looks like: before, after and truth, to hear and as spectrograms.

    draw(system, data, folder)    artifacts for the report: WAV and SVG, one group an example

All sounds of a group are scaled by one factor, so that what is louder in the report was louder; an
estimate that overshoots is limited. Spectrograms of a group share their colours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from passband.bench.report.style import POSITIVE, picture, save
from passband.bench.task import Artifact, Data
from passband.data.audio import write
from passband.parts.metrics.sdr import si_sdr
from passband.speech import scores

if TYPE_CHECKING:
    from passband.data.speech.pairs import Example, Pairs

SHOWN = 2  # examples of the test part
LONGEST = 6.0  # seconds that are shown of each
RANGE = 70.0  # dB of a spectrogram
FRAME = 0.032  # seconds


@dataclass(frozen=True)
class Sound:
    """One wave [L] of a group."""

    name: str
    title: str
    wave: Tensor
    caption: str = ""


def draw(system: Any, data: Data[Pairs], folder: Path) -> list[Artifact]:
    """Two test examples of one system."""
    pairs = data.test
    if pairs is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    listen = _LISTEN[system.verbs[0]]
    artifacts: list[Artifact] = []
    for number in range(min(SHOWN, len(pairs))):
        sounds = listen(system, pairs[number], pairs.sample_rate)
        artifacts += _group(sounds, pairs.sample_rate, number + 1, folder)
    return artifacts


def _separated(system: Any, example: Example, rate: int) -> list[Sound]:
    found = scores.separated(system, example, rate)
    sounds = [Sound("before", "Mixture", example.input)]
    for k, (wave, truth) in enumerate(zip(found, example.target, strict=True), 1):
        sounds += [
            Sound(f"after{k}", f"Talker {k}, separated", wave, _gain(example.input, truth, wave)),
            Sound(f"truth{k}", f"Talker {k}, truth", truth),
        ]
    return sounds


def _enhanced(system: Any, example: Example, rate: int) -> list[Sound]:
    found, truth = scores.enhanced(system, example, rate), example.target
    return [
        Sound("before", "Input", example.input),
        Sound("after", "Enhanced", found, _gain(example.input, truth, found)),
        Sound("truth", "Truth", truth),
    ]


def _vocoded(system: Any, example: Example, rate: int) -> list[Sound]:
    found = scores.vocoded(system, example, rate)
    mel = scores.of_vocoded(example.target, found, rate)["mel_l1"]
    return [
        Sound("after", "From the mel spectrogram", found, f"log-mel L1 {mel:.2f}"),
        Sound("truth", "Recording", example.target),
    ]


_LISTEN: dict[str, Callable[[Any, Any, int], list[Sound]]] = {
    "separate": _separated, "enhance": _enhanced, "vocode": _vocoded,
}


def _gain(before: Tensor, truth: Tensor, after: Tensor) -> str:
    first, last = (float(si_sdr(x.double(), truth.double())) for x in (before, after))
    return f"SI-SDR {first:.1f} → {last:.1f} dB"


def _group(sounds: Sequence[Sound], rate: int, number: int, folder: Path) -> list[Artifact]:
    most = int(LONGEST * rate)
    waves = [sound.wave[:most].numpy() for sound in sounds]
    # By what was given and what is true alone: one bad estimate must not make the rest inaudible.
    known = [float(np.abs(w).max()) for w, s in zip(waves, sounds, strict=True)
             if not s.name.startswith("after")]
    gain = 0.9 / max(max(known), 1e-4)
    spectra = [spectrogram(gain * wave, rate) for wave in waves]
    top = max(float(s.max()) for s, x in zip(spectra, sounds, strict=True)
              if not x.name.startswith("after"))
    group, artifacts = f"example{number}", []
    for sound, wave, spectrum in zip(sounds, waves, spectra, strict=True):
        stem = f"{group}-{sound.name}"
        limited = np.clip(gain * wave, -1.0, 32767 / 32768)
        write(folder / f"{stem}.wav", limited, rate, "pcm16")
        _picture(spectrum, len(wave) / rate, rate, top, folder / f"{stem}.svg")
        artifacts += [
            Artifact("audio", sound.title, f"{stem}.wav", sound.caption, group),
            Artifact("image", sound.title, f"{stem}.svg", "", f"{group}-spectra"),
        ]
    return sorted(artifacts, key=lambda artifact: artifact.group)


def spectrogram(wave: np.ndarray, rate: int) -> np.ndarray:
    """Power in dB, [frequencies, frames], of frames of 32 ms every 8 ms.

    >>> tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)
    >>> power = spectrogram(tone, 8000)
    >>> int(power[:, 50].argmax()) * 8000 / 256
    1000.0
    """
    from scipy.signal import stft

    size = max(16, round(FRAME * rate))
    wave = np.pad(wave, (0, max(0, size - len(wave))))
    found = stft(wave, rate, nperseg=size, noverlap=size - size // 4)[2]
    return np.asarray(20 * np.log10(np.abs(found) + 1e-8))


def _picture(spectrum: np.ndarray, seconds: float, rate: int, top: float, path: Path) -> None:
    with picture(3.6, 2.0) as fig:
        axes = fig.subplots()
        axes.imshow(
            spectrum, origin="lower", aspect="auto", cmap=POSITIVE, vmin=top - RANGE, vmax=top,
            extent=(0, seconds, 0, rate / 2000), interpolation="nearest",
        )
        axes.set(xlabel="s", ylabel="kHz")
        axes.grid(visible=False)
        save(fig, path)
