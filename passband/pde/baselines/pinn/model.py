"""Physics-informed networks: the smooth function that a network is, fitted to an equation.

Solves L u + N(u) = f on a box with u = g on given faces, by descent on

    mean (L u + N(u) - f)^2  over N_r points inside  +  weight * mean (u - g)^2  over N_b on faces

    Network       u(x) = W_L tanh(... tanh(W_1 x + b_1) ...) + b_L,  x [N, d] in [-1, 1]^d
    derivatives   value, first and second derivatives travel forward through the layers together
                  (a jet), so one backward pass over them gives the gradient of the loss:
                    linear   z = W a + b,   z_i = W a_i,    z_ij = W a_ij
                    tanh     y = s(z),      y_i = s' z_i,   y_ij = s'' z_i z_j + s' z_ij
    features      optional first layer cos(pi B x), sin(pi B x), rows of B ~ N(0, sd^2), several sd;
                  x runs over 2 units, so sd counts cycles across the box
    coordinates   derivatives are chained by 2 / length, so that terms keep their own units

Letters: N points, d axes, K rows of a jet (1 + firsts + seconds), S scales, H width.
Source: Raissi, Perdikaris, Karniadakis, J. Comput. Phys. 378 (2019); features: Wang, Wang,
Perdikaris, Comput. Methods Appl. Mech. Eng. 384 (2021).

>>> network = Network(dim=1, width=32, depth=2)
>>> x = torch.linspace(-1, 1, 5)[:, None]
>>> u, u_xx = network.derivatives(x, ["", "xx"], axes="x")
>>> u_xx.shape
torch.Size([5])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import combinations_with_replacement, pairwise
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from passband.data.pde import Problem

# z -> s(z), s'(z), s''(z), s'''(z); the third is what the gradient of the second derivative needs
Curve = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


def _tanh(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    s = torch.tanh(z)
    slope = 1 - s * s
    return s, slope, -2 * s * slope, slope * (6 * s * s - 2)


def _sine(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    s, c = torch.sin(z), torch.cos(z)
    return s, c, -s, -c


ACTIVATIONS: dict[str, Curve] = {"tanh": _tanh, "sin": _sine}


class Network(nn.Module):
    """A fully connected network that knows its own derivatives.

    dim       d, coordinates, each in [-1, 1]
    width     H, units of a hidden layer
    depth     hidden layers
    scales    standard deviations of the Fourier features; empty: no features
    features  rows of B for each scale
    merge     "features": all scales enter one network side by side;
              "outputs": each scale passes the same hidden layers, the last layer joins them
    """

    def __init__(
        self, dim: int, width: int = 64, depth: int = 4, *, activation: str = "tanh",
        scales: Sequence[float] = (), features: int = 50,
        merge: Literal["features", "outputs"] = "features",
    ) -> None:
        super().__init__()
        self.dim, self.curve, self.merge = dim, ACTIVATIONS[activation], merge
        inputs, joined = dim, 1
        if scales:
            sd = torch.tensor(scales).repeat_interleave(features)  # [S F]
            waves = math.pi * sd[:, None] * torch.randn(len(sd), dim)
            # [S, 2F, d]: each scale's sines and cosines together; cos z = sin(z + pi/2)
            waves = waves.reshape(len(scales), features, dim).repeat(1, 2, 1)
            phase = torch.zeros(len(scales), 2 * features)
            phase[:, features:] = math.pi / 2
            self.register_buffer("waves", waves)
            self.register_buffer("phase", phase)
            inputs = 2 * features * (len(scales) if merge == "features" else 1)
            joined = len(scales) if merge == "outputs" else 1
        widths = [inputs, *[width] * depth]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.last = nn.Linear(width * joined, 1)
        for layer in (*self.hidden, self.last):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """u at x [N, d] -> [N]."""
        a = x
        if hasattr(self, "waves"):
            a = torch.sin(torch.einsum("nd,sfd->nsf", x, self.waves) + self.phase)
            a = a.flatten(1) if self.merge == "features" else a
        for layer in self.hidden:
            a = self.curve(layer(a))[0]
        return self.last(a.flatten(1))[:, 0]

    def derivatives(self, x: Tensor, keys: Sequence[str], axes: str) -> list[Tensor]:
        """u ("") and derivatives ("x", "xy", ...) at x [N, d] -> [N] each.

        `axes` names the coordinates in order. Second derivatives may be mixed.
        """
        places = [tuple(sorted(axes.index(c) for c in key)) for key in keys]
        first = sorted({i for place in places for i in place})
        second = [pair for pair in combinations_with_replacement(first, 2) if pair in places]
        rows = self._jet(x, first, second)
        order: list[tuple[int, ...]] = [(), *((i,) for i in first), *second]
        return [rows[order.index(place)] for place in places]

    def _jet(self, x: Tensor, first: list[int], second: list[tuple[int, int]]) -> Tensor:
        """Value, firsts and seconds -> [K, N]."""
        pairs = tuple((1 + first.index(a), 1 + first.index(b)) for a, b in second)
        jet = x.new_zeros(1 + len(first) + len(second), *x.shape)  # [K, N, d]
        jet[0] = x
        for row, axis in enumerate(first):
            jet[1 + row, :, axis] = 1
        if hasattr(self, "waves"):
            z = torch.einsum("knd,sfd->knsf", jet, self.waves)
            jet = _Bend.apply(z, self.phase, _sine, pairs)  # [K, N, S, 2F]
            if self.merge == "features":
                jet = jet.flatten(2)  # [K, N, S 2F]
        for layer in self.hidden:
            jet = _Bend.apply(jet @ layer.weight.T, layer.bias, self.curve, pairs)
        jet = (jet.flatten(2) @ self.last.weight.T)[..., 0]  # [K, N]
        return torch.cat([jet[:1] + self.last.bias, jet[1:]])


class _Bend(torch.autograd.Function):
    """s(z + b) for a jet z [K, N, ...], with its gradient in closed form.

    pairs  rows (i, j) of the first derivatives that each second derivative belongs to; the second
           derivatives are the last rows
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, bias: Tensor, curve: Curve, pairs: tuple[tuple[int, int], ...]
    ) -> Tensor:
        out = torch.empty_like(z)
        out[0], slope, bow, third = curve(z[0] + bias)
        torch.mul(z[1:], slope, out=out[1:])
        for row, (i, j) in zip(range(len(z) - len(pairs), len(z)), pairs, strict=True):
            out[row].addcmul_(bow, z[i] * z[j])
        ctx.save_for_backward(z, slope, bow, third)
        ctx.pairs, ctx.bias = pairs, bias.shape
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (g,) = gradients
        z, slope, bow, third = ctx.saved_tensors
        out = g * slope
        out[0] += bow * (g[1:] * z[1:]).sum(0)
        for row, (i, j) in zip(range(len(z) - len(ctx.pairs), len(z)), ctx.pairs, strict=True):
            out[0].addcmul_(third * z[i], z[j] * g[row])
            share = bow * g[row]
            out[i].addcmul_(share, z[j])
            out[j].addcmul_(share, z[i])
        return out, out[0].sum_to_size(ctx.bias), None, None


class _Pointwise(torch.autograd.Function):
    """N(u) for a pair of NumPy functions (N, dN)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, pair: Sequence[Callable[[Any], Any]]) -> Tensor:
        values = u.detach().cpu().numpy().astype(float)
        ctx.save_for_backward(_like(pair[1](values), u))
        return _like(pair[0](values), u)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return gradients[0] * slope, None


def _like(values: Any, u: Tensor) -> Tensor:
    array = np.broadcast_to(np.asarray(values, dtype=float), tuple(u.shape))
    return torch.tensor(array, dtype=u.dtype, device=u.device)


@dataclass(frozen=True)
class Points:
    """Where the equation and the boundary are demanded, and what is demanded there.

    x       [N, d] inside, in [-1, 1]^d
    terms   [T, N] coefficients of the operator, chained to these coordinates, in its order
    source  [N]
    face    [M, d] on the faces
    values  [M]
    """

    x: Tensor
    terms: Tensor
    source: Tensor
    face: Tensor
    values: Tensor

    @classmethod
    def of(
        cls, problem: Problem, inside: np.ndarray, faces: dict[str, np.ndarray],
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Evaluate a problem at points given in its own coordinates, [N, d] each."""
        factors = [math.prod(_chain(problem, axis) for axis in key) for key in problem.operator]
        terms = [
            factor * problem.at(value, inside)
            for factor, value in zip(factors, problem.operator.values(), strict=True)
        ]
        values = [problem.face_value(face, points) for face, points in faces.items()]
        tensors = (
            to_unit(problem.box, inside), np.stack(terms), problem.at(problem.source, inside),
            to_unit(problem.box, np.concatenate(list(faces.values()))), np.concatenate(values),
        )
        return cls(*(torch.tensor(t, dtype=dtype) for t in tensors))

    def to(self, device: torch.device) -> Self:
        return type(self)(*(getattr(self, f.name).to(device) for f in fields(self)))


def residual(network: Network, problem: Problem, points: Points) -> Tensor:
    """L u + N(u) - f at the inner points -> [N]."""
    keys = list(problem.operator)
    u, *parts = network.derivatives(points.x, ["", *keys], problem.axes)
    out = (points.terms * torch.stack(parts)).sum(0) - points.source
    if problem.nonlinear is not None:
        out = out + _Pointwise.apply(u, problem.nonlinear)
    return out


def mismatch(network: Network, points: Points) -> Tensor:
    """u - g at the points on faces -> [M]."""
    return network(points.face) - points.values


def to_unit(box: Any, points: np.ndarray) -> np.ndarray:
    """From the box to [-1, 1]^d."""
    low, high = np.array(list(box.values())).T
    return 2 * (points - low) / (high - low) - 1


def sample(problem: Problem, inside: int, face: int, rng: np.random.Generator) -> Any:
    """Latin hypercube points inside [N, d] and on each given face [M, d] (one point if d = 1)."""
    low, high = np.array(list(problem.box.values())).T
    d = problem.dim

    def spread(n: int) -> np.ndarray:
        strata = rng.permuted(np.tile(np.arange(n), (d, 1)), axis=1).T
        return low + (high - low) * (strata + rng.random((n, d))) / n

    faces = {}
    for name in problem.faces:
        points = spread(face if d > 1 else 1)
        axis = problem.axes.index(name[0])
        points[:, axis] = (low if name[1] == "-" else high)[axis]
        faces[name] = points
    return spread(inside), faces


def _chain(problem: Problem, axis: str) -> float:
    """d(unit coordinate) / d(own coordinate)."""
    low, high = problem.box[axis]
    return 2 / (high - low)
