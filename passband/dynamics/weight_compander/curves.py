"""Curves w = a phi(v / b): odd, strictly increasing, phi'(0) = 1; most of them bounded.

    arctan    phi(u) = arctan(u)                 |w| < a pi / 2
    tanh      phi(u) = tanh(u)                   |w| < a
    softsign  phi(u) = u / (1 + |u|)             |w| < a
    mulaw     phi(u) = sign(u) log(1 + |u|)      no bound: grows like a logarithm
    linear    phi(u) = u                         no bound, w = (a / b) v: the control. It moves w
                                                 as a learning rate (a / b)^2 times as large does

One autograd function serves them all: with g the gradient of w,

    dv = g (a / b) phi'(v / b),   da = sum(g w) / a,   db = -sum(dv v) / b

so that only v is kept for the way back beside w, which its layer keeps anyhow.

>>> a, b = torch.tensor(0.5), torch.tensor(0.25)
>>> companded(torch.tensor([-2.0, 0.05]), a, b)
tensor([-0.7232,  0.0987])
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from passband.errors import UnknownNameError


class Curve:
    """Base: phi by `value`, its inverse and slope. `limit` is the supremum of phi."""

    limit: float = math.inf

    def value(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """a phi(v / b)."""
        raise NotImplementedError

    def inverse(self, y: Tensor) -> Tensor:
        """u with phi(u) = y."""
        raise NotImplementedError

    def slope(self, u: Tensor) -> Tensor:
        """phi'(u)."""
        raise NotImplementedError

    def pull(self, g: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """g times the derivative of the value by v."""
        return g * (self.slope(v / b) * (a / b))


class Arctan(Curve):
    limit = math.pi / 2

    def value(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        # The angle of (b, v): on a processor less than half the time of arctan(v / b).
        return torch.atan2(v, b).mul_(a)

    def inverse(self, y: Tensor) -> Tensor:
        return y.tan()

    def slope(self, u: Tensor) -> Tensor:
        return 1 / (1 + u * u)

    def pull(self, g: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return (g / torch.addcmul(b * b, v, v)).mul_(a * b)


class Tanh(Curve):
    limit = 1.0

    def value(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return (v / b).tanh_().mul_(a)

    def inverse(self, y: Tensor) -> Tensor:
        return y.atanh()

    def slope(self, u: Tensor) -> Tensor:
        return 1 - u.tanh().square()


class Softsign(Curve):
    limit = 1.0

    def value(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return a * v / (b + v.abs())

    def inverse(self, y: Tensor) -> Tensor:
        return y / (1 - y.abs())

    def slope(self, u: Tensor) -> Tensor:
        return (1 + u.abs()).square().reciprocal()


class MuLaw(Curve):
    def value(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return (v.abs() / b).log1p_().mul_(a).copysign_(v)

    def inverse(self, y: Tensor) -> Tensor:
        return y.abs().expm1().copysign(y)

    def slope(self, u: Tensor) -> Tensor:
        return (1 + u.abs()).reciprocal()


class Linear(Curve):
    def value(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return v * (a / b)

    def inverse(self, y: Tensor) -> Tensor:
        return y.clone()

    def slope(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)


CURVES: dict[str, Curve] = {
    "arctan": Arctan(), "tanh": Tanh(), "softsign": Softsign(), "mulaw": MuLaw(),
    "linear": Linear(),
}


def curve_of(name: str) -> Curve:
    """The curve of that name; raises `UnknownNameError`."""
    if name not in CURVES:
        raise UnknownNameError("curve", name, CURVES)
    return CURVES[name]


def companded(v: Tensor, a: Tensor, b: Tensor, curve: str = "arctan") -> Tensor:
    """a phi(v / b) with its gradients, all of one floating type.

    v     any shape
    a, b  above 0; of no or as many dimensions as v, of sizes 1 or v's
    """
    if torch.compiler.is_compiling():  # the compiler fuses the formula and its derivative itself
        return curve_of(curve).value(v, a, b)
    return cast(Tensor, _Companded.apply(v, a, b, curve_of(curve)))  # type: ignore[no-untyped-call]


class _Companded(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, a: Tensor, b: Tensor, curve: Curve) -> Tensor:
        return curve.value(v, a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        v, a, b, ctx.curve = inputs
        ctx.save_for_backward(v, a, b, output)  # the layer that uses w keeps it anyhow
        ctx.save_for_forward(v, a, b, output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        v, a, b, w = ctx.saved_tensors
        of_v, of_a, of_b, _ = ctx.needs_input_grad
        dv = ctx.curve.pull(g, v, a, b)
        da = _summed(g * w, a) / a if of_a else None
        db = -_summed(dv * v, b) / b if of_b else None
        return dv if of_v else None, da, db, None

    @staticmethod
    def jvp(ctx: Any, v_dot: Any, a_dot: Any, b_dot: Any, _: Any) -> Tensor:
        v, a, b, w = ctx.saved_tensors
        found = torch.zeros_like(w)
        if v_dot is not None:
            found = found + ctx.curve.pull(v_dot, v, a, b)
        if a_dot is not None:
            found = found + w / a * a_dot
        if b_dot is not None:
            found = found - ctx.curve.pull(v / b, v, a, b) * b_dot
        return found


def _summed(x: Tensor, like: Tensor) -> Tensor:
    """Sum over what was broadcast, to the shape of `like`."""
    if not like.dim():
        return x.sum()
    axes = [i for i, n in enumerate(like.shape) if n == 1]
    return x.sum(axes, keepdim=True) if axes else x
