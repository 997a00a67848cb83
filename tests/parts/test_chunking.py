"""Windows over signals of any length: exact identity, bounded memory, talkers kept apart."""

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passband.errors import ConfigError, DataError, UnknownNameError
from passband.parts.chunking import FADES, align_sources, apply_chunked, overlapped


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fade", FADES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_identity_for_any_length_and_any_blocks(fade, data):
    window = data.draw(st.integers(1, 24))
    hop = data.draw(st.integers(1, window))
    length = data.draw(st.integers(1, 5 * window))
    block = data.draw(st.integers(1, 60))
    x = normal(2, length)
    pieces = list(overlapped(x.split(block, -1), lambda x: x, window=window, hop=hop, fade=fade))
    assert torch.allclose(torch.cat(pieces, -1), x, atol=1e-6)
    assert all(piece.shape[-1] <= window for piece in pieces)


def by_definition(x, process, window, hop, shape):
    """All windows, weighted and summed at once."""
    count = 1 + -(-max(0, x.shape[-1] - window) // hop)
    end = (count - 1) * hop + window
    padded = torch.cat([x, x.new_zeros(*x.shape[:-1], end - x.shape[-1])], -1)
    total, weight = torch.zeros_like(padded), torch.zeros(end)
    for i in range(count):
        span = slice(i * hop, i * hop + window)
        total[..., span] += shape * process(padded[..., span])
        weight[span] += shape
    return (total / weight)[..., : x.shape[-1]]


@pytest.mark.parametrize(("window", "hop"), [(40, 30), (40, 20), (40, 11), (40, 40)])
def test_cross_fades_by_their_definition(window, hop):
    """A process that depends on the place in the window shows every weight."""
    overlap = window - hop
    gain = torch.linspace(-1, 2, window)
    n = torch.arange(window) + 1
    ramp = torch.minimum(n, window + 1 - n) / (overlap + 1)
    shapes = {
        "linear": ramp.clamp(max=1),
        "hann": 0.5 - 0.5 * torch.cos(torch.pi * ramp.clamp(max=1)),
        "flat": torch.ones(window),
    }
    x = normal(3, 333)
    for fade, shape in shapes.items():
        got = apply_chunked(x, lambda x: x * gain, window=window, hop=hop, fade=fade)
        expected = by_definition(x, lambda x: x * gain, window, hop, shape)
        assert torch.allclose(got, expected, atol=1e-5)


def test_centre_takes_each_sample_from_one_window():
    """Place in the window: 0 ... 39; kept are 10 ... 29, and the ends of the signal."""
    place = torch.arange(40.0)
    got = apply_chunked(
        torch.zeros(1, 85), lambda _: place[None], window=40, hop=20, fade="centre"
    )[0]
    expected = torch.cat([place[:30], place[10:30], place[10:30], place[10:25]])
    assert torch.equal(got, expected)


def test_output_may_have_other_leading_axes():
    x = normal(2, 101)
    got = apply_chunked(x, lambda x: torch.stack([x, -x, 2 * x]), window=30, hop=20)
    assert got.shape == (3, 2, 101)
    assert torch.allclose(got[2], 2 * x, atol=1e-6)


def test_memory_is_that_of_a_few_windows():
    """Neither blocks nor outputs pile up, and none is asked for before it is needed."""
    alive, most, asked = [], [], [0]

    def blocks():
        for i in range(200):
            samples = np.full((1, 50), float(i))
            alive.append(weakref.ref(samples))  # dies with the last view of its memory
            asked[0] += 1
            block = torch.from_numpy(samples)
            del samples
            yield block
            del block
            most.append(sum(ref() is not None for ref in alive))

    given_back = 0
    for piece in overlapped(blocks(), lambda x: x + 0, window=100, hop=75):
        given_back += piece.shape[-1]
        assert asked[0] * 50 - given_back <= 200
    assert given_back == 200 * 50
    assert max(most) <= 5


@pytest.mark.parametrize("count", [2, 3, 5])
def test_alignment_undoes_a_scrambled_separator(count):
    talkers = normal(count, 2000)
    random = torch.Generator().manual_seed(1)
    orders = []

    def scrambled(x):
        orders.append(torch.randperm(count, generator=random))
        return x[orders[-1]] + 0.3 * torch.randn(x.shape, generator=random)

    settings = {"window": 300, "hop": 200, "fade": "hann"}
    found = apply_chunked(talkers, scrambled, align=align_sources, **settings)
    assert len({tuple(order.tolist()) for order in orders}) > 1
    assert (found - talkers[orders[0]]).square().mean() < 0.1
    mixed = apply_chunked(talkers, scrambled, **settings)
    assert (mixed - talkers[orders[-9]]).square().mean() > 0.5


def test_alignment_is_the_least_squared_difference():
    from itertools import permutations

    for seed in range(20):
        previous, new = normal(4, 30, seed=seed), normal(4, 30, seed=100 + seed)
        best = min(
            permutations(range(4)), key=lambda p: float((previous - new[list(p)]).square().sum())
        )
        assert align_sources(previous, new).tolist() == list(best)
    assert align_sources(torch.zeros(3, 10), torch.zeros(3, 10)).tolist() == [0, 1, 2]


def test_the_process_sees_whole_windows_and_gradients_pass():
    seen = []
    x = normal(1, 70).requires_grad_()
    y = apply_chunked(x, lambda x: seen.append(x.shape[-1]) or x, window=32, hop=24)
    y.sum().backward()
    assert seen == [32, 32, 32]
    assert torch.allclose(x.grad, torch.ones_like(x))


def test_what_is_refused():
    x = normal(1, 70)
    for window, hop in ((10, 11), (10, 0)):
        with pytest.raises(ConfigError, match="hop"):
            apply_chunked(x, lambda x: x, window=window, hop=hop)
    with pytest.raises(UnknownNameError, match="center"):
        overlapped([x], lambda x: x, window=10, hop=5, fade="center")
    with pytest.raises(DataError, match="became"):
        apply_chunked(x, lambda x: x[..., 1:], window=10, hop=5)
    with pytest.raises(DataError, match="empty"):
        apply_chunked(x[:, :0], lambda x: x, window=10, hop=5)
    with pytest.raises(DataError, match="every source once"):
        apply_chunked(
            normal(2, 70), lambda x: x, window=10, hop=5, align=lambda *_: torch.tensor([0, 0])
        )
    with pytest.raises(DataError, match=r"\[K, n\]"):
        align_sources(x, normal(2, 70))
    assert list(overlapped([], lambda x: x, window=10, hop=5)) == []
