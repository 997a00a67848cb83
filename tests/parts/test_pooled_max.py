"""Pooled maxima against the naive head: all logits, torch.max, ReLU."""

import math
import resource
import subprocess
import sys

import pytest
import torch

from passband.errors import DataError
from passband.parts.pooled_max import log_saturation, pooled_max


def _case(B=3, L=11, d=8, V=70, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(shape, generator=g, dtype=dtype).requires_grad_()
        for shape in ((B, L, d), (V, d), (V,))
    )
    lengths = torch.tensor([L, 4, 7, 1][:B])
    return hidden, weight, bias, torch.arange(L) < lengths[:, None]


def _naive(hidden, weight, bias, mask, floor=0.0):
    logits = hidden @ weight.T + bias
    logits = logits.masked_fill(~mask[..., None], -math.inf)
    return logits.max(1).values.clamp_min(floor)


@pytest.mark.parametrize("tile", [1, 16, 70, 4096])
@pytest.mark.parametrize("floor", [0.0, 1.5, -math.inf])
def test_values_and_gradients_equal_the_naive_head(tile, floor):
    hidden, weight, bias, mask = _case()
    inputs = (hidden, weight, bias)
    ours, naive = pooled_max(*inputs, mask, floor=floor, tile=tile), _naive(*inputs, mask, floor)
    torch.testing.assert_close(ours, naive, rtol=0, atol=1e-12)
    pull = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=ours.dtype)
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs, pull), torch.autograd.grad(naive, inputs, pull),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_gradient_passes_finite_differences_through_the_saturation():
    hidden, weight, bias, mask = _case(V=9)
    assert torch.autograd.gradcheck(
        lambda h, w, c: log_saturation(pooled_max(h, w, c, mask, tile=4), 2),
        (hidden, weight, bias),
    )


def test_holes_in_the_mask_are_left_out():
    hidden, weight, bias, mask = _case()
    mask = mask.clone()
    mask[0, 0] = mask[0, 5] = mask[2, 1] = False
    torch.testing.assert_close(
        pooled_max(hidden, weight, bias, mask), _naive(hidden, weight, bias, mask)
    )


def test_equals_the_published_form_mask_times_logits():
    """max_i log(1 + ReLU(m_i z_ij)), as SPLADE's code has it."""
    hidden, weight, bias, mask = _case()
    logits = (hidden @ weight.T + bias) * mask[..., None]
    theirs = torch.log1p(torch.relu(logits)).max(1).values
    torch.testing.assert_close(log_saturation(pooled_max(hidden, weight, bias, mask)), theirs)


def test_a_text_without_tokens_is_at_the_floor_and_has_no_gradient():
    hidden, weight, bias, mask = _case()
    mask = mask.clone()
    mask[1] = False
    out = pooled_max(hidden, weight, bias, mask)
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    (gradient,) = torch.autograd.grad(out.sum(), hidden)
    assert not gradient[1].any() and gradient[0].any()


def test_same_without_gradients_bias_or_mask():
    hidden, weight, _, _ = _case()
    with torch.no_grad():
        plain = pooled_max(hidden, weight)
    torch.testing.assert_close(plain, pooled_max(hidden, weight), rtol=0, atol=1e-12)
    torch.testing.assert_close(plain, (hidden @ weight.T).amax(1).relu())


def test_half_precision_under_autocast():
    hidden, weight, bias, mask = _case(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = pooled_max(hidden, weight, bias, mask)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert weight.grad.dtype == hidden.grad.dtype == torch.float32
    torch.testing.assert_close(
        out.float(), _naive(hidden, weight, bias, mask), atol=0.2, rtol=0.05
    )


@pytest.mark.parametrize("change", ["width", "bias", "mask", "flat"])
def test_shapes_that_do_not_fit(change):
    hidden, weight, bias, mask = _case()
    given = {
        "width": (hidden[..., :3], weight, bias, mask), "bias": (hidden, weight, bias[1:], mask),
        "mask": (hidden, weight, bias, mask[:, 1:]), "flat": (hidden[0], weight, bias, mask[0]),
    }[change]
    with pytest.raises(DataError):
        pooled_max(*given)


_PEAK = """
import resource, torch
torch.set_num_threads(1)
from passband.parts.pooled_max import pooled_max
h = torch.randn(16, 256, 32, requires_grad=True)
w = torch.randn(30_000, 32, requires_grad=True)
pooled_max(h[:1, :2], w[:8]).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pooled_max(h, w, floor=20.0).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux")
def test_memory_does_not_hold_the_logits():
    """B L V floats are 491 MB here; B V of values, places and gradients 8 MB."""
    assert resource.RUSAGE_SELF == 0
    out = subprocess.run(
        [sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True
    ).stdout
    assert int(out) < 100 * 1024
