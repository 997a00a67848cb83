"""What the shape of a convolution alone decides: case, existence, floor, constants of the bounds.

K [M, C, *k] (C of one group), strides S_a, dilations d_a on axes a = 1..n, circular padding:

    S'_a = S_a / gcd(S_a, d_a)      the phases of its inputs that a kernel can meet
    p_a  = min(k_a, S'_a)           those that it does meet
    row-orthogonal (M <= C prod S)      exists iff M <= C prod p
    column-orthogonal (M >= C prod S)   exists iff p = S on every axis

With equal sides and no dilation these are the paper's M <= C k^2 and S <= k. What can't be reached
leaves a floor under the penalty: M - C prod p, or C (prod S - prod p).

>>> shape = Geometry.of((20, 2, 3, 3), stride=4)
>>> shape.case, shape.exists, shape.floor
('rows', False, 2)
>>> Geometry.of((64, 64, 3, 3)).case
'square'
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from passband.errors import ConfigError, DataError

Case = Literal["rows", "columns", "square"]
Sizes = int | Sequence[int]


@dataclass(frozen=True)
class Geometry:
    """One group of a convolution: M outputs, C inputs, and per axis kernel, stride and dilation."""

    M: int
    C: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]

    @classmethod
    def of(
        cls, shape: Sequence[int], stride: Sizes = 1, groups: int = 1, dilation: Sizes = 1
    ) -> Geometry:
        """
        shape  [M, C / groups, *k] of a weight with one to three axes
        Raises `DataError` for another shape and groups that don't divide M, `ConfigError` for
        strides and dilations below 1.
        """
        if not 3 <= len(shape) <= 5 or min(shape) < 1:
            raise DataError(
                f"a weight of shape {list(shape)}",
                expected="[M, C / groups, *k], k of 1 to 3 axes",
                mend="a dense layer's matrix needs weight[:, :, None]",
            )
        if groups < 1 or shape[0] % groups:
            raise DataError(f"{shape[0]} channels in {groups} groups", expected="a divisor of them")
        M, C, *kernel = shape
        return cls(
            M // groups, C, tuple(kernel), on_axes(stride, len(kernel), "stride"),
            on_axes(dilation, len(kernel), "dilation"),
        )

    # ---- case and existence ------------------------------------------------------------------

    @property
    def positions(self) -> int:
        """prod S: pixels of the input for each of the output."""
        return math.prod(self.stride)

    @property
    def columns(self) -> int:
        """C prod S: inputs for each output position."""
        return self.C * self.positions

    @property
    def case(self) -> Case:
        if self.columns == self.M:
            return "square"
        return "rows" if self.columns > self.M else "columns"

    @property
    def phases(self) -> tuple[int, ...]:
        """S': the effective stride; dilated taps that a stride never brings together don't meet."""
        return tuple(s // math.gcd(s, d) for s, d in zip(self.stride, self.dilation, strict=True))

    @property
    def met(self) -> tuple[int, ...]:
        """p: phases that the kernel's taps reach."""
        return tuple(map(min, self.kernel, self.phases))

    @property
    def floor(self) -> int:
        """The least value of L_orth; 0 iff an orthogonal layer exists."""
        rank = min(self.M, self.C * math.prod(self.met))
        return min(self.M, self.columns) - rank

    @property
    def exists(self) -> bool:
        return self.floor == 0

    # ---- constants ---------------------------------------------------------------------------

    @property
    def excess(self) -> int:
        """max(0, M - C prod S): what ||A - I0||^2 has above L_orth."""
        return max(0, self.M - self.columns)

    @property
    def offsets(self) -> tuple[int, ...]:
        """2 floor((k - 1) / S') + 1 on each axis: shifts at which a kernel overlaps itself."""
        return tuple(2 * ((k - 1) // s) + 1 for k, s in zip(self.kernel, self.phases, strict=True))

    @property
    def span(self) -> tuple[int, ...]:
        """d (k - 1) + 1: pixels from the first tap to the last."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def alpha(self) -> int:
        """err_s^2 <= alpha L_orth, for every image size."""
        rows = self.M * math.prod(self.offsets)
        columns = self.C * math.prod(2 * k - 1 for k in self.kernel)
        return {"rows": rows, "columns": columns, "square": min(rows, columns)}[self.case]

    @property
    def least_size(self) -> tuple[int, ...]:
        """Smallest image on which overlaps don't meet around the border: the identity needs it.

        The paper asks for 2 k - 1; shifts come in steps of the stride, so that
        2 S floor((k - 1) / S) + 1 is enough, rounded up to whole strides.
        """
        reach = (
            2 * ((span - 1) // s) * s + 1
            for span, s in zip(self.span, self.stride, strict=True)
        )
        return tuple(-(-r // s) * s for r, s in zip(reach, self.stride, strict=True))

    def says(self) -> str:
        """The inequality that decides, with its numbers."""
        box = " x ".join(map(str, self.met))
        if self.case == "columns":
            holds = "=" if self.exists else "<"
            return (
                f"column-orthogonal case, M = {self.M} >= C prod S = {self.columns}: the kernel "
                f"meets {math.prod(self.met)} ({box}) {holds} {self.positions} phases of the stride"
            )
        holds = "<=" if self.exists else ">"
        return (
            f"{'square' if self.case == 'square' else 'row-orthogonal'} case, "
            f"M = {self.M} {'=' if self.case == 'square' else '<='} C prod S = {self.columns}: "
            f"M = {self.M} {holds} C x {box} = {self.C * math.prod(self.met)}"
        )


def on_axes(value: Sizes, axes: int, name: str, least: int = 1) -> tuple[int, ...]:
    """One number for every axis, or one for each.

    >>> on_axes(2, 3, "stride"), on_axes((1, 2), 2, "stride")
    ((2, 2, 2), (1, 2))
    """
    values = (value,) * axes if isinstance(value, int) else tuple(map(int, value))
    if len(values) != axes or min(values) < least:
        raise ConfigError(
            f"{name} = {value!r} for {axes} axes", expected=f"{least} or more, one or one an axis"
        )
    return values
