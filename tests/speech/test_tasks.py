"""The tasks, proved with stand-ins: the truth scores high, the input itself exactly nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from passband.bench.report.artifacts import clean_svg
from passband.bench.task import Data
from passband.data.audio import write
from passband.data.speech.pairs import Example, Fixed
from passband.errors import DataError
from passband.speech import scores
from passband.speech.tasks import TASKS
from tests.speech.fakes import Copying, Identity, Oracle

WITH_TRUTH = ("two-talkers", "two-talkers-rooms", "denoising", "dereverberation")


@pytest.fixture(scope="module")
def data() -> dict[str, Data]:
    return {name: task.data(0, "smoke") for name, task in TASKS.items()}


@pytest.mark.parametrize("name", WITH_TRUTH)
def test_the_truth_scores_high_and_the_input_gains_nothing(
    name: str, data: dict[str, Data]
) -> None:
    task, given = TASKS[name], data[name]
    best = task.evaluate(Oracle(given.test, task.verb), given)
    same = task.evaluate(Identity(task.verb), given)
    names = {metric.name for metric in task.metrics}
    assert best.keys() == same.keys() == names
    assert task.primary.name == "si_sdri"
    assert best["si_sdr"] > 60
    assert best["si_sdri"] == pytest.approx(best["si_sdr"] - same["si_sdr"])
    assert best["pesq"] > 4.4
    assert best.get("stoi", best.get("estoi")) > 0.999
    assert same["si_sdri"] == 0.0
    assert same["pesq"] < best["pesq"] - 0.5
    assert same["si_sdr"] < 15
    assert same.get("stoi", same.get("estoi")) < 0.99


def test_figures_of_a_known_distortion() -> None:
    """Noise at right angles to the target, 10 dB below it, on an input with noise at 4 dB."""
    t = torch.arange(16_000) / 8000
    target, noise = torch.sin(2 * torch.pi * 200 * t), torch.sin(2 * torch.pi * 300 * t)
    example = Example(target + 10 ** -0.2 * noise, target)
    found = scores.of_wave(example, 0.3 * (target + 10 ** -0.5 * noise), 8000)
    assert found["si_sdr"] == pytest.approx(10.0, abs=1e-3)
    assert found["si_sdri"] == pytest.approx(6.0, abs=1e-3)


def test_talkers_are_scored_in_the_best_order() -> None:
    sources = torch.randn(3, 8000, generator=torch.Generator().manual_seed(0))
    example = Example(sources.sum(0), sources)

    class Shuffled(Identity):
        def separate(self, wave: torch.Tensor, sample_rate: int) -> np.ndarray:
            return (2 * sources[[2, 0, 1]]).numpy()

    found = scores.separated(Shuffled("separate"), example, 8000)
    assert torch.equal(found, 2 * sources)


def test_no_figure_depends_on_the_other_recordings(data: dict[str, Data]) -> None:
    task, whole = TASKS["denoising"], data["denoising"].test
    alone = [
        task.evaluate(Identity("enhance"), Data(None, test=Fixed([whole[i]], 8000)))
        for i in range(len(whole))
    ]
    together = task.evaluate(Identity("enhance"), Data(None, test=whole))
    for name, value in together.items():
        assert value == pytest.approx(np.mean([row[name] for row in alone]))


def test_vocoders(data: dict[str, Data]) -> None:
    task, given = TASKS["vocoding"], data["vocoding"]
    best = task.evaluate(Copying(), given)
    assert best["mel_l1"] == 0.0
    assert best["mr_stft"] == pytest.approx(0.0, abs=1e-6)
    assert best["pesq"] > 4.6
    half = task.evaluate(Copying(gain=0.5), given)
    # All log-mels fall by ln 2 but for those at the floor, and none by more.
    assert 0.6 * np.log(2) < half["mel_l1"] <= np.log(2) + 1e-4
    noisy = task.evaluate(Copying(noise=0.05), given)
    assert noisy["mel_l1"] > 0.2
    assert noisy["pesq"] < 4


def test_a_vocoder_of_another_rate_is_compared_at_the_tasks() -> None:
    t = torch.arange(22_050) / 22_050
    tone = 0.5 * torch.sin(2 * torch.pi * 300 * t)

    class Slow(Copying):
        class config:
            sample_rate = 16_000

        def analyse(self, wave: torch.Tensor, sample_rate: int) -> torch.Tensor:
            return 0.5 * torch.sin(2 * torch.pi * 300 * torch.arange(16_000) / 16_000)[None]

        def vocode(self, mel: torch.Tensor) -> torch.Tensor:
            return mel[0]

    found = scores.vocoded(Slow(), Example(tone, tone), 22_050)
    assert float((found - tone)[200:-200].abs().max()) < 1e-3


@pytest.mark.parametrize("wrong", [
    torch.zeros(2, 100), torch.zeros(3, 8000), torch.full((2, 8000), float("nan")),
])
def test_what_is_no_answer_is_refused(wrong: torch.Tensor) -> None:
    class Wrong(Identity):
        def separate(self, wave: torch.Tensor, sample_rate: int) -> torch.Tensor:
            return wrong

    example = Example(torch.zeros(8000), torch.randn(2, 8000))
    with pytest.raises(DataError, match="Wrong gave"):
        scores.separated(Wrong("separate"), example, 8000)


def test_silence_has_a_score(data: dict[str, Data]) -> None:
    """A system that gives nothing is bad, and no broken row."""
    class Nothing(Identity):
        def enhance(self, wave: torch.Tensor, sample_rate: int) -> torch.Tensor:
            return torch.zeros_like(wave)

    found = TASKS["denoising"].evaluate(Nothing("enhance"), data["denoising"])
    assert all(np.isfinite(value) for value in found.values())
    assert found["si_sdri"] < -20


def test_recordings_without_speech_are_left_out_of_what_needs_some(data: dict[str, Data]) -> None:
    spoken = data["denoising"].test[0]
    silent = Example(0.01 * torch.randn(8000), torch.zeros(8000))
    found, both = (
        TASKS["denoising"].evaluate(Identity("enhance"), Data(None, test=Fixed(examples, 8000)))
        for examples in ([spoken], [spoken, silent])
    )
    assert (both["pesq"], both["stoi"]) == (found["pesq"], found["stoi"])
    alone = Data(None, test=Fixed([silent], 8000))
    assert TASKS["denoising"].evaluate(Identity("enhance"), alone).keys() == {"si_sdri", "si_sdr"}


def test_a_fit_never_sees_the_test(data: dict[str, Data]) -> None:
    assert data["denoising"].for_fit().test is None
    assert TASKS["denoising"].evaluate(Identity("enhance"), data["denoising"].for_fit()) == {}


@pytest.mark.parametrize("name", TASKS)
def test_sounds_and_pictures(name: str, data: dict[str, Data], tmp_path: Path) -> None:
    task, given = TASKS[name], data[name]
    system = Copying(noise=0.01) if task.verb == "vocode" else Identity(task.verb)
    found = task.artifacts(system, given, tmp_path)
    each = {"separate": 5, "enhance": 3, "vocode": 2}[task.verb]
    assert len(found) == 2 * 2 * each
    assert {a.kind for a in found} == {"audio", "image"}
    assert len({a.group for a in found}) == 4
    for artifact in found:
        path = tmp_path / artifact.file
        assert path.stat().st_size < 400_000
        if artifact.kind == "image":
            clean_svg(path.read_text(), "a-", artifact.title)
        else:
            with wave.open(str(path), "rb") as file:
                assert file.getframerate() == given.test.sample_rate
                assert file.getsampwidth() == 2
    # The truth is heard as loud as it stands beside the input.
    truth = next(a for a in found if "truth" in a.file and a.kind == "audio")
    with wave.open(str(tmp_path / truth.file), "rb") as file:
        heard = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
    target = given.test[0].target.reshape(-1, given.test[0].target.shape[-1])[0].numpy()
    ratio = heard / np.where(np.abs(target) > 0.05, target, np.nan)
    assert np.nanstd(ratio) < 1e-2 * np.nanmean(ratio)


def test_users_recordings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for talker in "ab":
        for i in range(5):
            write(tmp_path / talker / f"{i}.wav", 0.1 * rng.standard_normal(8000), 8000)
    for name, task in TASKS.items():
        if name == "two-talkers-rooms" or name == "dereverberation":
            continue  # the same readers, and rooms take long to make
        parts = task.read(tmp_path)
        assert (len(parts.valid), len(parts.test)) == (2, 2)
        assert parts.name == name


def test_listing_the_tasks_imports_nothing_heavy() -> None:
    code = (
        "import sys; from passband.speech import tasks; "
        "heavy = [m for m in ('torch', 'scipy', 'soundfile', 'pesq') if m in sys.modules]; "
        "import json; sys.stdout.write(json.dumps([heavy, sorted(tasks.TASKS)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, names = json.loads(done.stdout)
    assert "torch" not in heavy
    assert names == sorted(TASKS)
