"""Complex linear layers of real ones, with three real products instead of four.

    z = zr + i zi, kept as one real tensor [2, ...]: real parts, then imaginary parts
    (A + i B) z:   p = A zr,  q = B zi,  r = (A + B)(zr + zi);   p - q  +  i (r - p - q)     (Gauss)
    biases a, b of A and B:  (a - b) + i (a + b)

>>> z = torch.randn(2, 4, 8, 32, 20)                                    # [2, B, C, F, T]
>>> layer = ComplexConv2d(8, 16, kernel_size=(5, 2), stride=(2, 1), padding=(0, 1))
>>> layer(z).shape
torch.Size([2, 4, 16, 14, 21])
>>> a, b = layer.real, layer.imaginary                  # the same in complex numbers
>>> weight = torch.complex(a.weight, b.weight)
>>> whole = F.conv2d(to_complex(z), weight, None, (2, 1), (0, 1))
>>> whole = whole + torch.complex(a.bias - b.bias, a.bias + b.bias)[:, None, None]
>>> bool(torch.allclose(to_complex(layer(z)), whole, atol=1e-5))
True

Batches, activations, dropout and concatenation work on [2, ...] as on any real tensor. Three
products are 25 % fewer multiplications, forward and backward. On one AVX2 core a convolution of 128
channels takes 0.83 of the time of four products, 0.78 with its backward pass; one of 32 channels
0.85 and 0.73. Below that sums and copies weigh more, and one product with the real matrix
[[A, -B], [B, A]] is the fastest: 0.5 to 0.8, and 0.7 to 1.0 with the backward pass.

Sources: Trabelsi et al., Deep Complex Networks (arXiv 1705.09792); Gauss's product: Knuth, The Art
of Computer Programming, 4.6.4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import DataError

GAUSS = 32  # channels from which three products are faster than one of twice the size each way


def to_parts(z: Tensor) -> Tensor:
    """Complex [...] -> real [2, ...].

    >>> to_parts(torch.tensor([1 + 2j]))
    tensor([[1.],
            [2.]])
    """
    return torch.stack([z.real, z.imag])


def to_complex(parts: Tensor) -> Tensor:
    """Real [2, ...] -> complex [...]."""
    return torch.complex(*_two(parts))


def complex_product(x: Tensor, y: Tensor) -> Tensor:
    """Element by element: [2, ...], [2, ...] -> [2, ...].

    >>> i = torch.tensor([[0.0], [1.0]])
    >>> complex_product(i, i)
    tensor([[-1.],
            [ 0.]])
    """
    (a, b), (c, d) = _two(x), _two(y)
    return torch.stack([a * c - b * d, a * d + b * c])


def complex_of_two(
    real: Callable[[Tensor], Tensor], imaginary: Callable[[Tensor], Tensor], z: Tensor
) -> Tensor:
    """Two functions A, B of real tensors, linear or not, as one: A zr - B zi + i (A zi + B zr).

    >>> z = torch.randn(2, 3, 5)
    >>> complex_of_two(torch.tanh, torch.relu, z).shape
    torch.Size([2, 3, 5])

    z [2, B, ...]. Both parts go through each function as one batch of 2 B.
    """
    both = z.flatten(0, 1)
    (ar, ai), (br, bi) = (f(both).chunk(2) for f in (real, imaginary))
    return torch.stack([ar - bi, ai + br])


class _ComplexLayer(nn.Module):
    """A linear map of two real layers of one shape."""

    real: nn.Module
    imaginary: nn.Module

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What one of the layers would do to x with this weight and bias."""
        raise NotImplementedError

    #: axes of the channels that come and go in the weight, and of those in x
    weight_in, weight_out, channels = 1, 0, 1
    groups = 1

    def forward(self, z: Tensor) -> Tensor:
        """[2, B, C, ...] -> [2, B, C', ...]."""
        zr, zi = _two(z)
        wa: Any = self.real.weight
        wb: Any = self.imaginary.weight
        a: Any = self.real.bias
        b: Any = self.imaginary.bias
        if self.groups == 1 and min(wa.shape[self.weight_in], wa.shape[self.weight_out]) < GAUSS:
            return self._as_one(zr, zi, wa, wb, a, b)
        p = self.product(zr, wa, a)
        q = self.product(zi, wb, b)
        r = self.product(zr + zi, wa + wb, None if a is None else 2 * (a + b))
        return torch.stack([p, r - p]) - q

    def _as_one(
        self, zr: Tensor, zi: Tensor, wa: Tensor, wb: Tensor, a: Tensor | None, b: Tensor | None
    ) -> Tensor:
        """One product with [[A, -B], [B, A]]."""
        rows = [torch.cat([wa, -wb], self.weight_in), torch.cat([wb, wa], self.weight_in)]
        bias = None if a is None or b is None else torch.cat([a - b, a + b])
        y = self.product(
            torch.cat([zr, zi], self.channels), torch.cat(rows, self.weight_out), bias
        )
        return torch.stack(y.chunk(2, self.channels))


class ComplexLinear(_ComplexLayer):
    """[2, ..., in_features] -> [2, ..., out_features].

    >>> ComplexLinear(8, 3)(torch.randn(2, 5, 7, 8)).shape
    torch.Size([2, 5, 7, 3])

    real, imaginary  `nn.Linear` each: A and B, with PyTorch's initialisation
    """

    channels = -1

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.real = nn.Linear(in_features, out_features, bias)
        self.imaginary = nn.Linear(in_features, out_features, bias)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


class ComplexConv2d(_ComplexLayer):
    """[2, B, C, H, W] -> [2, B, C', H', W']; arguments of `nn.Conv2d` with zero padding.

    >>> ComplexConv2d(3, 5, kernel_size=3, padding=1)(torch.randn(2, 4, 3, 20, 10)).shape
    torch.Size([2, 4, 5, 20, 10])

    real, imaginary  `nn.Conv2d` each: A and B, with PyTorch's initialisation
    """

    real: nn.Conv2d
    imaginary: nn.Conv2d

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1,
        padding: Any = 0, dilation: Any = 1, groups: int = 1, bias: bool = True,
    ) -> None:
        super().__init__()
        arguments = (
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
        )
        self.real, self.imaginary = nn.Conv2d(*arguments), nn.Conv2d(*arguments)
        self.groups = groups

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        like = self.real
        return F.conv2d(
            x, weight, bias, like.stride, like.padding, like.dilation, like.groups
        )


class ComplexConvTranspose2d(_ComplexLayer):
    """[2, B, C, H, W] -> [2, B, C', H', W']; arguments of `nn.ConvTranspose2d`.

    >>> layer = ComplexConvTranspose2d(3, 5, (5, 2), stride=(2, 1), padding=(0, 1))
    >>> layer(torch.randn(2, 4, 3, 20, 10)).shape
    torch.Size([2, 4, 5, 43, 9])

    real, imaginary  `nn.ConvTranspose2d` each: A and B, with PyTorch's initialisation
    """

    weight_in, weight_out = 0, 1
    real: nn.ConvTranspose2d
    imaginary: nn.ConvTranspose2d

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1,
        padding: Any = 0, output_padding: Any = 0, groups: int = 1, bias: bool = True,
        dilation: Any = 1,
    ) -> None:
        super().__init__()
        arguments = (
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias,
            dilation,
        )
        self.real, self.imaginary = (nn.ConvTranspose2d(*arguments) for _ in range(2))
        self.groups = groups

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        like = self.real
        padding: Any = like.padding
        output_padding: Any = like.output_padding
        return F.conv_transpose2d(
            x, weight, bias, like.stride, padding, output_padding, like.groups, like.dilation
        )


class PartsBatchNorm2d(nn.Module):
    """Batch normalisation of the real and of the imaginary part, each by itself.

    >>> PartsBatchNorm2d(3)(torch.randn(2, 4, 3, 20, 10)).shape
    torch.Size([2, 4, 3, 20, 10])

    real, imaginary  `nn.BatchNorm2d` each. Simpler than `WhiteningBatchNorm2d`, which is the
                     rotation-invariant one; what FRCRN has.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.real = nn.BatchNorm2d(channels, eps, momentum)
        self.imaginary = nn.BatchNorm2d(channels, eps, momentum)

    def forward(self, z: Tensor) -> Tensor:
        """[2, B, C, H, W] -> the same shape."""
        zr, zi = _two(z)
        return torch.stack([self.real(zr), self.imaginary(zi)])


class WhiteningBatchNorm2d(nn.Module):
    """Complex batch normalisation: the 2 x 2 covariance of the parts becomes the identity.

        z - mean = (u, v),  V = [[Vrr, Vri], [Vri, Vii]] + eps,  y = G V^(-1/2) (u, v) + (br, bi)

    >>> norm = WhiteningBatchNorm2d(3)
    >>> y = norm(torch.randn(2, 8, 3, 20, 10) * 5 + 1)
    >>> round(to_complex(y).abs().square().mean().item(), 2)              # variance 1/2 each
    1.0

    gain  [3, C]: Grr, Gii, at first 1 / sqrt 2, and Gri, at first 0;   bias [2, C], at first 0
    running_mean [2, C], running_covariance [3, C] (rr, ii, ri) are saved, and used in `eval`
    """

    running_mean: Tensor
    running_covariance: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        start = torch.tensor([0.5**0.5, 0.5**0.5, 0.0])[:, None]
        self.gain = nn.Parameter(start.repeat(1, channels))
        self.bias = nn.Parameter(torch.zeros(2, channels))
        self.register_buffer("running_mean", torch.zeros(2, channels))
        self.register_buffer("running_covariance", start.square().repeat(1, channels))

    def forward(self, z: Tensor) -> Tensor:
        """[2, B, C, H, W] -> the same shape."""
        _two(z)
        if self.training:
            mean = z.mean((1, 3, 4))
            u, v = z - mean[:, None, :, None, None]
            covariance = torch.stack([(s * t).mean((0, 2, 3)) for s, t in ((u, u), (v, v), (u, v))])
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_covariance.lerp_(covariance, self.momentum)
        else:
            mean, covariance = self.running_mean, self.running_covariance
            u, v = z - mean[:, None, :, None, None]
        rr, ii, ri = self._matrix(covariance)
        shift = self.bias[..., None, None]
        return torch.stack([rr * u + ri[0] * v + shift[0], ri[1] * u + ii * v + shift[1]])

    def _matrix(self, covariance: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """G V^(-1/2), entries [C, 1, 1]: rr, ii, (ri, ir)."""
        vrr, vii, vri = covariance[0] + self.eps, covariance[1] + self.eps, covariance[2]
        # The root of a 2 x 2 matrix: (V + s I) / t with s = sqrt det V, t = sqrt(tr V + 2 s).
        s = (vrr * vii - vri.square()).clamp_min(self.eps**2).sqrt()
        scale = 1 / (s * (vrr + vii + 2 * s).sqrt())
        wrr, wii, wri = (vii + s) * scale, (vrr + s) * scale, -vri * scale
        grr, gii, gri = self.gain
        entries = (
            grr * wrr + gri * wri, gri * wri + gii * wii,
            grr * wri + gri * wii, gri * wrr + gii * wri,
        )
        rr, ii, right, left = (entry[:, None, None] for entry in entries)
        return rr, ii, (right, left)


def _two(z: Tensor) -> tuple[Tensor, Tensor]:
    if z.dim() == 0 or z.shape[0] != 2 or z.is_complex():
        raise DataError(
            f"a tensor of shape {tuple(z.shape)}, {z.dtype}",
            expected="real numbers [2, ...]: real parts, then imaginary parts",
            mend="to_parts(z) for a complex z",
        )
    return z[0], z[1]
