"""Certificates of models against Jacobians, and what withdraws them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from passband.dynamics.attacks import pgd_l2
from passband.dynamics.orth_cnn.certify import certified_radii, certify
from passband.dynamics.orth_cnn.initialisers import delta_orthogonal_
from passband.dynamics.orth_cnn.lipschitz import constant_of
from passband.dynamics.orth_cnn.network import CircularNet, GroupSort, circular_
from passband.errors import ConfigError, DataError


def jacobian_norm(function, *shape: int) -> float:
    """Largest singular value of a linear function's matrix; its bias falls out."""
    size = int(torch.tensor(shape).prod())
    points = torch.eye(size, dtype=torch.float64).view(size, *shape)
    with torch.no_grad():
        matrix = (function(points) - function(torch.zeros_like(points))).flatten(1)
    return float(torch.linalg.matrix_norm(matrix, 2))


PADDINGS = ("zeros", "circular", "reflect", "replicate")


@pytest.mark.parametrize("mode", PADDINGS)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding", "groups"), [(3, 1, 1), (2, 1, 2), (3, 2, 1)])
def test_a_convolutions_constant_is_above_its_norm(mode, stride, kernel, padding, groups) -> None:
    torch.manual_seed(0)
    layer = nn.Conv1d(2, 4, kernel, stride, padding, groups=groups, padding_mode=mode).double()
    out = layer(torch.zeros(1, 2, 6, dtype=torch.float64))
    norm = jacobian_norm(layer, 2, 6)
    found = constant_of(layer, (1, 2, 6), out.shape)
    assert norm <= found * (1 + 1e-9)
    assert found <= 2.5 * norm
    if mode == "circular" and kernel == 3 and padding == 1 and stride != 3:
        assert found == pytest.approx(norm)  # the circular layer itself


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(2, 3, 3, 2, 1, 1), nn.ConvTranspose2d(2, 4, 2, 2, groups=2),
        nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(3),
        nn.Conv2d(2, 3, 3, padding="same", dilation=2), nn.Conv2d(2, 3, (1, 3), padding="valid"),
        nn.BatchNorm2d(2).eval(), nn.PixelUnshuffle(2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_constants_of_linear_layers(layer) -> None:
    layer = layer.double()
    if isinstance(layer, nn.BatchNorm2d):
        layer.running_var.copy_(torch.tensor([0.5, 3.0]))
        layer.weight.data.copy_(torch.tensor([1.0, -4.0]))
    with torch.no_grad():
        out = layer(torch.zeros(1, 2, 6, 6, dtype=torch.float64))
    norm = jacobian_norm(layer, 2, 6, 6)
    assert norm <= constant_of(layer, (1, 2, 6, 6), out.shape) * (1 + 1e-9)


@pytest.mark.parametrize(
    "layer",
    [nn.ReLU(), nn.LeakyReLU(3.0), nn.ELU(2.0), nn.PReLU(init=-2.0), nn.Sigmoid(), nn.GELU(),
     nn.SiLU(), nn.Tanh(), GroupSort(), nn.MaxPool2d(3, 2), nn.MaxPool2d(2)],
    ids=lambda layer: type(layer).__name__,
)
def test_constants_of_other_layers(layer) -> None:
    """No pair of nearby points is moved apart by more."""
    torch.manual_seed(0)
    x = 3 * torch.randn(200, 2, 5, 5)
    near = x + 1e-2 * torch.randn_like(x)
    with torch.no_grad():
        a, b = layer(x), layer(near)
    ratio = (a - b).flatten(1).norm(dim=1) / (x - near).flatten(1).norm(dim=1)
    assert float(ratio.max()) <= constant_of(layer, x.shape, a.shape) * 1.001


def chain() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), GroupSort(),
        nn.Conv2d(4, 6, 3, 2, padding=1, padding_mode="circular"), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(6 * 16, 5),
    )


def test_a_chain_has_the_product_as_its_constant() -> None:
    model = chain()
    found = certify(model, (1, 8, 8))
    x = torch.randn(1, 1, 8, 8)
    sizes = [row.size for row in found.convolutions]
    assert sizes == [(8, 8), (8, 8)]
    constants = [value for _, _, value in found.constants]
    assert found.lipschitz == pytest.approx(float(torch.tensor(constants).prod()), rel=1e-6)
    assert found.before_head == pytest.approx(found.lipschitz / constants[-1])
    jacobian = torch.autograd.functional.jacobian(model, x).view(5, 64)
    assert float(torch.linalg.matrix_norm(jacobian, 2)) <= found.lipschitz
    linear = jacobian_norm(circular_(nn.Sequential(model[0])).double(), 1, 8, 8)
    assert found.convolutions[0].sigma_max == pytest.approx(linear, rel=1e-6)
    assert found.product == pytest.approx(constants[0] * constants[2], rel=1e-6)
    assert model.training  # as it came


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
        self.late = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        return self.late(x + self.conv(x))


def test_what_breaks_the_chain_is_named() -> None:
    found = certify(Residual(), (2, 6, 6))
    assert found.lipschitz is None
    assert found.reasons == ("something happens between conv and late",)
    assert found.convolutions[0].valid
    normed = nn.Sequential(nn.Conv2d(2, 2, 3), nn.LayerNorm(4))
    assert "LayerNorm" in certify(normed, (2, 6, 6)).reasons[0]


def test_statements_that_do_not_hold_are_withdrawn() -> None:
    zeros = certify(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1)), (2, 8, 8)).convolutions[0]
    assert not zeros.valid
    assert "'zeros'" in zeros.notes[0]
    assert zeros.lipschitz >= zeros.sigma_max * (1 - 1e-9)  # of a larger grid
    small = certify(circular_(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1))), (2, 4, 4))
    assert "5 x 5" in small.convolutions[0].notes[0]
    plain = certify(nn.Sequential(nn.Conv2d(2, 9, 2, 2)), (2, 8, 8)).convolutions[0]
    assert plain.valid  # patches that don't overlap need no padding
    assert not plain.notes
    impossible = certify(nn.Sequential(nn.Conv2d(2, 30, 3, 4, groups=1)), (2, 8, 8))
    assert not impossible.convolutions[0].exists
    assert any("ends at" in note for note in impossible.convolutions[0].notes)


def test_parametrised_and_half_precision_layers() -> None:
    net = nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)))
    assert certify(net, (2, 6, 6)).convolutions[0].kind == "Conv2d"
    layer = circular_(nn.Conv2d(4, 8, 3, padding=1))
    delta_orthogonal_(layer.weight)
    row = certify(nn.Sequential(layer).bfloat16(), (4, 6, 6)).convolutions[0]
    assert row.sigma_max == pytest.approx(1, abs=0.02)


def test_bad_models() -> None:
    with pytest.raises(DataError, match="can't take"):
        certify(chain(), (3, 8, 8))
    with pytest.raises(DataError, match="no convolution"):
        certify(nn.Sequential(nn.Linear(3, 3)), (3,))
    broken = chain()
    with torch.no_grad():
        broken[2].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(DataError, match=r"2 has values"):
        certify(broken, (1, 8, 8))


def test_radii_are_safe() -> None:
    """The attack finds nothing within a radius, and something a little beyond a linear one's."""
    model = CircularNet((1, 8, 8), 4, channels=(4, 4), strides=(2, 1))
    found = certify(model, (1, 8, 8))
    x = torch.rand(20, 1, 8, 8)
    with torch.no_grad():
        logits = model(x)
    radii = certified_radii(logits, model.head.weight.detach(), found.before_head)
    eps = float(radii.min()) * 0.999
    moved = pgd_l2(model, x, logits.argmax(1), eps, steps=20)
    assert torch.equal(model(moved).argmax(1), logits.argmax(1))
    linear = nn.Linear(6, 3)
    points = torch.randn(10, 6)
    scores = linear(points).detach()
    exact = certified_radii(scores, linear.weight.detach(), 1.0)
    for i in range(10):
        moved = pgd_l2(linear, points[i:i + 1], scores[i:i + 1].argmax(1), float(exact[i]) * 1.2,
                       steps=50)
        assert int(linear(moved).argmax()) != int(scores[i].argmax())


def test_the_attack() -> None:
    linear = nn.Linear(2, 2)
    with pytest.raises(ConfigError):
        pgd_l2(linear, torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), eps=0)
    x = torch.rand(700, 2)
    y = linear(x).argmax(1)
    moved = pgd_l2(linear, x, y, 0.3, low=0.0, high=1.0)
    assert float((moved - x).norm(dim=1).max()) <= 0.3 + 1e-6
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    with torch.no_grad():
        before, after = (nn.functional.cross_entropy(linear(z), y) for z in (x, moved))
    assert after > before


def test_networks_that_cannot_be_built() -> None:
    for options in (
        {"channels": (3,), "strides": (1,)}, {"channels": (4, 4)}, {"kernel": 2},
        {"channels": (4,), "strides": (3,)}, {"channels": (4,), "strides": (8,), "kernel": 5},
    ):
        with pytest.raises(ConfigError):
            CircularNet((1, 8, 8), 10, **options)
    with pytest.raises(DataError):
        GroupSort()(torch.zeros(1, 3))
