"""The channels-last global norm against torch's group norm and numerical gradients."""

from __future__ import annotations

import pytest
import torch

from passband.parts.global_norm import GlobalNorm, global_norm


@pytest.mark.parametrize("shape", [(3, 7, 5), (1, 1, 4), (2, 3, 50, 6)])
def test_equal_to_group_norm(shape):
    generator = torch.Generator().manual_seed(0)
    x = 3 + 2 * torch.randn(shape, generator=generator)
    gain, bias = torch.randn(2, shape[-1], generator=generator)
    flat = x.reshape(-1, *shape[-2:]).transpose(1, 2)
    expected = torch.nn.functional.group_norm(flat, 1, gain, bias, 1e-8).transpose(1, 2)
    torch.testing.assert_close(
        global_norm(x, gain, bias), expected.reshape(shape), atol=2e-5, rtol=0
    )


def test_a_large_mean_costs_no_digits():
    x = 1000 + torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0))
    exact = x.double()
    exact = (exact - exact.mean((1, 2), keepdim=True)) / exact.var(
        (1, 2), correction=0, keepdim=True
    ).sqrt()
    assert (GlobalNorm(8)(x) - exact).abs().max() < 1e-3


def test_gradients():
    generator = torch.Generator().manual_seed(0)
    x, gain, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 5, 3), (3,), (3,))
    )
    assert torch.autograd.gradcheck(global_norm, (x, gain, bias))


def test_sequences_that_are_views():
    norm = GlobalNorm(4)
    x = torch.randn(1, 6, 5, 4).transpose(1, 2)
    torch.testing.assert_close(norm(x), norm(x.contiguous()))


def test_constant_input_gives_the_bias():
    norm = GlobalNorm(3)
    torch.nn.init.constant_(norm.bias, 0.5)
    assert (norm(torch.zeros(2, 4, 3)) == 0.5).all()


def test_half_precision_is_computed_in_single():
    x = torch.randn(2, 9, 4)
    found = GlobalNorm(4)(x.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, GlobalNorm(4)(x.bfloat16().float()))
