"""Jobs of the speech family: tell talkers apart, clean speech from noise and rooms, make waves.

Voices, sentences, rooms and noise of a test are none of those in training. The seed draws test
mixtures as well as training data. All scores are taken at the task's own rate, whatever the
system's: 8 kHz, and 22.05 kHz for vocoders.

    data     Data of Pairs (`passband.data.speech.pairs`): (mixture, noisy, reverberant) -> clean
    read     users' folders and lists (`passband.data.speech.folders`)
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passband.bench.system import System
from passband.bench.task import Artifact, Data, Metric, Size, Task

if TYPE_CHECKING:
    from passband.data.speech.pairs import Pairs

_SI_SDR = "scale-invariant signal-to-distortion ratio"
_PESQ = Metric(
    "pesq", "", "higher",
    about="perceptual quality, 1 to 4.5; narrow band at 8 kHz, else wide band at 16 kHz; 1 where "
    "the result has no speech",
)
_STOI = Metric("stoi", "", "higher", about="short-time objective intelligibility, to 1")
_ESTOI = Metric("estoi", "", "higher", about="extended short-time intelligibility, to 1")


class Speech(Task):
    """Pairs of what is given and what should come out, scored recording by recording.

    make     (seed, size) -> parts, as "module:function"
    work     what users' folders are read for: "separate", "denoise", "dereverberate", "vocode"
    score    (system, pairs) -> metrics by name, as "module:function"
    """

    family = "speech"
    version = 1

    def __init__(
        self, name: str, verb: str, summary: str, *, make: str, work: str, score: str,
        metrics: tuple[Metric, ...],
    ) -> None:
        self.name, self.verb, self.summary, self.work = name, verb, summary, work
        self._make, self._score, self.metrics = make, score, metrics
        first = metrics[0].name
        self.pareto = ((first, "parameters"), (first, "seconds"))

    def data(self, seed: int = 0, size: Size = "small", model: Path | None = None) -> Data[Pairs]:
        return self._data(_function(self._make)(seed, size))

    def read(self, path: Path, model: Path | None = None) -> Data[Pairs]:
        return self._data(_function("passband.data.speech.folders:read")(path, self.work))

    def _data(self, parts: Any) -> Data[Pairs]:
        return Data(train=parts.train, valid=parts.valid, test=parts.test, name=self.name)

    def evaluate(self, system: System, data: Data[Pairs]) -> dict[str, float]:
        if data.test is None:
            return {}
        found: dict[str, float] = _function(self._score)(system, data.test)
        return found

    def artifacts(self, system: System, data: Data[Pairs], folder: Path) -> list[Artifact]:
        from passband.speech.pictures import draw

        return draw(system, data, folder)


def _function(path: str) -> Callable[..., Any]:
    module, name = path.split(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


_EMBEDDED, _SCORES = "passband.data.speech.embedded", "passband.speech.scores"
_SEPARATION = (
    Metric("si_sdri", "dB", "higher", about=f"{_SI_SDR}, improvement over the mixture, talkers in "
           "the order that fits best"),
    Metric("si_sdr", "dB", "higher", about=_SI_SDR), _PESQ, _STOI,
)
_ENHANCEMENT = (
    Metric("si_sdri", "dB", "higher", about=f"{_SI_SDR}, improvement over the input"),
    Metric("si_sdr", "dB", "higher", about=_SI_SDR), _PESQ,
)

_ALL: tuple[Task, ...] = (
    Speech(
        "two-talkers", "separate", "two voices at once, in a dead room",
        make=f"{_EMBEDDED}:two_talkers", work="separate", score=f"{_SCORES}:separation",
        metrics=_SEPARATION,
    ),
    Speech(
        "two-talkers-rooms", "separate",
        "two voices at once in a room with noise; the reverberant voices are wanted",
        make=f"{_EMBEDDED}:talkers_in_rooms", work="separate", score=f"{_SCORES}:separation",
        metrics=_SEPARATION,
    ),
    Speech(
        "denoising", "enhance", "a voice in white, pink, humming or clicking noise or in babble",
        make=f"{_EMBEDDED}:noisy_speech", work="denoise", score=f"{_SCORES}:enhancement",
        metrics=(*_ENHANCEMENT, _STOI),
    ),
    Speech(
        "denoising-unseen", "enhance",
        "a voice in hum and clicks, for systems that learned from white and pink noise alone",
        make=f"{_EMBEDDED}:unseen_noise", work="denoise", score=f"{_SCORES}:enhancement",
        metrics=(*_ENHANCEMENT, _STOI),
    ),
    Speech(
        "dereverberation", "enhance", "a voice in a room of 0.3 to 1 s reverberation time",
        make=f"{_EMBEDDED}:reverberant_speech", work="dereverberate",
        score=f"{_SCORES}:dereverberation", metrics=(*_ENHANCEMENT, _ESTOI),
    ),
    Speech(
        "vocoding", "vocode", "a wave from its mel spectrogram, voices unheard before",
        make=f"{_EMBEDDED}:clean_speech", work="vocode", score=f"{_SCORES}:vocoding",
        metrics=(
            Metric("mel_l1", "nats", "lower",
                   about="mean absolute difference of log-mel spectrograms of the whole band"),
            Metric("mr_stft", "", "lower",
                   about="spectral convergence plus log magnitude distance at three resolutions"),
            _PESQ,
        ),
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
