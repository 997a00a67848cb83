"""The penalty against the layer's matrix, written out entry by entry, and against the fixtures."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from passband.dynamics.orth_cnn.bounds import isometry_bounds
from passband.dynamics.orth_cnn.existence import orthogonality_exists
from passband.dynamics.orth_cnn.experiments import minimise, valid_column_error, zero_padded_error
from passband.dynamics.orth_cnn.folding import folded, unfolded
from passband.dynamics.orth_cnn.geometry import Geometry
from passband.dynamics.orth_cnn.model import METHODS, lorth, lorth_stack
from passband.dynamics.orth_cnn.singular_values import conv_singular_values, spread
from passband.errors import ConfigError, DataError

RAMP = torch.arange(1.0, 37.0, dtype=torch.float64).view(2, 2, 3, 3) / 50


def matrix(
    weight: Tensor, stride: tuple[int, ...], size: tuple[int, ...], groups: int = 1,
    dilation: tuple[int, ...] | None = None,
) -> Tensor:
    """calK by definition: y[m, o] = sum K[m, c, i] x[c, (S o + d i) mod size]."""
    m, c, *kernel = weight.shape
    dilation = dilation or (1,) * len(kernel)
    outputs = [n // s for n, s in zip(size, stride, strict=True)]
    rows = torch.zeros(m, math.prod(outputs), c * groups, math.prod(size), dtype=torch.float64)
    for place, o in enumerate(itertools.product(*map(range, outputs))):
        for i in itertools.product(*map(range, kernel)):
            at = [(s * a + d * b) % n for s, a, d, b, n in
                  zip(stride, o, dilation, i, size, strict=True)]
            flat = int(np.ravel_multi_index(at, size))
            for channel in range(m):
                first = channel // (m // groups) * c
                rows[channel, place, first : first + c, flat] += weight[(channel, slice(None), *i)]
    return rows.view(m * math.prod(outputs), -1)


def apart(dense: Tensor) -> Tensor:
    """calK calK' - I, or calK' calK - I, whichever is smaller."""
    gram = dense @ dense.T if dense.shape[0] <= dense.shape[1] else dense.T @ dense
    return gram - torch.eye(len(gram), dtype=torch.float64)


def layers(count: int) -> list[tuple[Tensor, tuple[int, ...], int, tuple[int, ...]]]:
    """(weight, stride, groups, dilation) of random shapes in 1 to 3 dimensions, even k too."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        axes = (1, 2, 2, 3)[number % 4]
        most = 5 if axes < 3 else 3
        kernel = rng.integers(1, most, axes)
        stride = tuple(int(s) for s in rng.integers(1, 4 if axes < 3 else 3, axes))
        dilation = tuple(int(d) for d in (rng.integers(1, 3, axes) if axes == 1 else [1] * axes))
        groups = int(rng.integers(1, 3))
        m, c = groups * int(rng.integers(1, 6 if axes < 3 else 3)), int(rng.integers(1, 4))
        weight = torch.from_numpy(rng.standard_normal((m, c, *kernel)))
        found.append((weight, stride, groups, dilation))
    # Columns under a stride, which random shapes rarely are.
    for shape, stride in (((20, 4, 3, 3), (2, 2)), ((40, 2, 4, 4), (4, 4)), ((9, 2, 4), (3,))):
        found.append((torch.from_numpy(rng.standard_normal(shape)), stride, 1, (1,) * len(stride)))
    return found


@pytest.mark.parametrize("number", range(33))
def test_everything_agrees_with_the_matrix(number: int) -> None:
    weight, stride, groups, dilation = layers(30)[number]
    geometry = Geometry.of(weight.shape, stride, groups, dilation)
    size = geometry.least_size
    dense = matrix(weight, stride, size, groups, dilation)
    error = apart(dense)
    outputs = math.prod(n // s for n, s in zip(size, stride, strict=True))
    frobenius, spectral = float(error.square().sum()), float(torch.linalg.matrix_norm(error, 2))
    for method in METHODS:
        found = outputs * float(lorth(weight, stride, groups, dilation=dilation, method=method))
        assert found == pytest.approx(frobenius, rel=1e-9), method
    bounds = isometry_bounds(weight, stride, groups, dilation=dilation)
    assert spectral <= bounds.eps_paper * (1 + 1e-9)
    assert spectral <= bounds.eps_shifts * (1 + 1e-9)
    expected = torch.linalg.svdvals(dense).sort().values
    values = conv_singular_values(weight, stride, size, groups, dilation=dilation)
    torch.testing.assert_close(values.flatten().sort().values, expected, rtol=0, atol=1e-9)
    ends = spread(weight, stride, size, groups, dilation=dilation)
    assert ends.sigma_max == pytest.approx(float(expected[-1]), abs=1e-9)
    assert ends.sigma_min == pytest.approx(float(expected[0]), abs=1e-6)
    assert ends.err_s == pytest.approx(spectral, rel=1e-9)
    assert ends.err_f**2 == pytest.approx(frobenius, rel=1e-9)
    assert bounds.sigma_min <= ends.sigma_min + 1e-9
    assert ends.sigma_max <= bounds.sigma_max + 1e-9


@pytest.mark.parametrize(("kernel", "stride"), [((4,), (2,)), ((5, 2), (1, 1)), ((3, 3), (2, 2))])
def test_the_least_size_is_the_least(kernel: tuple[int, ...], stride: tuple[int, ...]) -> None:
    """One stride less, and overlaps meet around the border: the identity breaks."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 2, *kernel, dtype=torch.float64, generator=generator)
    size = Geometry.of(weight.shape, stride).least_size
    smaller = (size[0] - stride[0], *size[1:])
    outputs = math.prod(n // s for n, s in zip(smaller, stride, strict=True))
    error = float(apart(matrix(weight, stride, smaller)).square().sum())
    assert abs(outputs * float(lorth(weight, stride)) / error - 1) > 1e-3


def test_fixtures() -> None:
    assert float(lorth(RAMP)) == pytest.approx(169.5304928, rel=1e-9)
    assert float(lorth(RAMP, stride=2)) == pytest.approx(49.86926272, rel=1e-9)
    for stride, n, low in ((1, 5, 0.02772576), (1, 8, 0.01109668), (2, 3, 0.17720952),
                           (2, 8, 0.12758257)):
        values = conv_singular_values(RAMP, stride, n * stride)
        high = {1: 7.54945159, 2: 4.19413977}[stride]
        assert float(values.max()) == pytest.approx(high, abs=1e-8)
        assert float(values.min()) == pytest.approx(low, abs=1e-8)


def test_values_come_at_their_frequencies() -> None:
    """Of one channel they are the modulus of the kernel's Fourier transform."""
    kernel = torch.randn(1, 1, 3, 2, dtype=torch.float64)
    expected = torch.fft.fft2(kernel[0, 0], s=(5, 4)).abs()
    torch.testing.assert_close(conv_singular_values(kernel, 1, (5, 4))[..., 0], expected)


@pytest.mark.parametrize("method", METHODS)
def test_gradients(method: str) -> None:
    weight = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    for stride in (1, 2):
        assert torch.autograd.gradcheck(lambda w, s=stride: lorth(w, s, method=method), weight)


def test_forms() -> None:
    """Without the square there is no constant, and no NaN where the penalty is 0."""
    weight = torch.randn(5, 2, 3, dtype=torch.float64)
    root = lorth(weight, form="norm", method="conv")
    assert float(root) == pytest.approx(math.sqrt(float(lorth(weight)) + 3))
    centre = torch.zeros(4, 4, 3, 3, requires_grad=True)
    with torch.no_grad():
        centre[:, :, 1, 1] = torch.eye(4)
    value = lorth(centre, form="norm")
    value.backward()
    assert float(value.detach()) == 0
    assert torch.equal(centre.grad, torch.zeros_like(centre))


def test_stack_groups_and_transposed_layers() -> None:
    weight = torch.randn(6, 2, 3, dtype=torch.float64)
    parts = lorth_stack(weight.view(3, 2, 2, 3))
    assert parts.tolist() == pytest.approx([float(lorth(w)) for w in weight.split(2)])
    assert float(lorth(weight, groups=3)) == pytest.approx(float(parts.sum()))
    depthwise = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    alone = sum(float(lorth(w[None])) for w in depthwise)
    assert float(lorth(depthwise, groups=4)) == pytest.approx(alone)
    # torch's transposed layer is the transpose of the layer with the same weight.
    layer = nn.ConvTranspose1d(3, 2, 3, stride=2, bias=False).double()
    pixels = torch.eye(12, dtype=torch.float64).view(12, 3, 4)
    wide = layer(pixels)  # [12, 2, 9]
    wrapped = wide[..., :8].clone()
    wrapped[..., 0] += wide[..., 8]
    gram = wrapped.flatten(1) @ wrapped.flatten(1).T
    error = float((gram.detach() - torch.eye(12)).square().sum())
    assert 4 * float(lorth(layer.weight.detach(), stride=2)) == pytest.approx(error, rel=1e-9)


def test_precisions() -> None:
    generator = torch.Generator().manual_seed(0)
    near = torch.zeros(16, 16, 3, 3)
    near[:, :, 1, 1] = torch.eye(16)
    near += 1e-3 * torch.randn(16, 16, 3, 3, generator=generator)
    exact = float(lorth(near.double()))
    assert float(lorth(near)) == pytest.approx(exact, rel=1e-4)
    half = near.bfloat16()
    assert float(lorth(half)) == pytest.approx(float(lorth(half.double())), rel=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(lorth(near)) == pytest.approx(exact, rel=1e-4)


def test_folding_and_back() -> None:
    weight = torch.randn(2, 3, 4, 6)
    assert torch.equal(unfolded(folded(weight, (2, 3)), (2, 3)), weight)
    x = torch.randn(1, 3, 8, 12)
    plain = nn.functional.conv2d(x, weight, stride=(2, 3))
    deep = nn.functional.conv2d(
        x.view(1, 3, 4, 2, 4, 3).permute(0, 1, 3, 5, 2, 4).reshape(1, 18, 4, 4),
        folded(weight, (2, 3)),
    )
    torch.testing.assert_close(deep, plain, rtol=1e-4, atol=1e-4)


# ---- existence -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("m", "c", "k", "stride", "dim", "exists"),
    [
        (18, 2, 3, 4, 2, True), (19, 2, 3, 4, 2, False), (6, 2, 3, 4, 1, True),
        (7, 2, 3, 4, 1, False), (40, 2, 3, 4, 2, False), (40, 2, 4, 4, 2, True),
        (64, 64, 3, 1, 2, True), (27, 1, 3, 3, 3, True), (28, 1, 3, 4, 3, False),
        (12, 2, (2, 3), (2, 3), 2, True), (12, 2, (1, 3), (2, 3), 2, False),
    ],
)
def test_existence(m: int, c: int, k: int, stride: int, dim: int, exists: bool) -> None:
    found, reason = orthogonality_exists(m, c, k, stride, dim)
    assert found is exists
    assert str(m) in reason


@pytest.mark.parametrize("shape", [(20, 2, 3, 3), (40, 2, 3, 3)])
def test_no_descent_goes_below_the_floor(shape: tuple[int, ...]) -> None:
    floor = Geometry.of(shape, 4).floor
    found = minimise(shape, 4, seeds=[0], steps=300)
    assert float(found.values) == pytest.approx(floor, rel=1e-3)
    assert floor > 0


def test_dilation_that_a_stride_shares_hides_inputs() -> None:
    """Taps two apart under stride 2 meet every other pixel: columns can't be orthogonal."""
    assert orthogonality_exists(9, 2, 3, 2, dim=1).exists
    assert not orthogonality_exists(9, 2, 3, 2, dim=1, dilation=2).exists
    assert Geometry.of((9, 2, 3), 2, dilation=2).floor == 2
    assert orthogonality_exists(9, 2, 3, 2, dim=1, dilation=3).exists


def test_other_paddings() -> None:
    assert "1x1" in orthogonality_exists(4, 4, 3, padding="zeros").reason
    assert not orthogonality_exists(8, 4, 3, padding="valid").exists
    assert orthogonality_exists(8, 8, 3, padding="valid").exists
    assert orthogonality_exists(16, 4, 2, 2, padding="valid").exists
    with pytest.raises(ConfigError, match="stride"):
        orthogonality_exists(4, 4, 3, 2, padding="zeros")
    with pytest.raises(ConfigError, match="wrap"):
        orthogonality_exists(4, 4, 3, padding="wrap")


def test_zero_padding_knows_its_orthogonal_kernel() -> None:
    """A semi-orthogonal centre tap is at 0, any other single tap is not."""
    kernel = torch.zeros(2, 2, 4, 3, 3, dtype=torch.float64)
    kernel[0, :, :2, 1, 1] = kernel[1, :, :2, 0, 1] = torch.eye(2)
    centre, edge = zero_padded_error(kernel, 5).tolist()
    assert centre == pytest.approx(0, abs=1e-12)
    assert edge == pytest.approx(10)  # a row of pixels is lost in each of two channels
    column = torch.zeros(1, 4, 2, 3, 3, dtype=torch.float64)
    column[0, :2, :, 1, 1] = torch.eye(2)
    assert float(valid_column_error(column, 5)) == pytest.approx(2 * (25 - 9))


def test_a_stack_descends_as_runs_of_their_own() -> None:
    together = minimise((3, 2, 2), 1, seeds=[0, 1], steps=20)
    alone = minimise((3, 2, 2), 1, seeds=[1], steps=20)
    torch.testing.assert_close(together.kernels[1], alone.kernels[0], rtol=0, atol=1e-12)


# ---- bad input -----------------------------------------------------------------------------------


def test_bad_input() -> None:
    weight = torch.randn(4, 2, 3, 3)
    for error, call in (
        (DataError, lambda: lorth(torch.randn(4, 2))),
        (DataError, lambda: lorth(weight, groups=3)),
        (DataError, lambda: lorth(weight, groups=0)),
        (DataError, lambda: lorth(weight.to(torch.int8))),
        (ConfigError, lambda: lorth(weight, stride=0)),
        (ConfigError, lambda: lorth(weight, stride=(1, 2, 3))),
        (ConfigError, lambda: lorth(weight, method="svd")),
        (ConfigError, lambda: lorth(weight, form="cubed")),
        (DataError, lambda: conv_singular_values(weight, 2, 7)),
        (DataError, lambda: conv_singular_values(weight * torch.nan, 1, 8)),
        (DataError, lambda: conv_singular_values(weight, 1, 8, groups=3)),
        (DataError, lambda: conv_singular_values(weight[0, 0], 1, 8)),
    ):
        with pytest.raises(error):
            call()
