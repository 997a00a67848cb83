"""Initialisers, the sum over a model, what it is compared with."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from passband.dynamics.orth_cnn.alternatives import (
    dense_orthogonality,
    kernel_orthogonality,
    orthogonal_kernel_,
    spectral_excess,
    spectral_kernel_,
)
from passband.dynamics.orth_cnn.existence import NoOrthogonalLayerError
from passband.dynamics.orth_cnn.initialisers import (
    block_orthogonal_,
    delta_orthogonal_,
    taps_of,
)
from passband.dynamics.orth_cnn.model import lorth
from passband.dynamics.orth_cnn.regularizer import OrthRegularizer, convolutions
from passband.dynamics.orth_cnn.singular_values import spread
from passband.errors import ConfigError, DataError, PassbandWarning

# (shape, stride, groups, dilation): rows, columns and squares, folded and not.
SHAPES = (
    ((4, 8, 3, 3), 1, 1, 1), ((8, 4, 3, 3), 1, 1, 1), ((6, 3, 3, 3), 2, 1, 1),
    ((20, 4, 3, 3), 2, 1, 1), ((18, 2, 3, 3), 4, 1, 1), ((6, 3, 4, 2), (2, 1), 2, 1),
    ((5, 2, 4), 1, 1, 2), ((4, 2, 2, 2, 2), 1, 1, 1), ((8, 1, 3, 3), 1, 8, 1),
    ((9, 2, 3), 2, 1, 3),
)


@pytest.mark.parametrize("fill", [delta_orthogonal_, block_orthogonal_])
@pytest.mark.parametrize(("shape", "stride", "groups", "dilation"), SHAPES)
def test_initialisers_are_orthogonal(fill, shape, stride, groups, dilation) -> None:
    weight = torch.empty(shape, dtype=torch.float64)
    assert fill(weight, stride, groups, dilation=dilation) is weight
    assert float(lorth(weight, stride, groups, dilation=dilation, method="conv").abs()) < 1e-12
    size = tuple(12 for _ in shape[2:])
    ends = spread(weight, stride, size, groups, dilation=dilation)
    assert ends.sigma_min == pytest.approx(1, abs=1e-9)
    assert ends.sigma_max == pytest.approx(1, abs=1e-9)


def test_initialisers_in_detail() -> None:
    weight = torch.empty(4, 8, 3, 3)
    assert taps_of(delta_orthogonal_(weight, gain=2.0))[4] == 1
    assert float(weight.square().sum()) == pytest.approx(4 * 2.0**2, rel=1e-5)
    assert min(taps_of(block_orthogonal_(weight))) > 1e-3  # every tap has its part
    draws = [
        delta_orthogonal_(torch.empty(4, 4, 3), generator=torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    for fill in (delta_orthogonal_, block_orthogonal_):
        with pytest.raises(NoOrthogonalLayerError, match="M = 19 > C x 3 x 3 = 18"):
            fill(torch.empty(19, 2, 3, 3), 4)
        with pytest.raises(DataError):
            fill(torch.zeros(4, 4, 3, dtype=torch.int64))


# ---- the sum over a model ------------------------------------------------------------------------


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.Conv2d(12, 20, 3, stride=2, groups=4),
        nn.Sequential(nn.Conv2d(20, 30, 3), nn.ConvTranspose2d(30, 7, 4, stride=2)),
        nn.Conv2d(8, 12, 3), nn.Linear(5, 3),
    )


def test_the_sum_over_layers() -> None:
    net = model()
    names = [layer.name for layer in convolutions(net)]
    assert names == ["0", "1", "2", "3.0", "3.1", "4"]
    values = {
        "0": lorth(net[0].weight), "1": lorth(net[1].weight), "4": lorth(net[4].weight),
        "2": lorth(net[2].weight, 2, 4), "3.0": lorth(net[3][0].weight),
        "3.1": lorth(net[3][1].weight, 2),
    }
    everything = OrthRegularizer(net, 0.5, skip_first=False, dense=True)
    expected = sum(map(float, values.values())) + float(dense_orthogonality(net[5].weight))
    assert float(everything()) == pytest.approx(0.5 * expected, rel=1e-5)
    assert everything.values() == pytest.approx(
        {n: float(v) for n, v in values.items()} | {"5": float(dense_orthogonality(net[5].weight))},
        rel=1e-5,
    )
    assert set(OrthRegularizer(net).values()) == set(names[1:])
    assert set(OrthRegularizer(net, include=r"^3\.").values()) == {"3.0", "3.1"}
    chosen = OrthRegularizer(net, include=lambda name, m: m.stride == (2, 2))
    assert set(chosen.values()) == {"2", "3.1"}
    everything().backward()
    assert all(m.weight.grad is not None for m in (net[0], net[3][1], net[5]))
    assert net[0].bias.grad is None


def test_warm_up_and_every_other_step() -> None:
    net = model()
    full = float(OrthRegularizer(net, 1.0)())
    regularizer = OrthRegularizer(net, 1.0, warmup=0.5, every=2)
    regularizer.at(0.25)
    assert float(regularizer()) == pytest.approx(full, rel=1e-5)  # half of lam, twice the weight
    assert float(regularizer()) == 0
    saved = regularizer.state_dict()
    again = OrthRegularizer(net, 1.0, every=2)
    again.load_state_dict(saved)
    assert float(again()) == pytest.approx(2 * full, rel=1e-5)
    assert float(OrthRegularizer(net, 0.0)()) == 0


def test_layers_that_cannot_be_orthogonal() -> None:
    bad = nn.Sequential(nn.Conv2d(2, 19, 3, stride=4))
    with pytest.raises(NoOrthogonalLayerError, match=r"(?s)^0: .*M = 19 > C x 3 x 3 = 18"):
        OrthRegularizer(bad, skip_first=False)
    with pytest.warns(PassbandWarning, match="ends at 1"):
        OrthRegularizer(bad, skip_first=False, impossible="warn")
    assert float(OrthRegularizer(bad, skip_first=False, impossible="ignore")()) > 0
    square = nn.Conv2d(4, 4, 3)
    with pytest.warns(PassbandWarning, match="One more channel"):
        OrthRegularizer(square, skip_first=False)
    OrthRegularizer(square, skip_first=False, square="ignore")
    OrthRegularizer(nn.Conv2d(4, 4, 1), skip_first=False)  # a dense layer's landscape


def test_bad_input() -> None:
    net = model()
    for options in ({"lam": -1.0}, {"lam": math.nan}, {"every": 0}, {"warmup": 2.0},
                    {"penalty": "none"}):
        with pytest.raises(ConfigError):
            OrthRegularizer(net, **options)
    with pytest.raises(DataError, match="no layer"):
        OrthRegularizer(nn.Linear(2, 2))
    with pytest.raises(DataError, match="no layer"):
        OrthRegularizer(net, include="nothing")


# ---- what it is compared with --------------------------------------------------------------------


def test_penalties_of_the_kernels_matrix() -> None:
    weight = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    sigma = torch.linalg.svdvals(weight.view(4, 18))
    expected = float((sigma.square() - 1).square().sum())
    assert float(kernel_orthogonality(weight)) == pytest.approx(expected)
    assert float(dense_orthogonality(weight.view(4, 18).T)) == pytest.approx(expected)
    assert float(spectral_excess(weight)) == pytest.approx(float((sigma[0] - 1) ** 2))
    net = nn.Sequential(nn.Conv2d(2, 4, 3))
    for penalty, function in (("kernel", kernel_orthogonality), ("spectral", spectral_excess)):
        found = OrthRegularizer(net, 1.0, penalty=penalty, skip_first=False)()
        assert float(found) == pytest.approx(float(function(net[0].weight)), rel=1e-6)


def test_parametrisations() -> None:
    for hold, penalty in ((orthogonal_kernel_, kernel_orthogonality),
                          (spectral_kernel_, spectral_excess)):
        layer = hold(nn.Conv2d(4, 6, 3))
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            layer(torch.ones(1, 4, 3, 3)).square().sum().backward()
            optimizer.step()
        layer.eval()
        assert float(penalty(layer.weight)) < 1e-3
        assert layer.weight.shape == (6, 4, 3, 3)
