"""The up-sampling network against a plain formulation, its reach against gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from passband.errors import ConfigError
from passband.parts.mel_upsampler import (
    LARGE,
    LIGHT,
    Blocks,
    Upsampler,
    check_stages,
    fused,
    usual_kernels,
)
from passband.parts.reach import Reach


def small(blocks=LARGE, rates=(4, 2), **more):
    torch.manual_seed(0)
    net = Upsampler(5, 16, rates, usual_kernels(rates), 3, blocks, **more)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith(("original0", "bias")):  # lengths and biases that matter
                p.uniform_(0.5, 1.5)
    return net.double()


def convolved(x, conv):
    """A convolution as a sum over taps, with the weight put together from its two parts."""
    parts = conv.parametrizations.weight
    g, v = parts.original0, parts.original1
    weight = g * v / v.flatten(1).norm(dim=1).view_as(g)
    k, d, p, length = conv.kernel_size[0], conv.dilation[0], conv.padding[0], x.shape[-1]
    x = F.pad(x, (p, p))
    out = sum(
        torch.einsum("oi,bit->bot", weight[:, :, j], x[..., j * d : j * d + length])
        for j in range(k)
    )
    return out + conv.bias[:, None]


def upsampled(x, up):
    """A transposed convolution as a plain one of the input with zeros between its samples."""
    parts = up.parametrizations.weight
    g, v = parts.original0, parts.original1
    weight = g * v / v.flatten(1).norm(dim=1).view_as(g)
    u, k, p = up.stride[0], up.kernel_size[0], up.padding[0]
    spread = x.new_zeros(*x.shape[:2], (x.shape[-1] - 1) * u + 1)
    spread[..., ::u] = x
    spread = F.pad(spread, (k - 1 - p,) * 2)
    return F.conv1d(spread, weight.flip(-1).transpose(0, 1)) + up.bias[:, None]


def lrelu(x, slope=0.1):
    return torch.where(x > 0, x, slope * x)


@pytest.mark.parametrize("blocks", [LARGE, LIGHT], ids=["large", "light"])
@pytest.mark.parametrize("lead", [0, 1])
def test_forward_against_sums_over_taps(blocks, lead):
    net = small(blocks, lead=lead)
    mel = torch.randn(2, 5, 9, dtype=torch.float64)
    x = convolved(mel, net.conv_pre)
    for i, up in enumerate(net.ups):
        x = upsampled(lrelu(x), up)
        outs = []
        for block in net.resblocks[3 * i : 3 * i + 3]:
            y = x
            if blocks.kind == 1:
                for a, b in zip(block.convs1, block.convs2, strict=True):
                    y = y + convolved(lrelu(convolved(lrelu(y), a)), b)
            else:
                for a in block.convs:
                    y = y + convolved(lrelu(y), a)
            outs.append(y)
        x = sum(outs) / 3
    x = lrelu(x, 0.01)
    if lead:
        x = torch.cat([x[..., 1:2], x], -1)
    expected = convolved(x, net.conv_post)
    found = net(mel)
    assert found.shape == (2, 3, 9 * 8 + lead)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("blocks", [LARGE, LIGHT], ids=["large", "light"])
def test_gradients_are_those_of_finite_differences(blocks):
    """Operations in place must not reach what a gradient needs."""
    net = Upsampler(2, 4, (2,), (4,), 1, Blocks(blocks.kind, (3,), ((1, 2),))).double()
    mel = torch.randn(1, 2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, (mel,))


def test_fused_gives_the_same_and_leaves_the_original_alone():
    net = small()
    mel = torch.randn(1, 5, 12, dtype=torch.float64)
    plain = fused(net)
    torch.testing.assert_close(plain(mel), net(mel), rtol=1e-12, atol=1e-12)
    lengths = sum(p.numel() for n, p in net.named_parameters() if n.endswith("original0"))
    count = sum(p.numel() for p in net.parameters())
    assert sum(p.numel() for p in plain.parameters()) == count - lengths
    assert "conv_pre.weight" not in net.state_dict()
    again = net(mel)  # torch's own removal would have broken it
    torch.testing.assert_close(plain(mel), again, rtol=1e-12, atol=1e-12)
    assert not any(p.data_ptr() == q.data_ptr() for p in plain.parameters()
                   for q in net.parameters())


def reached(net, mel, samples):
    """First and last frame that the gradient of some outputs arrives at."""
    out = net(mel)
    (gradient,) = torch.autograd.grad(out[..., samples].sum(), mel)
    frames = gradient.abs().sum((0, 1)).nonzero().flatten()
    return int(frames[0]), int(frames[-1])


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("rates", [(4, 2), (3,), (1, 2), (5, 1)], ids=str)
@pytest.mark.parametrize("blocks", [LARGE, LIGHT], ids=["large", "light"])
def test_the_reach_is_where_gradients_arrive(rates, blocks, lead):
    net = small(blocks, rates, lead=lead)
    frames, middle, rate = 401, 200, net.rate
    mel = torch.randn(1, 5, frames, dtype=torch.float64, requires_grad=True)
    for first, last in [(0, rate - 1), (0, 0), (rate // 2, rate + 1)]:
        inside = slice(middle * rate + first, middle * rate + last + 1)
        low, high = net.reach().inputs(first, last)
        assert reached(net, mel, inside) == (middle + low, middle + high)
    before, after = net.context(rate)
    assert reached(net, mel, slice(middle * rate, (middle + 1) * rate)) == (
        middle - before, middle + after
    )


def test_reach_of_single_layers():
    assert Reach.convolution(3, 1, dilation=5).inputs(0, 0) == (-1, 9)  # as padded, not "same"
    assert Reach.convolution(3, 5, dilation=5).inputs(7, 9) == (2, 14)
    assert Reach.shift(1).inputs(4, 4) == (3, 3)
    assert Reach.transposed(4, 4, 0).inputs(0, 3) == (0, 0)
    wide = Reach.widest([Reach.convolution(3, 1), Reach.convolution(7, 3)])
    assert wide.context(1) == (3, 3)


def test_initialisation():
    normal = Upsampler(80, 256, (8, 8), (16, 16), 18, initial="normal")
    plain = fused(normal).requires_grad_(False)
    for layer in (*plain.ups, plain.conv_post, plain.resblocks[2].convs1[0]):
        weight = layer.weight
        assert float(weight.std()) == pytest.approx(0.01, rel=0.05)
        assert abs(float(weight.mean())) < 1e-3
    assert float(plain.conv_pre.weight.std()) == pytest.approx((3 * 80 * 7) ** -0.5, rel=0.05)


@pytest.mark.parametrize(("arguments", "text"), [
    ((64, (8, 8), (16,)), "2 rates and 1 kernels"),
    ((64, (), ()), "0 rates"),
    ((64, (8,), (7,)), "kernel of 7 for the rate 8"),
    ((64, (8,), (15,)), "take 16"),
    ((64, (5,), (10,)), "take 11"),
    ((6, (8, 8), (16, 16)), "multiple of 4"),
])
def test_stages_that_cannot_be_built(arguments, text):
    with pytest.raises(ConfigError, match=text):
        check_stages(*arguments)
