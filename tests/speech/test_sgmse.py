"""SGMSE+ as a system, and its network without the diffusion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from passband import create
from passband.bench.budget import Budget
from passband.bench.task import Data
from passband.data.speech.pairs import Example, Fixed
from passband.errors import ConfigError, DataError, PassbandWarning
from passband.speech.sgmse.noise import BLOCK, NoiseField
from passband.speech.sgmse.system import SGMSE, padded
from passband.speech.spectra import CompressedSpectra, peak

RATE = 8000


def tone(samples: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wave = np.sin(2 * np.pi * 300 * np.arange(samples) / RATE) + 0.2 * rng.normal(size=samples)
    return (0.3 * wave).astype(np.float32)


def pairs(noise: float = 0.3) -> Fixed:
    rng = np.random.default_rng(0)
    clean = torch.from_numpy(np.stack([tone(4000, seed) for seed in range(4)]))
    noisy = clean + noise * torch.from_numpy(rng.normal(size=clean.shape).astype(np.float32))
    return Fixed([Example(y, x) for x, y in zip(clean, noisy, strict=True)], RATE)


@pytest.fixture(scope="module")
def system() -> SGMSE:
    """Trained for two steps: its weights are no longer those at which nothing comes out."""
    made = create("sgmse", preset="smoke")
    made.fit(Data(train=pairs()), Budget(steps=2))
    return made


# ---- representation ----------------------------------------------------------------------------


def test_spectra_against_torch():
    """max |y| before, beta |S|^alpha e^{i angle}, Hann of 510."""
    wave = torch.from_numpy(np.stack([tone(4000), 3 * tone(4000, 1)]))
    spectra = CompressedSpectra(510, 128, 0.5, 0.15)
    found = spectra.analyse(wave, peak(wave))
    normal = wave / wave.abs().max(dim=1, keepdim=True).values
    stft = torch.stft(
        normal, 510, 128, window=torch.hann_window(510), center=True, return_complex=True
    )
    expected = 0.15 * stft.abs().sqrt() * torch.exp(1j * stft.angle())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    back = spectra.synthesise(found, peak(wave), 4000)
    torch.testing.assert_close(back, wave, rtol=0, atol=1e-5)


def test_frames_are_filled_up():
    x = torch.arange(5.0)[None]
    assert padded(x, 3, "zeros").tolist() == [[0, 1, 2, 3, 4, 0, 0, 0]]
    assert padded(x, 3, "reflect").tolist() == [[0, 1, 2, 3, 4, 3, 2, 1]]
    # More than a reflection has: it turns again.
    assert padded(x[:, :2], 4, "reflect").tolist() == [[0, 1, 0, 1, 0, 1]]
    assert padded(x[:, :1], 2, "reflect").tolist() == [[0, 0, 0]]


# ---- enhance -----------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [8000, 8001, 1, 33, 700])
def test_the_length_is_kept(system, samples):
    found = system.enhance(tone(samples), RATE)
    assert found.shape == (samples,)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_channels_types_and_rates(system):
    stereo = np.stack([tone(3000), tone(3000, 1)])
    found = system.enhance(stereo, RATE)
    assert found.shape == (2, 3000)
    np.testing.assert_allclose(found[1], system.enhance(stereo[1], RATE), atol=1e-4)
    assert system.enhance(torch.from_numpy(stereo), 16_000).shape == (2, 3000)
    whole = (tone(3000) * 32768).astype(np.int16)
    np.testing.assert_allclose(
        system.enhance(whole, RATE), system.enhance(whole / np.float32(32768), RATE), atol=1e-5
    )


def test_seeds(system):
    wave = tone(2000)
    np.testing.assert_array_equal(system.enhance(wave, RATE), system.enhance(wave, RATE, seed=0))
    assert not np.allclose(system.enhance(wave, RATE), system.enhance(wave, RATE, seed=1))


def test_the_level_comes_back(system):
    """Divided by the peak before, multiplied after: four times as loud gives four times."""
    wave = tone(2000)
    np.testing.assert_allclose(
        system.enhance(4 * wave, RATE), 4 * system.enhance(wave, RATE), rtol=1e-3, atol=1e-3
    )


def test_silence_stays_silence(system):
    wave = np.stack([np.zeros(2000, np.float32), tone(2000)])
    found = system.enhance(wave, RATE)
    assert not found[0].any()
    np.testing.assert_allclose(found[1], system.enhance(wave[1], RATE), atol=1e-4)


@pytest.mark.parametrize("wave", [
    np.full(2000, np.nan, np.float32), np.zeros(0, np.float32), np.zeros((2, 3, 4), np.float32),
])
def test_bad_input(system, wave):
    with pytest.raises(DataError):
        system.enhance(wave, RATE)


@pytest.mark.parametrize("settings", [
    {"sampler": "ode", "tolerance": 0.1}, {"corrector": "none"}, {"corrector": "langevin"},
    {"predictor": "euler_maruyama"}, {"predictor": "none"}, {"process": "ve"},
    {"backbone": "ncsnpp_48k", "attention": (), "padding": "reflect"},
    {"backbone": "ncsnpp_v2"}, {"backbone": "ncsnpp_v2", "aim": "denoiser", "c_in": "edm",
                                "c_skip": "edm", "c_out": "edm", "inner": "1"},
    {"backbone": "dcunet", "n_fft": 128, "architecture": "dcunet-10", "scale": 0.1},
])
def test_every_setting_works(settings):
    other = create("sgmse", preset="smoke", **settings)
    other.fit(Data(train=pairs()), Budget(steps=1))
    found = other.enhance(tone(1000), RATE)
    assert found.shape == (1000,)
    assert np.isfinite(found).all()


# ---- long recordings ---------------------------------------------------------------------------


def test_noise_has_its_place():
    """Any window sees its piece of one field; draws, seeds and bins are independent."""
    field = NoiseField(seed=3, bins=5)
    whole = field.window(0, 0, 5 * BLOCK, torch.complex64)
    for start, frames in ((0, 1), (10, 3 * BLOCK), (BLOCK, BLOCK), (2 * BLOCK - 1, 2)):
        piece = field.window(0, start, frames, torch.complex64)
        torch.testing.assert_close(piece, whole[:, start : start + frames], rtol=0, atol=0)
    other = field.window(1, 0, 5 * BLOCK, torch.complex64)
    assert not torch.equal(whole, other)
    assert abs(float((whole * other.conj()).real.mean())) < 0.05
    assert float(whole.abs().square().mean()) == pytest.approx(1, abs=0.1)
    # A sampler's draws come one after the other, those of a batch from their own places.
    draw = field.at([0, 7])
    like = torch.zeros(2, 5, 20, dtype=torch.complex64)
    first, second = draw(like), draw(like)
    torch.testing.assert_close(first[1], whole[:, 7:27])
    torch.testing.assert_close(second[0], other[:, :20])


class NoiseAlone(SGMSE):
    """A sampler that gives its first draw: what comes out shows which noise was seen."""

    def sampler(self, reverse_steps=None):
        return lambda score, y, noise: noise(y)


def noise_alone(**settings) -> NoiseAlone:
    return NoiseAlone.from_preset("smoke", **settings)


@pytest.mark.parametrize("several", [1, 3])
def test_windows_see_the_same_noise_where_they_overlap(several):
    """Cut into windows or not: the same, but for half a transform at the windows' ends."""
    wave = tone(10_000)
    whole = noise_alone(window=2.0).enhance(wave, RATE)
    cut = noise_alone(window=0.3, overlap=0.1, windows_at_once=several).enhance(wave, RATE)
    window, hop = noise_alone(window=0.3, overlap=0.1).config.sizes()
    assert (window, hop) == (75 * 32, 50 * 32)
    near = np.zeros(len(wave), bool)
    near[-64:] = True  # reflected there in one piece, followed by zeros in a window
    for start in range(0, len(wave), hop):
        near[max(0, start - 64) : start + 64] = near[start + window - 64 : start + window + 64] = 1
    assert near.mean() < 0.25
    np.testing.assert_allclose(cut[~near], whole[~near], rtol=1e-3, atol=1e-4)


def test_batches_of_windows_change_nothing(system):
    wave = np.stack([tone(6000), tone(6000, 1)])
    found = []
    for several in (1, 4):
        changes = {"window": 0.4, "overlap": 0.1, "windows_at_once": several}
        other = SGMSE(system.config.model_copy(update=changes))
        other.load_state(system.state(), {})
        found.append(other.enhance(wave, RATE))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("window", [0.4, 8.0])
def test_files_in_blocks(system, tmp_path: Path, window, monkeypatch):
    """A file of any length gives what the array gives, block by block."""
    soundfile = pytest.importorskip("soundfile")
    from passband.speech import files

    monkeypatch.setattr(files, "BLOCK", 1000)
    changes = {"window": window, "overlap": 0.1}
    other = SGMSE(system.config.model_copy(update=changes))
    other.load_state(system.state(), {})
    wave = 0.5 * np.stack([tone(5001), 0.5 * tone(5001, 1)])
    soundfile.write(tmp_path / "in.wav", wave.T, RATE, subtype="FLOAT")
    (path,) = other.apply_file(tmp_path / "in.wav", tmp_path)
    found, rate = soundfile.read(path, dtype="float32")
    assert (rate, found.shape) == (RATE, (5001, 2))
    np.testing.assert_allclose(found.T, other.enhance(wave, RATE), rtol=1e-3, atol=1e-3)


# ---- training ------------------------------------------------------------------------------------


def test_the_average_of_the_weights_is_kept():
    """With a decay of almost 1 and its warm-up, three steps end between start and last weights."""
    ends = {}
    for ema in (None, 0.999):
        made = create("sgmse", preset="smoke", ema=ema)
        made.fit(Data(train=pairs()), Budget(steps=3))
        ends[ema] = made.state()["network.shifts.bias"]
    assert not torch.equal(ends[None], ends[0.999])
    # From zero on, decays (1 + n) / (10 + n): about a half of what the last weights have.
    shares = ends[0.999].abs().mean() / ends[None].abs().mean()
    assert 0.3 < float(shares) < 1.0


def test_validation_enhances(system):
    valid = Fixed([pairs()[i] for i in range(2)], RATE)
    found = system.validate(system.network, valid)
    assert np.isfinite(found["si_sdr"])
    made = create("sgmse", preset="smoke", select="highest si_sdr", validation_files=1)
    report = made.fit(Data(train=pairs(), valid=valid), Budget(steps=2))
    assert report["selected"] == "highest si_sdr"


def test_noise_that_is_too_loud_is_named():
    made = create("sgmse", preset="smoke")
    with pytest.warns(PassbandWarning, match="SNR below -2[0-9] dB"):
        made.fit(Data(train=pairs(noise=3.0)), Budget(steps=1))


def test_segments_are_whole_frames():
    made = create("sgmse", preset="smoke")
    assert made.segment == 63 * 32
    assert create("sgmse", preset="small", seconds=0.5).segment == 4000 // 32 * 32
    paper = SGMSE.from_preset("paper")
    assert paper.segment == 255 * 128
    assert paper.sampler().evaluations == 60
    assert SGMSE.from_preset("dereverb").sampler().evaluations == 100


@pytest.mark.parametrize(("settings", "what"), [
    ({"t_eps": 0.0}, "t_eps"), ({"t_eps": 1.0}, "t_eps"), ({"reverse_steps": 0}, "reverse_steps"),
    ({"r": 0.0}, "'r'"), ({"sigma_min": 0.5}, "sigma_min 0.5 is below"),
    ({"n_fft": 128}, "65 bins"), ({"hop_length": 100}, "hop_length 100"),
    ({"predictor": "none", "corrector": "none"}, "a predictor or a corrector"),
    ({"backbone": "dcunet"}, "n_fft 126 with dcunet-20"),
    ({"backbone": "dcunet", "n_fft": 128, "architecture": "dcunet-11"}, "dcunet-11"),
    ({"width": 18}, "18 channels"),
])
def test_settings_that_do_not_fit(settings, what):
    with pytest.raises(ConfigError) as error:
        SGMSE.configure("smoke", **settings)
    assert what in str(error.value)


def test_no_steps_at_all(system):
    with pytest.raises(ConfigError, match="N = 0"):
        system.enhance(tone(1000), RATE, reverse_steps=0)


# ---- the network without the diffusion -----------------------------------------------------------


def test_regression():
    made = create("discriminative", preset="smoke")
    report = made.fit(Data(train=pairs()), Budget(steps=15))
    assert report["loss"] < 0.05
    found = made.enhance(np.stack([tone(3000), np.zeros(3000, np.float32)]), RATE)
    assert found.shape == (2, 3000)
    assert found[0].any()
    assert not found[1].any()
    assert made.segment == 63 * 32


def test_the_regression_loss_is_the_mean_squared_error():
    from passband.speech.baselines.discriminative.model import Regression

    clean, noisy = torch.randn(2, 3, 4, 5, dtype=torch.complex64)
    model = Regression(torch.nn.Identity())  # gives the noisy spectrum back
    expected = (noisy - clean).abs().square().mean()
    torch.testing.assert_close(model.loss(noisy, clean), expected)
