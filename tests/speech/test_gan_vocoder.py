"""Training against discriminators: the step by hand, exact resume, weights and mels from files."""

from __future__ import annotations

import copy
import os
import signal

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrize

from passband.bench.budget import Budget
from passband.bench.claims import Evidence
from passband.bench.system import NullMonitor
from passband.bench.task import Data
from passband.data.audio import write
from passband.data.speech.files import FileRecordings
from passband.data.speech.folders import read
from passband.data.speech.pairs import Example, Fixed
from passband.errors import CheckpointError, ConfigError, DataError
from passband.parts.critics import critic_loss, feature_matching, generator_loss
from passband.parts.signal.mel import LogMel
from passband.speech.baselines.hifi_gan.system import HiFiGANVocoder
from passband.speech.given_mels import GivenMels
from passband.speech.istftnet import claims
from passband.speech.istftnet.system import ISTFTNetVocoder
from passband.speech.published import read_weights

RATE = 22_050


def tones(count=4, length=6000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(length) / RATE
    pitch = 100 + 200 * torch.rand(count, 1, generator=generator)
    waves = 0.2 * sum(torch.sin(2 * torch.pi * k * pitch * t) / k for k in range(1, 12))
    return waves + 0.003 * torch.randn(count, length, generator=generator)


def data(**options):
    pairs = Fixed([Example(x, x) for x in tones(**options)], RATE)
    return Data(train=pairs, valid=pairs)


def tiny(cls=ISTFTNetVocoder, seed=0, **changes):
    return cls(cls.configure("smoke", channels=16, **changes), seed=seed)


def fit(system, steps=3, monitor=None):
    system.fit(data(), Budget(steps=steps), monitor)
    return system


class Rows(NullMonitor):
    def __init__(self):
        self.rows = []

    def log(self, step, seconds, **values):
        self.rows.append({"step": step, **values})


# ---- the step ----------------------------------------------------------------------------------


def test_one_step_is_that_of_both_players_by_hand():
    """First the discriminators on a wave without gradient, then the generator against new ones."""
    options = {"optimizer": "sgd", "lr": 1e-4, "weight_decay": 0.0, "lr_decay": 1.0}
    before = tiny(**options)
    generator = copy.deepcopy(before.network).train()
    critics = before._new_critics().train()

    class Seen(ISTFTNetVocoder):
        def _step(self, stage, batch):
            self.batch = batch
            return super()._step(stage, batch)

    system = fit(Seen(before.config), steps=1)
    wave = system.batch[1]
    assert wave.shape == (2, 2048)
    lr = options["lr"]

    def descend(module, loss):
        parameters = list(module.parameters())
        with torch.no_grad():
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p -= lr * g

    def judged(x):
        return [o for critic in critics for o in critic(x)]

    def halves(x, y):
        """Both in one pass, so that spectral norm iterates as often as ours."""
        opinions = judged(torch.cat([x, y]))
        parts = [
            [type(o)(o.score[i : i + 2], [f[i : i + 2] for f in o.features]) for o in opinions]
            for i in (0, 2)
        ]
        return parts

    mel = LogMel(RATE, 1024, 256, 1024, 80, 0, 8000)(wave)
    fake = generator(mel)
    descend(critics, critic_loss(*halves(wave, fake.detach())))
    with parametrize.cached():
        real, made = judged(wave), judged(fake)
    full = LogMel(RATE, 1024, 256, 1024, 80, 0, None)
    loss = generator_loss(made) + feature_matching(real, made, 2.0)
    loss = loss + 45 * (full(fake) - full(wave)).abs().mean()
    descend(generator, loss)

    start = dict(before.network.state_dict())
    for name, expected in generator.state_dict().items():
        found = system.network.state_dict()[name]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        if name == "conv_post.parametrizations.weight.original1":
            assert not torch.equal(found, start[name])
    for name, expected in critics.state_dict().items():
        found = system._critics.state_dict()[name]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_discriminators_learn_and_their_gradients_come_back_on():
    system = fit(tiny())
    fresh = tiny()._new_critics()
    moved = [
        not torch.equal(a, b)
        for a, b in zip(system._critics.parameters(), fresh.parameters(), strict=True)
    ]
    assert sum(moved) > 0.9 * len(moved)
    assert all(p.requires_grad for p in system._critics.parameters())


def test_the_learning_rate_falls_with_epochs():
    rows = Rows()
    fit(tiny(lr=1e-3, lr_decay=0.5), steps=6, monitor=rows)  # four recordings: two steps an epoch
    assert [row["lr"] for row in rows.rows] == pytest.approx(
        [1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4, 2.5e-4]
    )
    with pytest.raises(ConfigError, match="lr_decay"):
        fit(tiny(schedule="cosine"))


@pytest.mark.parametrize("cls", [ISTFTNetVocoder, HiFiGANVocoder])
def test_a_killed_run_resumes_to_the_same_weights(cls, tmp_path):
    class Kill(NullMonitor):
        def log(self, step, seconds, **values):
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    whole = fit(tiny(cls, keep_critics=True, ema=0.9), steps=5)
    first = tiny(cls, keep_critics=True, ema=0.9)
    first.checkpoints = tmp_path
    with pytest.raises(KeyboardInterrupt):
        fit(first, steps=5, monitor=Kill())
    second = tiny(cls, keep_critics=True, ema=0.9)
    second.checkpoints, second.resume = tmp_path, True
    fit(second, steps=5)
    assert any(name.startswith("critics.1.") for name in whole.state())
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name


def test_what_is_vocoded_is_the_network_of_the_moment():
    system, mel = tiny(), torch.full((80, 6), -4.0)
    first = system.vocode(mel)
    with torch.no_grad():
        torch.testing.assert_close(first, system.network(mel[None])[0], rtol=1e-5, atol=1e-6)
        system.network.conv_post.bias.add_(0.3)
        torch.testing.assert_close(
            system.vocode(mel), system.network(mel[None])[0], rtol=1e-5, atol=1e-6
        )
    assert not torch.allclose(first, system.vocode(mel), atol=1e-3)


def test_looking_at_the_system_while_it_learns_changes_nothing():
    class Look(NullMonitor):
        seen = 0

        def test_error(self, system):
            self.seen += 1
            assert np.isfinite(system.vocode(np.full((80, 4), -5.0))).all()

    look = Look()
    a, b = fit(tiny()), fit(tiny(), monitor=look)
    assert look.seen
    for name, tensor in a.state().items():
        assert torch.equal(tensor, b.state()[name])


def test_selection_by_validation():
    system = tiny(select="lowest mel")
    rows = Rows()
    found = system.fit(data(), Budget(steps=4), rows)
    assert found["selected"] == "lowest mel"
    validated = [row["mel"] for row in rows.rows if "loss" not in row]
    assert found["mel"] == pytest.approx(min(validated))
    assert system.validate(system.network, data().valid)["mel"] == pytest.approx(found["mel"])


def test_both_recipes_and_other_rates():
    paper, hifigan = (ISTFTNetVocoder.configure(p) for p in ("paper", "hifigan"))
    assert (paper.optimizer, paper.betas, paper.lr) == ("adam", (0.5, 0.9), 2e-4)
    assert (hifigan.optimizer, hifigan.betas, hifigan.lr) == ("adamw", (0.8, 0.99), 2e-4)
    assert (hifigan.weight_decay, hifigan.lr_decay) == (0.01, 0.999)
    assert paper.rates == hifigan.rates == (8, 8)
    assert ISTFTNetVocoder(paper).segment == 8192
    for preset, frame, hop in (("24k", 20, 5), ("44k", 32, 8)):
        with torch.device("meta"):
            system = ISTFTNetVocoder.from_preset(preset)
            net = system.build()
        assert (net.inverse.n_fft, net.inverse.hop) == (frame, hop)
    system = ISTFTNetVocoder.from_preset("24k", channels=16)
    mel = system.analyse(np.zeros(24_000, np.float32))
    assert mel.shape == (80, 80)
    assert system.vocode(mel).shape == (24_000,)


def test_bf16_is_close():
    mel = np.random.default_rng(0).normal(-4, 2, (80, 40)).astype(np.float32)
    exact, close = (tiny(inference=kind).vocode(mel) for kind in ("float32", "bf16"))
    assert close.dtype == np.float32
    error = np.square(exact - close).mean() / np.square(exact).mean()
    assert 0 < error < 1e-3


def test_wrong_mels_are_explained():
    system = tiny()
    for mel, text in (
        (np.zeros((7, 80)), "mel.T"), (np.zeros((100, 7)), r"\(100, 7\)"),
        (np.zeros((80, 0)), r"\(80, 0\)"), (np.full((80, 3), 20.0), "base 10"),
        (np.full((80, 3), np.nan), "not finite"), (np.zeros(80), r"\(80,\)"),
    ):
        with pytest.raises(DataError, match=text):
            system.vocode(mel)


def test_wrong_stages_are_refused_at_once():
    for cls, options, text in (
        (ISTFTNetVocoder, {"rates": (8, 3)}, "product is one of 1, 2, 4, 8"),
        (ISTFTNetVocoder, {"rates": ()}, "rates"),
        (ISTFTNetVocoder, {"rates": (8,), "kernels": (15,)}, "kernel of 15"),
        (ISTFTNetVocoder, {"channels": 18}, "18 channels"),
        (HiFiGANVocoder, {"rates": (8, 8)}, "multiply to 256"),
    ):
        with pytest.raises(ConfigError, match=text):
            cls.configure("small", **options)


# ---- weights from files ------------------------------------------------------------------------


def test_learning_goes_on_from_a_saved_system(tmp_path):
    first = fit(tiny(keep_critics=True))
    path = str(first.save(tmp_path / "first"))

    class Start(NullMonitor):
        def test_error(self, system):
            if not hasattr(self, "state"):
                self.state = {n: t.clone() for n, t in system.state().items()}

    start = Start()
    fit(tiny(pretrained=path, seed=5, keep_critics=True), steps=1, monitor=start)
    for name, tensor in first.state().items():
        assert torch.equal(start.state[name], tensor), name
    again = ISTFTNetVocoder.load(path)
    assert again.parameter_count() == tiny().parameter_count()
    assert any(name.startswith("critics.") for name in again.state())


@pytest.mark.parametrize("form", ["normed", "plain", "safetensors"])
def test_published_checkpoints_are_read(form, tmp_path):
    """As HiFi-GAN's code writes them: weight_g and weight_v, or plain weights."""
    net = tiny(HiFiGANVocoder, seed=3).network
    names = {"original0": "weight_g", "original1": "weight_v"}
    weights = {
        n.replace(".parametrizations.weight.original", ".original").replace(
            "original" + n[-1], names.get("original" + n[-1], "original" + n[-1])
        ): t for n, t in net.state_dict().items()
    }
    assert "ups.0.weight_g" in weights
    if form == "plain":
        weights = {
            n: t for n, t in weights.items() if not n.endswith(("_g", "_v"))
        } | {f"{n}.weight": m.weight.detach() for n, m in net.named_modules() if hasattr(m, "bias")}
    path = tmp_path / ("g.safetensors" if form == "safetensors" else "g_00000001")
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(weights, path)
    else:
        torch.save({"generator": weights}, path)
    system = tiny(HiFiGANVocoder, pretrained=str(path), lr=1e-9, optimizer="sgd")
    fit(system, steps=1)
    mel = torch.full((1, 80, 5), -4.0)
    with torch.no_grad():
        torch.testing.assert_close(system.network(mel), net(mel), rtol=1e-4, atol=1e-5)


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = tiny().save(tmp_path / "a")
    with pytest.raises(CheckpointError, match="don't fit"):
        fit(tiny(pretrained=str(path), rates=(8, 1)))
    with pytest.raises(CheckpointError, match="no weights at"):
        fit(tiny(pretrained=str(tmp_path / "nowhere")))
    torch.save({"mpd": {}, "steps": 3}, tmp_path / "do_1")
    with pytest.raises(CheckpointError, match="no weights of a generator"):
        read_weights(tmp_path / "do_1")
    torch.save({"generator": LogMel}, tmp_path / "evil")
    with pytest.raises(CheckpointError, match="tensors"):
        read_weights(tmp_path / "evil")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(CheckpointError, match=r"broken\.pt"):
        read_weights(tmp_path / "broken.pt")


# ---- given mels --------------------------------------------------------------------------------


def folder_of(tmp_path, frames=(30, 40, 12), hop=256):
    """Waves that count samples, mels that count frames."""
    for i, count in enumerate(frames):
        ramp = np.arange(count * hop, dtype=np.float32) / 2**15
        write(tmp_path / "wavs" / f"r{i}.wav", ramp, RATE)
        (tmp_path / "mels").mkdir(exist_ok=True)
        mel = np.broadcast_to(np.arange(count, dtype=np.float32) / 100, (80, count))
        np.save(tmp_path / "mels" / f"r{i}.npy", mel[None] if i == 1 else mel)
    files = sorted((tmp_path / "wavs").iterdir())
    return FileRecordings(files, ["a"] * len(files), [f.name for f in files])


def test_pieces_of_wave_and_mel_belong_together(tmp_path):
    recordings = folder_of(tmp_path)
    read_one = tiny()._read
    segments = GivenMels(recordings, tmp_path / "mels", read_one, hop=256, frames=16)
    starts = set()
    for k in range(30):
        mel, wave = segments.draw(k % 3, np.random.default_rng(k))
        assert mel.shape == (80, 16)
        assert wave.shape == (16 * 256,)
        start = round(float(mel[0, 0]) * 100)
        heard = (wave[:256] * 2**15).round().int()
        assert torch.equal(heard, torch.arange(start * 256, start * 256 + 256, dtype=torch.int))
        starts.add(start)
        if k % 3 == 2:  # twelve frames: the rest is silence in both
            assert start == 0
            assert float(mel[0, 12]) == pytest.approx(np.log(1e-5))
            assert not wave[12 * 256 :].any()
    assert len(starts) > 5


def test_fine_tuning_on_given_mels_uses_them(tmp_path):
    for i, wave in enumerate(tones(4)):
        write(tmp_path / "wavs" / f"r{i}.wav", wave.numpy(), RATE)
        (tmp_path / "mels").mkdir(exist_ok=True)
        np.save(tmp_path / "mels" / f"r{i}.npy", np.full((80, 6000 // 256), -5.0, np.float32))
    parts = read(tmp_path / "wavs", "vocode")
    own = Data(train=parts.train, valid=parts.valid)
    seen = []

    class Seen(ISTFTNetVocoder):
        def _step(self, stage, batch):
            seen.append(batch)
            return super()._step(stage, batch)

    config = Seen.configure("smoke", channels=16, mels=str(tmp_path / "mels"))
    Seen(config).fit(own, Budget(steps=2))
    assert seen[0][0].shape == (2, 80, 8)
    assert (seen[0][0] == -5).all()
    assert seen[0][1].shape == (2, 2048)

    config = config.model_copy(update={"mels": str(tmp_path / "wavs")})
    with pytest.raises(DataError, match="has no mel in"):
        Seen(config).fit(own, Budget(steps=1))
    with pytest.raises(DataError, match="no files"):
        fit(tiny(mels=str(tmp_path)))


def test_given_mels_that_do_not_fit_are_named(tmp_path):
    recordings = folder_of(tmp_path)
    np.save(tmp_path / "mels" / "r1.npy", np.zeros((80, 20), np.float32))
    with pytest.raises(DataError, match=r"r1\.npy has 20 frames, its recording lasts 40"):
        GivenMels(recordings, tmp_path / "mels", tiny()._read, hop=256, frames=8)
    np.save(tmp_path / "mels" / "r1.npy", np.zeros((40, 80), np.float32))
    with pytest.raises(DataError, match=r"mel\.T"):
        GivenMels(recordings, tmp_path / "mels", tiny()._read, hop=256, frames=8)


# ---- claims ------------------------------------------------------------------------------------


class FakeBench:
    smoke, calibrate = True, False

    def __init__(self, mine, rival):
        self.values = {"istftnet": mine, "hifi-gan": rival}
        self.cells = []

    def seeds(self, n):
        return list(range(n))

    def run_many(self, cells):
        self.cells += cells
        return [{"metrics": {"mel_l1": self.values[c["system"]] * (1.3 if c.get("rates") == (8,)
                                                                  else 1)}} for c in cells]


def test_verdicts_follow_the_figures():
    assert claims.as_good(FakeBench(1.05, 1.0)).verdict == "holds"
    assert claims.as_good(FakeBench(1.2, 1.0)).verdict == "fails"
    worse = claims.worse_with_too_little(FakeBench(1.0, 1.0))
    assert isinstance(worse, Evidence)
    assert worse.verdict == "holds"
    assert worse.effect == pytest.approx(1.3)
    assert claims.as_good(FakeBench(float("nan"), 1.0)).verdict == "fails"


def test_sizes_are_proved_exactly():
    evidence = claims.fewer_parameters(FakeBench(1, 1))
    assert evidence.verdict == "holds"
    assert "13,262,244 against 13,936,130" in evidence.obtained
