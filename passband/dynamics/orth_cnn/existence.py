"""Can a convolution of this shape be orthogonal at all? Known before any training.

>>> exists, reason = orthogonality_exists(20, 2, 3, stride=4)
>>> exists, reason
(False, 'row-orthogonal case, M = 20 <= C prod S = 32: M = 20 > C x 3 x 3 = 18')
>>> orthogonality_exists(64, 32, 3, stride=2).exists
True

Source: theorem on existence and proposition on other boundary conditions, arXiv 2108.05623.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from passband.dynamics.orth_cnn.geometry import Geometry, Sizes, on_axes
from passband.errors import ConfigError, PassbandError

Padding = Literal["circular", "zeros", "valid"]


class Existence(NamedTuple):
    """Whether an orthogonal layer exists, and the inequality that decides."""

    exists: bool
    reason: str


class NoOrthogonalLayerError(PassbandError):
    """A layer that is to be made orthogonal and can't be."""


def orthogonality_exists(
    M: int, C: int, k: Sizes, stride: Sizes = 1, dim: int = 2, padding: Padding = "circular", *,
    groups: int = 1, dilation: Sizes = 1,
) -> Existence:
    """
    M, C     output and input channels of the layer
    k        kernel, one size or one an axis; dim axes, 1 to 3
    padding  "circular"; "zeros": as many outputs as inputs (odd k, stride 1); "valid": none
    Raises `ConfigError` for zero padding with strides or even kernels: nothing is known of them.
    """
    if C % groups:
        raise ConfigError(f"{C} channels in {groups} groups", expected="a divisor of them")
    geometry = Geometry.of(
        (M, C // groups, *on_axes(k, dim, "k")), stride, groups, dilation
    )
    if padding not in _RULES:
        raise ConfigError(f"padding = {padding!r}", expected=f"one of {', '.join(_RULES)}")
    return _RULES[padding](geometry)


def _circular(g: Geometry) -> Existence:
    return Existence(g.exists, g.says())


def _zeros(g: Geometry) -> Existence:
    if max(g.stride) > 1 or any(k % 2 == 0 for k in g.kernel):
        raise ConfigError(
            f"zero padding with kernel {list(g.kernel)} and stride {list(g.stride)}",
            expected="an odd kernel and stride 1, of which a theorem speaks",
            mend="padding_mode='circular'",
        )
    if max(g.kernel) == 1:
        return _circular(g)
    return Existence(True, "but with its centre tap alone: a 1x1 convolution in a larger kernel")


def _valid(g: Geometry) -> Existence:
    if g.case != "columns":
        return Existence(g.exists, f"without padding as with circular one: {g.says()}")
    if all(span == s for span, s in zip(g.span, g.stride, strict=True)):
        return Existence(g.exists, f"patches don't overlap: {g.says()}")
    return Existence(
        False, "without padding the first and the last pixel meet one tap of the kernel each, not "
        "the same: both would have to carry norm 1, which leaves too much for those between",
    )


_RULES = {"circular": _circular, "zeros": _zeros, "valid": _valid}


def demand(geometry: Geometry, name: str) -> None:
    """Raise `NoOrthogonalLayerError` where none exists."""
    if not geometry.exists:
        raise NoOrthogonalLayerError(
            f"{name}: no orthogonal layer of this shape exists; {geometry.says()}",
            expected="M <= C prod k in the row case, a kernel that covers the stride in the other",
            mend="change channels, kernel or stride; or impossible='warn' to regularise it anyway: "
            f"its penalty ends at {geometry.floor}, not at 0",
        )
