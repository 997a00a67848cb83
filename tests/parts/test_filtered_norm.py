"""Filter, norm, activation and gate in one step, against torch's channels-first operations."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from passband.errors import DataError
from passband.parts import filtered_norm as room
from passband.parts.filtered_norm import filtered_norm


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def channels_first(x, weight, bias, gain, shift, stride, slope, gate, added, eps):
    y = x.reshape(-1, *x.shape[-2:]).transpose(1, 2)
    if weight is not None:
        taps, channels = weight.shape
        y = F.conv1d(y, weight.t()[:, None], bias, stride, taps // 2, groups=channels)
    y = F.group_norm(y, 1, gain, shift, eps)
    if slope is not None:
        y = F.prelu(y, slope)
    if gate is not None:
        gate, added = (
            F.interpolate(t.reshape(-1, *t.shape[-2:]).transpose(1, 2), y.shape[-1])
            for t in (gate, added)
        )
        y = y * gate + added
    return y.transpose(1, 2).reshape(*x.shape[:-2], -1, x.shape[-1])


# x, taps (None: no filter), bias, stride, activation, positions of the gate (None: no gate)
CASES = {
    "norm alone": ((2, 3, 7, 5), None, False, 1, False, None),
    "filter": ((3, 23, 16), 5, True, 1, False, None),
    "every second": ((2, 2, 24, 6), 5, True, 2, False, None),
    "every third, activated": ((4, 22, 3), 3, False, 3, True, None),
    "one tap, gated": ((3, 17, 8), 1, False, 1, False, 5),
    "all": ((5, 37, 9), 7, True, 2, True, 19),
    "gate of one position": ((2, 9, 4), 5, True, 1, True, 1),
    "shorter than the filter": ((2, 3, 4), 5, True, 1, False, 2),
    "shared among threads": ((50, 40, 70), 5, True, 1, True, 13),
}


def drawn(case, dtype=torch.float64):
    shape, taps, biased, stride, activated, coarse = case
    channels, length = shape[-1], -(-shape[-2] // stride)
    gate = None if coarse is None else (*shape[:-2], min(coarse, length), channels)

    def draw(size, seed):
        return normal(*size, seed=seed, dtype=dtype).requires_grad_()

    return {
        "x": draw(shape, 0),
        "weight": None if taps is None else draw((taps, channels), 1),
        "bias": draw((channels,), 2) if biased else None,
        "gain": draw((channels,), 3), "shift": draw((channels,), 4),
        "slope": draw((1,), 5) if activated else None,
        "gate": None if gate is None else draw(gate, 6),
        "added": None if gate is None else draw(gate, 7),
    }


def outcome(function, given, **options):
    y = function(**given, **options)
    wanted = [t for t in given.values() if t is not None]
    grads = torch.autograd.grad(y, wanted, normal(*y.shape, seed=9, dtype=y.dtype))
    return [y.detach(), *grads]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("loops", [True, False])
def test_equal_to_convolution_group_norm_and_interpolation(name, loops, monkeypatch):
    if not loops:
        monkeypatch.setattr(room, "_here", lambda: False)
    given = drawn(CASES[name])
    options = {"stride": CASES[name][3], "eps": 1e-3}
    expected = outcome(channels_first, given, **options)
    for mine, theirs in zip(outcome(filtered_norm, given, **options), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_single_precision_loses_few_digits(name):
    single = drawn(CASES[name], torch.float32)
    double = {k: v if v is None else v.detach().double().requires_grad_()
              for k, v in single.items()}
    options = {"stride": CASES[name][3], "eps": 1e-8}
    found = outcome(filtered_norm, single, **options)
    for mine, exact in zip(found[:1], outcome(channels_first, double, **options), strict=False):
        assert (mine - exact).abs().max() < 1e-5 * exact.abs().max()


def test_numerical_gradients():
    given = drawn(((2, 6, 2), 3, True, 2, True, 2))
    assert torch.autograd.gradcheck(
        lambda *a: filtered_norm(*a[:5], stride=2, slope=a[5], gate=a[6], added=a[7], eps=1e-3),
        tuple(given.values()),
    )


def test_threads_give_the_same():
    given = drawn(CASES["shared among threads"])
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(outcome(filtered_norm, given))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-11)


def test_a_bad_number_stays_in_its_sequence():
    x = normal(3, 9, 4)
    x[1, 2, 3] = torch.nan
    y = filtered_norm(x, normal(5, 4), None, normal(4), normal(4))
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()


def test_a_constant_sequence_is_the_shift():
    shift = normal(4)
    y = filtered_norm(torch.ones(2, 5, 4, dtype=torch.float64), None, None, normal(4), shift)
    torch.testing.assert_close(y, shift.expand(2, 5, 4))


def test_shapes_on_the_meta_device_and_empty_ones():
    one = torch.ones(4, device="meta")
    x = torch.empty(2, 9, 4, device="meta")
    assert filtered_norm(x, torch.empty(5, 4, device="meta"), None, one, one, stride=2).shape == (
        2, 5, 4,
    )
    assert filtered_norm(torch.empty(0, 9, 4), None, None, *torch.ones(2, 4)).shape == (0, 9, 4)


@pytest.mark.parametrize(("weight", "gate", "added", "expected"), [
    ((4, 3), None, None, "odd number of taps"),
    ((3,), None, None, "odd number of taps"),
    ((3, 3), (2, 4, 3), None, "both or none"),
    ((3, 3), (2, 4, 3), (2, 5, 3), "at most as long"),
    ((3, 3), (2, 9, 3), (2, 9, 3), "at most as long"),
])
def test_what_does_not_fit(weight, gate, added, expected):
    gate, added = (None if size is None else normal(*size) for size in (gate, added))
    with pytest.raises(DataError, match=expected):
        filtered_norm(normal(2, 8, 3), normal(*weight), None, normal(3), normal(3), gate=gate,
                      added=added)
