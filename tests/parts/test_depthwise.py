"""Depthwise convolution with channels last against torch's with channels first."""

import pytest
import torch
from torch.nn import functional as F

from passband.errors import ConfigError, DataError
from passband.parts.depthwise import DepthwiseConv, depthwise


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain(x, weight, bias, stride, padding, dilation):
    y = F.pad(x.transpose(-1, -2), padding)
    y = F.conv1d(
        y.reshape(-1, *y.shape[-2:]), weight.t()[:, None], bias, stride, 0, dilation, x.shape[-1]
    )
    return y.transpose(-1, -2).reshape(*x.shape[:-2], -1, x.shape[-1])


CASES = [
    # k, stride, padding, what None stands for, dilation
    (5, 1, None, (2, 2), 1), (5, 2, None, (2, 2), 1), (5, 3, 2, (2, 2), 1), (1, 1, None, (0, 0), 1),
    (1, 2, 0, (0, 0), 1), (20, 1, (19, 0), (19, 0), 1), (4, 1, None, (1, 2), 1),
    (3, 1, None, (4, 4), 4), (3, 2, (5, 1), (5, 1), 3), (7, 1, 0, (0, 0), 1),
    (31, 1, None, (15, 15), 1),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(2, 3, 23, 16), (1, 23, 5), (23, 1), (90, 24, 130)])
def test_against_conv1d(case, shape):
    k, stride, padding, zeros, dilation = case
    x, weight, bias = normal(*shape), normal(k, shape[-1], seed=1), normal(shape[-1], seed=2)
    ours = [t.clone().requires_grad_() for t in (x, weight, bias)]
    theirs = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = depthwise(*ours, stride=stride, padding=padding, dilation=dilation)
    expected = plain(*theirs, stride, zeros, dilation)
    assert y.shape == expected.shape
    assert torch.allclose(y, expected, atol=1e-5)
    if padding is None and stride > 1:
        assert y.shape[-2] == -(-shape[-2] // stride)
    g = normal(*y.shape, seed=3)
    y.backward(g)
    expected.backward(g)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-4, rtol=1e-3)


def test_gradients_in_double_precision():
    arguments = [
        normal(*s, dtype=torch.float64).requires_grad_() for s in ((2, 9, 3), (3, 3), (3,))
    ]
    for stride, padding in ((1, None), (2, (2, 0)), (3, 1)):
        assert torch.autograd.gradcheck(
            lambda *a, s=stride, p=padding: depthwise(*a, stride=s, padding=p), arguments
        )


def test_other_layouts_and_no_bias():
    x = normal(4, 16, 23)
    weight = normal(5, 16)
    expected = plain(x.transpose(1, 2), weight, None, 1, (2, 2), 1)
    assert torch.allclose(depthwise(x.transpose(1, 2), weight), expected, atol=1e-5)
    frozen = weight.clone()
    y = depthwise(x.transpose(1, 2).requires_grad_(), frozen)
    y.sum().backward()
    assert frozen.grad is None


def test_module():
    torch.manual_seed(0)
    layer = DepthwiseConv(16, 5, stride=2)
    assert layer.weight.abs().max() <= 1 / 5**0.5
    x = normal(2, 67, 16)
    assert torch.equal(layer(x), depthwise(x, layer.weight, layer.bias, stride=2))
    assert DepthwiseConv(16, 5, bias=False).bias is None


def test_what_is_refused():
    with pytest.raises(DataError, match="weight"):
        depthwise(normal(2, 10, 3), normal(5, 4))
    with pytest.raises(DataError, match="more than 6"):
        depthwise(normal(2, 6, 3), normal(7, 3), padding=0)
    with pytest.raises(ConfigError, match="stride 0"):
        DepthwiseConv(3, 5, stride=0)
