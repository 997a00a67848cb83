"""Networks that separators are compared with: published sizes, independent formulations, limits."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from passband.errors import ConfigError, DataError
from passband.parts.flops import count_macs
from passband.speech.baselines.bsrnn.model import BSRNN, RecurrentPath
from passband.speech.baselines.bsrnn.system import BSRNNSeparator
from passband.speech.baselines.conv_tasnet.model import Block, ConvTasNet
from passband.speech.baselines.conv_tasnet.system import ConvTasNetSeparator
from passband.speech.baselines.tf_gridnet.system import TFGridNetSeparator
from passband.speech.tf_gridnet import FrameAttention, TFGridNet, UnfoldedRNN

SYSTEMS = (ConvTasNetSeparator, BSRNNSeparator, TFGridNetSeparator)


def size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---- sizes -----------------------------------------------------------------------------------


def test_conv_tasnet_has_the_published_5_1_million():
    encoder = decoder = 512 * 16
    block = (128 * 512 + 512) + 2 * (1 + 2 * 512) + (512 * 3 + 512) + 2 * (512 * 128 + 128)
    expected = (
        encoder + 2 * 512 + (512 * 128 + 128) + 24 * block + 1 + (128 * 1024 + 1024) + decoder
    )
    assert size(ConvTasNet()) == expected == 5_050_545


def test_tf_gridnet_has_the_published_14_4_million():
    with torch.device("meta"):
        network = TFGridNet()
    bins, channels, hidden, value, query = 65, 64, 256, 16, 8
    lstm = 2 * 4 * (hidden * (4 * channels + hidden) + 2 * hidden)
    path = 2 * channels + lstm + (2 * hidden * channels * 4 + channels)

    def projection(outputs: int) -> int:
        return channels * outputs + outputs + 1 + 2 * outputs * bins

    attention = 4 * (2 * projection(query) + projection(value)) + projection(channels)
    ends = (2 * channels * 9 + channels) + 2 * channels + (channels * 4 * 9 + 4)
    assert size(network) == 6 * (2 * path + attention) + ends
    assert size(network) == pytest.approx(14.43e6, rel=1e-3)


@pytest.mark.parametrize("cls", SYSTEMS)
@pytest.mark.parametrize(("preset", "tiger"), [("small", 102_116), ("small-8k", 71_939)])
def test_small_presets_are_as_large_as_tigers(cls, preset, tiger):
    assert cls.from_preset(preset).parameter_count() == pytest.approx(tiger, rel=0.1)


def test_macs_of_tf_gridnet_by_hand():
    """LSTMs and transposed convolutions of one block, which are nearly all of it."""
    frames, bins = 16, 257
    step = 2 * 4 * 256 * (256 + 256) + 512 * 64 * 4
    steps = frames * (bins - 3) + bins * (frames - 3)
    with torch.device("meta"):
        network = TFGridNet(blocks=1, n_fft=512, hop_length=128)
    counted = count_macs(network, torch.empty(1, 2000))
    assert counted == pytest.approx(step * steps, rel=0.02)


# ---- against other formulations ----------------------------------------------------------------


def test_conv_tasnet_sees_every_sample_in_two_frames():
    """With masks of one and a basis of signed unit vectors, what goes in comes out."""
    network = ConvTasNet(filters=8, kernel=4, bottleneck=4, hidden=4, blocks=1, repeats=1)
    identity = torch.cat([torch.eye(4), -torch.eye(4)])[:, None]  # x = relu(x) - relu(-x)
    network.encoder.weight.data = identity
    network.decoder.weight.data = identity / 2
    torch.nn.init.zeros_(network.mask.weight)
    torch.nn.init.ones_(network.mask.bias)
    for length in (1, 2, 7, 100, 101):
        x = torch.randn(2, length)
        torch.testing.assert_close(network(x), x[:, None].expand(2, 2, length))


def test_conv_tasnets_block():
    torch.manual_seed(0)
    block = Block(3, 5, taps=3, dilation=2)
    y = torch.randn(1, 3, 11)
    w = {name: p.detach() for name, p in block.named_parameters()}

    def norm(x, name):
        x = (x - x.mean()) / (x.var(correction=0) + 1e-8).sqrt()
        return x * w[f"{name}.weight"][:, None] + w[f"{name}.bias"][:, None]

    h = w["inside.0.weight"][..., 0] @ y[0] + w["inside.0.bias"][:, None]
    h = norm(torch.where(h > 0, h, h * w["inside.1.weight"]), "inside.2")
    padded = F.pad(h, (2, 2))
    taps = w["inside.3.weight"][:, 0]
    h = sum(taps[:, j, None] * padded[:, 2 * j : 2 * j + 11] for j in range(3))
    h = h + w["inside.3.bias"][:, None]
    h = norm(torch.where(h > 0, h, h * w["inside.4.weight"]), "inside.5")
    onwards = y[0] + w["onwards.weight"][..., 0] @ h + w["onwards.bias"][:, None]
    skip = w["skip.weight"][..., 0] @ h + w["skip.bias"][:, None]
    found = block(y)
    torch.testing.assert_close(found[0][0], onwards, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1][0], skip, atol=1e-5, rtol=0)


def lstm_by_hand(rnn: torch.nn.LSTM, x: torch.Tensor) -> torch.Tensor:
    """x [S, C] -> [S, 2 H], step by step."""
    out = []
    for suffix, steps in (("", range(len(x))), ("_reverse", reversed(range(len(x))))):
        w = {n: getattr(rnn, f"{n}_l0{suffix}") for n in
             ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        h = c = torch.zeros(rnn.hidden_size)
        states = {}
        for s in steps:
            gates = w["weight_ih"] @ x[s] + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"]
            i, f, g, o = gates.chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states[s] = h
        out.append(torch.stack([states[s] for s in range(len(x))]))
    return torch.cat(out, 1)


def test_bsrnns_path_runs_along_the_third_axis():
    torch.manual_seed(0)
    path = RecurrentPath(4, 3)
    z = torch.randn(2, 3, 6, 4)
    found = path(z)
    for b in range(2):
        for a in range(3):
            one = z[b, a]
            normed = (one - one.mean()) / (one.var(correction=0) + 1.19e-7).sqrt()
            expected = one + path.out(lstm_by_hand(path.rnn, normed))
            torch.testing.assert_close(found[b, a], expected, atol=1e-5, rtol=0)


def test_bsrnns_talkers_sum_to_the_mixture():
    x = torch.randn(2, 3001)
    network = BSRNN(channels=6, hidden=4, layers=1, sample_rate=8000, n_fft=256, hop_length=64)
    assert (network(x).sum(1) - x).abs().max() < 1e-5


@pytest.mark.parametrize(("length", "hop"), [(9, 1), (10, 2), (3, 1), (9, 3)])
def test_tf_gridnets_recurrence_sees_neighbours(length, hop):
    torch.manual_seed(0)
    path = UnfoldedRNN(3, 2, kernel=4, hop=hop)
    z = torch.randn(1, 2, length, 3)
    steps = max(0, -(-(length - 4) // hop)) + 1
    for a in range(2):
        normed = F.pad(F.layer_norm(z[0, a], (3,), eps=1e-5), (0, 0, 0, 4 + steps * hop))
        seen = torch.stack([normed[s * hop : s * hop + 4].t().flatten() for s in range(steps)])
        states = lstm_by_hand(path.rnn, seen)
        out = torch.zeros(4 + steps * hop, 3)
        for s in range(steps):
            out[s * hop : s * hop + 4] += torch.einsum("h,hck->kc", states[s], path.out.weight)
        expected = z[0, a] + out[:length] + path.out.bias
        torch.testing.assert_close(path(z)[0, a], expected, atol=1e-5, rtol=0)


def test_tf_gridnets_attention():
    torch.manual_seed(0)
    attention = FrameAttention(4, heads=2, width=3, bins=5)
    z = torch.randn(1, 4, 6, 5)

    def project(module, x):
        y = torch.einsum("oc,ctf->otf", module.matrix.weight[..., 0, 0], x)
        y = y + module.matrix.bias[:, None, None]
        y = torch.where(y > 0, y, y * module.act.weight)
        mean = y.mean((0, 2), keepdim=True)
        spread = ((y - mean).square().mean((0, 2), keepdim=True) + 1e-5).sqrt()
        return (y - mean) / spread * module.gain + module.bias

    heads = []
    for h in range(2):
        q, k, v = (
            project(m[h], z[0]) for m in (attention.queries, attention.keys, attention.values)
        )
        scores = torch.einsum("ctf,csf->ts", q, k) / 15**0.5
        heads.append(torch.einsum("ts,csf->ctf", scores.softmax(-1), v))
    expected = z[0] + project(attention.out[0], torch.cat(heads))
    torch.testing.assert_close(attention(z)[0], expected, atol=1e-5, rtol=0)


def test_tf_gridnet_scales_with_its_input():
    torch.manual_seed(0)
    network = TFGridNet(channels=8, hidden=4, blocks=1, n_fft=64, hop_length=32, query=16).eval()
    x = torch.randn(1, 1000)
    torch.testing.assert_close(network(100 * x), 100 * network(x), rtol=1e-3, atol=1e-3)


# ---- limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", SYSTEMS)
@pytest.mark.parametrize("length", [1, 50, 4001])
def test_any_length(cls, length):
    system = cls.from_preset("smoke")
    found = system.separate(torch.randn(length), sample_rate=8000)
    assert found.shape == (2, length)
    assert found.isfinite().all()


@pytest.mark.parametrize("cls", SYSTEMS)
def test_silence_gives_finite_numbers(cls):
    found = cls.from_preset("smoke").separate(torch.zeros(2000), sample_rate=8000)
    assert found.isfinite().all()


@pytest.mark.parametrize(("cls", "wrong"), [
    (ConvTasNetSeparator, {"kernel": 15}), (ConvTasNetSeparator, {"taps": 4}),
    (BSRNNSeparator, {"channels": 13}), (BSRNNSeparator, {"hop_length": 200}),
    (TFGridNetSeparator, {"channels": 6}), (TFGridNetSeparator, {"hop": 5}),
    (TFGridNetSeparator, {"hop_length": 200}),
])
def test_sizes_that_do_not_fit(cls, wrong):
    with pytest.raises(ConfigError):
        cls.from_preset("smoke", **wrong)


def test_modules_refuse_other_shapes():
    for network in (
        ConvTasNet(filters=4, bottleneck=4, hidden=4, blocks=1, repeats=1),
        BSRNN(channels=4, hidden=4, layers=1),
        TFGridNet(channels=4, hidden=4, blocks=1),
    ):
        for x in (torch.zeros(100), torch.zeros(1, 0)):
            with pytest.raises(DataError):
                network(x)
