"""Complex layers against torch's operations on complex numbers."""

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from passband.errors import DataError
from passband.parts.complex_layers import (
    GAUSS,
    ComplexConv2d,
    ComplexConvTranspose2d,
    ComplexLinear,
    PartsBatchNorm2d,
    WhiteningBatchNorm2d,
    complex_of_two,
    complex_product,
    to_complex,
    to_parts,
)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def in_complex(layer, z, operation):
    """The layer's map in complex arithmetic, channels on axis 1 (-1 for linear)."""
    weight = torch.complex(layer.real.weight, layer.imaginary.weight)
    y = operation(to_complex(z), weight)
    if layer.real.bias is None:
        return y
    a, b = layer.real.bias, layer.imaginary.bias
    bias = torch.complex(a - b, a + b)
    return y + (bias if isinstance(layer, ComplexLinear) else bias[:, None, None])


CONVOLUTIONS = [
    {"kernel_size": (5, 2), "stride": (2, 1), "padding": (0, 1)},
    {"kernel_size": 3, "padding": 1, "dilation": 2, "bias": False},
    {"kernel_size": (5, 2), "stride": (2, 1), "groups": 2},
]


@pytest.mark.parametrize("channels", [(4, 6), (32, 34), (2, 40), (40, 2)])
@pytest.mark.parametrize("options", CONVOLUTIONS)
@pytest.mark.parametrize("kind", [ComplexConv2d, ComplexConvTranspose2d])
def test_convolutions(channels, options, kind):
    torch.manual_seed(0)
    layer = kind(*channels, **options).double()
    z = normal(2, 3, channels[0], 15, 8)
    like = layer.real
    operation = {
        ComplexConv2d: lambda x, w: F.conv2d(
            x, w, None, like.stride, like.padding, like.dilation, like.groups),
        ComplexConvTranspose2d: lambda x, w: F.conv_transpose2d(
            x, w, None, like.stride, like.padding, 0, like.groups, like.dilation),
    }[kind]
    compare(layer, z, operation)


@pytest.mark.parametrize("sizes", [(4, 6), (36, 40), (2, 40)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(sizes, bias):
    torch.manual_seed(0)
    layer = ComplexLinear(*sizes, bias).double()
    compare(layer, normal(2, 3, 5, sizes[0]), F.linear)


def compare(layer, z, operation):
    z = z.requires_grad_()
    y, expected = to_complex(layer(z)), in_complex(layer, z, operation)
    assert y.shape == expected.shape
    assert torch.allclose(y, expected, atol=1e-10)
    inputs = [z, *layer.parameters()]
    weight = torch.complex(normal(*y.shape), normal(*y.shape, seed=1))
    ours = torch.autograd.grad((y * weight).real.sum(), inputs)
    theirs = torch.autograd.grad((expected * weight).real.sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_both_forms_are_covered_and_single_precision_is_enough():
    assert 6 < GAUSS <= 32
    torch.manual_seed(0)
    layer = ComplexConv2d(64, 64, (5, 2), (2, 1), (0, 1))
    z = normal(2, 2, 64, 40, 20, dtype=torch.float32)
    exact = copy.deepcopy(layer).double()(z.double())
    assert (layer(z) - exact).abs().max() < 5e-6 * exact.abs().max()


def test_a_quarter_fewer_products_forward_and_backward():
    layer = ComplexConv2d(32, 32, (5, 2), (2, 1), bias=False)
    z = normal(2, 2, 32, 40, 20, dtype=torch.float32).requires_grad_()

    def flops(f):
        with FlopCounterMode(display=False) as counter:
            f().sum().backward()
        return counter.get_total_flops()

    def four():
        convolve = layer.product
        a, b = layer.real.weight, layer.imaginary.weight
        return torch.stack([
            convolve(z[0], a, None) - convolve(z[1], b, None),
            convolve(z[1], a, None) + convolve(z[0], b, None),
        ])

    assert torch.allclose(four(), layer(z), atol=1e-5)
    assert flops(lambda: layer(z)) == pytest.approx(0.75 * flops(four), rel=1e-3)


def test_products_and_pairs():
    x, y = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    assert torch.allclose(to_complex(complex_product(x, y)), to_complex(x) * to_complex(y))
    z = torch.complex(x[0], x[1])
    assert torch.equal(to_complex(to_parts(z)), z)
    a, b = torch.tanh, torch.relu
    expected = torch.complex(a(x[0]) - b(x[1]), a(x[1]) + b(x[0]))
    assert torch.equal(to_complex(complex_of_two(a, b, x)), expected)


def test_norm_by_parts():
    norm, plain = PartsBatchNorm2d(3).double(), torch.nn.BatchNorm2d(3).double()
    z = normal(2, 4, 3, 10, 5) * 3 + 1
    assert torch.allclose(norm(z)[0], plain(z[0]))
    norm.eval()
    assert torch.allclose(norm(z)[1], (z[1] - 0.1 * z[1].mean((0, 2, 3))[:, None, None]) / (
        (0.9 + 0.1 * z[1].var((0, 2, 3)))[:, None, None] + 1e-5).sqrt())


def correlated():
    u, v = normal(2, 6, 3, 20, 10)
    return torch.stack([2 * u + 1, 0.8 * u + 0.5 * v - 2])


def test_whitening_against_an_eigendecomposition():
    norm = WhiteningBatchNorm2d(3, eps=1e-9).double()
    torch.nn.init.normal_(norm.gain)
    torch.nn.init.normal_(norm.bias)
    z = correlated()
    y = norm(z)
    for c in range(3):
        points = z[:, :, c].reshape(2, -1)
        centred = points - points.mean(1, keepdim=True)
        values, vectors = torch.linalg.eigh(centred @ centred.T / centred.shape[1])
        white = vectors @ torch.diag(values**-0.5) @ vectors.T @ centred
        rr, ii, ri = norm.gain[:, c]
        expected = torch.stack([torch.stack([rr, ri]), torch.stack([ri, ii])]) @ white
        expected = expected + norm.bias[:, c, None]
        assert torch.allclose(y[:, :, c].reshape(2, -1), expected, atol=1e-6)


def test_whitening_uses_running_statistics():
    norm = WhiteningBatchNorm2d(3, momentum=1.0).double()
    z = correlated()
    y = norm(z)
    norm.eval()
    assert torch.allclose(norm(z), y)
    assert {"running_mean", "running_covariance"} <= set(norm.state_dict())
    constant = torch.ones(2, 4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    WhiteningBatchNorm2d(3).double()(constant).sum().backward()
    assert constant.grad.isfinite().all()


def test_complex_numbers_are_refused():
    with pytest.raises(DataError, match="to_parts"):
        ComplexLinear(3, 3)(torch.zeros(2, 3, dtype=torch.complex64))
    with pytest.raises(DataError, match="imaginary"):
        ComplexLinear(3, 3)(torch.zeros(5, 3))
