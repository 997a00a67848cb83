"""The networks against the paper's formulas written out, and the closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from passband.data.modular import all_pairs, discrete_log_order, modular_dataset
from passband.dynamics.grok.encoder import TinyEncoder
from passband.dynamics.grok.model import BatchNorm, Layers, QuadraticMLP, analytic_weights
from passband.dynamics.grok.model import one_hot_mse as mse
from passband.dynamics.grok.neurons import gini, ipr, neuron_table
from passband.errors import ConfigError, DataError, PassbandWarning

PAIRS = all_pairs(11)
HOT = torch.cat([torch.eye(11)[PAIRS[:, 0]], torch.eye(11)[PAIRS[:, 1]]], 1)  # [121, 22]


# ---- the two-layer network -----------------------------------------------------------------------


@pytest.mark.parametrize("act", ["square", "relu"])
def test_look_ups_are_products_with_one_hots(act):
    """Values and gradients, against W phi([U V] x)."""
    model = QuadraticMLP(11, 40, act)
    w_in = torch.cat([model.u, model.v]).T.detach().requires_grad_()  # [N, 2p]
    w_out = model.w.T.detach().requires_grad_()
    hidden = HOT @ w_in.T
    expected = (hidden**2 if act == "square" else hidden.relu()) @ w_out.T
    torch.testing.assert_close(model(PAIRS), expected)
    labels = PAIRS.sum(1) % 11
    nn.functional.mse_loss(expected, torch.eye(11)[labels]).backward()
    mse(model(PAIRS), labels).backward()
    torch.testing.assert_close(torch.cat([model.u.grad, model.v.grad]), w_in.grad.T)
    torch.testing.assert_close(model.w.grad, w_out.grad.T)


def test_sizes_and_the_first_weights_are_the_paper_s():
    model = QuadraticMLP(97, 500)
    assert sum(w.numel() for w in model.parameters()) == 145_500
    for weights in model.parameters():
        assert float(weights.detach().std()) == pytest.approx(0.05, rel=0.02)
    data = modular_dataset(97)
    # Nothing is predicted at first: 1 / p.
    with torch.no_grad():
        assert float(mse(model(data.pairs), data.truth)) == pytest.approx(0.0103, abs=2e-4)


def test_weighted_loss_is_that_of_the_rows_that_count():
    scores, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    weights = torch.tensor([1.0, 1, 0, 1, 0, 0])
    some = [0, 1, 3]
    torch.testing.assert_close(mse(scores, labels, weights), mse(scores[some], labels[some]))


def test_dropout_comes_before_the_square():
    model = QuadraticMLP(11, 40, dropout=0.5).train()
    seen = []
    model.dropout.register_forward_hook(lambda *a: seen.append(a))
    torch.manual_seed(0)
    out = model(PAIRS)
    ((_, (given,), dropped),) = seen
    torch.testing.assert_close(given, model.inputs(PAIRS))
    torch.testing.assert_close(out, dropped**2 @ model.w)


@pytest.mark.parametrize("norm", ["bn", "ln"])
def test_norms_come_after_the_square(norm):
    model = QuadraticMLP(11, 40, norm=norm).train()
    hidden = model.inputs(PAIRS) ** 2
    reference = nn.BatchNorm1d(40) if norm == "bn" else nn.LayerNorm(40)
    torch.testing.assert_close(model(PAIRS), reference.train()(hidden) @ model.w)
    torch.testing.assert_close(model.eval()(PAIRS), reference.eval()(hidden) @ model.w)


def test_batch_norm_is_torch_s():
    ours, theirs = BatchNorm(7), nn.BatchNorm1d(7)
    for i in range(5):
        x = torch.randn(9, 7, generator=torch.Generator().manual_seed(i)) * (i + 1) + i
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_calibration_takes_the_pairs_statistics():
    model = QuadraticMLP(11, 40, norm="bn", momentum=None)
    trained = model.train()(PAIRS)
    assert not bool(model.norm.mean.any())  # no running averages
    model.calibrate(PAIRS)
    torch.testing.assert_close(model.eval()(PAIRS), trained)


def test_wrong_choices_are_named():
    with pytest.raises(ConfigError, match="act"):
        QuadraticMLP(11, 4, "cube")
    with pytest.raises(ConfigError, match="norm"):
        QuadraticMLP(11, 4, norm="group")
    with pytest.raises(DataError, match="neurons in"):
        Layers.of(torch.zeros(4, 22), torch.zeros(11, 5))
    with pytest.raises(DataError, match=r"\[4, 21\]"):
        Layers.of(torch.zeros(4, 21), torch.zeros(11, 4))


# ---- the transformer -----------------------------------------------------------------------------


@pytest.mark.parametrize(("s", "blocks"), [(0, 1), (1, 1), (1, 2)])
def test_the_encoder_against_torch_s_attention(s, blocks):
    """nn.MultiheadAttention scales by sqrt(d_head); what is missing goes into the queries."""
    model = TinyEncoder(11, 32, 4, blocks, s=s)
    x = model.tokens[PAIRS] + model.places
    for block in model.blocks:
        attention = nn.MultiheadAttention(32, 4, bias=False, batch_first=True)
        extra = math.sqrt(8) / 8 ** ((1 + s) / 2)
        rows = (block.query.weight * extra, block.key.weight, block.value.weight)
        attention.in_proj_weight.data = torch.cat(rows).detach()
        attention.out_proj.weight.data = block.out.weight.detach()
        x = x + attention(x, x, x)[0]
        x = x + (x @ block.up.weight.T).relu() @ block.down.weight.T
    expected = x[:, -1] @ model.head.weight.T * 32 ** (-(1 + s) / 2)
    torch.testing.assert_close(model(PAIRS), expected)


def test_the_encoder_s_size_and_start():
    model = TinyEncoder(97)
    counted = sum(p.numel() for n, p in model.named_parameters() if n not in ("tokens", "places"))
    assert counted == 209_024
    assert float(model.tokens.detach().std()) == pytest.approx(1.0, rel=0.05)
    assert float(model.head.weight.detach().std()) == pytest.approx(128**-0.5, rel=0.05)
    assert float(model.blocks[0].down.weight.detach().std()) == pytest.approx(512**-0.5, rel=0.05)
    with pytest.raises(ConfigError, match="heads"):
        TinyEncoder(11, 30, 4)


# ---- the closed form ---------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "neurons"), [(23, 256), (31, 256), (97, 200), (97, 500)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_analytic_network_knows_the_table(p, neurons, seed):
    model = analytic_weights(p, neurons, seed)
    pairs = all_pairs(p)
    with torch.no_grad():
        right = model(pairs).argmax(1) == pairs.sum(1) % p
    assert bool(right.all())
    table = neuron_table(model)
    assert float((table.ipr - 1).abs().max()) < 1e-6
    assert float(table.phase_error.abs().max()) < 1e-5
    frequencies = 1 + torch.arange(neurons) % ((p - 1) // 2)
    for found in (table.frequency_u, table.frequency_v, table.frequency_w):
        assert torch.equal(found, frequencies)


@pytest.mark.parametrize("p", [23, 31])
def test_the_analytic_network_multiplies(p):
    model = analytic_weights(p, 512, op="multiply")
    pairs = all_pairs(p)
    with torch.no_grad():
        assert torch.equal(model(pairs).argmax(1), pairs.prod(1) % p)
    waves = neuron_table(model, discrete_log_order(p)).ipr[:-1]  # the last one answers for zero
    assert float((waves - 1).abs().max()) < 1e-6


def test_too_few_neurons_are_warned_of():
    with pytest.warns(PassbandWarning, match="not exact"):
        analytic_weights(97, 90)


# ---- measures ------------------------------------------------------------------------------------


def plain_ipr(u: np.ndarray, r: float) -> float:
    """By a sum over frequencies, without an FFT."""
    n = np.arange(len(u))
    size = [abs(np.sum(u * np.exp(-2j * np.pi * k * n / len(u)))) for k in range(len(u) // 2 + 1)]
    share = np.array(size) ** 2 / np.sum(np.square(size))
    return float(np.sum(share**r))


@pytest.mark.parametrize("p", [11, 12])
@pytest.mark.parametrize("r", [2, 3])
def test_ipr_against_the_plain_sum(p, r):
    u = torch.randn(5, p, generator=torch.Generator().manual_seed(0))
    expected = [plain_ipr(row, r) for row in u.double().numpy()]
    np.testing.assert_allclose(ipr(u, r), expected, rtol=1e-9)
    np.testing.assert_allclose(ipr(u.T, r, dim=0), expected, rtol=1e-9)


def test_ipr_of_noise_of_waves_and_of_nothing():
    noise = ipr(torch.randn(4000, 97, generator=torch.Generator().manual_seed(0)))
    assert float(noise.mean()) == pytest.approx(0.040, abs=0.001)
    n = torch.arange(97)
    two = torch.cos(2 * torch.pi * 3 * n / 97) + torch.cos(2 * torch.pi * 7 * n / 97)
    assert float(ipr(two)) == pytest.approx(0.5, abs=1e-6)
    assert float(ipr(torch.ones(97))) == pytest.approx(1.0)  # the constant is a frequency
    assert float(ipr(torch.zeros(97))) == 0.0
    with pytest.raises(DataError, match="finite"):
        ipr(torch.full((97,), torch.nan))


def test_gini_against_all_differences():
    u = torch.randn(3, 11, generator=torch.Generator().manual_seed(1))
    size = np.abs(np.fft.rfft(u.numpy()))
    differences = np.abs(size[:, :, None] - size[:, None, :]).mean((1, 2))
    np.testing.assert_allclose(gini(u), differences / (2 * size.mean(1)), rtol=1e-6)


def test_a_neuron_s_frequencies_and_phases():
    n = torch.arange(31)
    wave = lambda s, phase: torch.cos(2 * torch.pi * s * n / 31 + phase)  # noqa: E731
    layers = Layers(
        torch.stack([wave(4, 1.0), wave(4, 3.0)]), torch.stack([wave(4, 0.5), wave(5, 0.0)]),
        torch.stack([wave(4, 1.2), wave(4, 0.0)], 1),
    )
    table = neuron_table(layers)
    assert table.frequency_u.tolist() == [4, 4]
    assert table.frequency_v.tolist() == [4, 5]
    assert float(table.phase_error[0]) == pytest.approx(0.3, abs=1e-5)
    assert math.isnan(float(table.phase_error[1]))
    row = table.rows()[1]
    assert row["neuron"] == 1
    assert not {"phase_error", "gain"} & row.keys()


def test_classes_that_are_no_residues_have_a_table_too():
    assert len(neuron_table(QuadraticMLP(11, 8, classes=3))) == 8
