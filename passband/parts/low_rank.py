"""Low-rank adapters beside a layer: the base weight stays as it is, to the bit.

    y = base(x) + c [ (x A^T * S) B^T - (x A0^T) B0^T ]      A [r, n], B [m, r], S [r] or none
    x [..., n] -> y [..., m];  A0, B0: where the factors began (B0 = B S then), or none

Factors taken from the weight itself (PiSSA, CorDA, SORSA) begin at B0 A0, not at zero. Subtracting
it in the forward pass instead of from the weight keeps the pretrained model one flag away, works on
bf16 and quantised bases alike, and makes the change a plain LoRA of the original weight. With
    B A - B0 A0 = (B - B0) A + B0 (A - A0)
it is one pair of products of rank 2r, exactly zero before the first step, and free of cancellation
after it. Kernels [m, n / k k, k, k] are matrices [m, n], applied as a convolution to r channels.

>>> layer = nn.Linear(16, 8)
>>> adapters = LowRankLinear.of(layer)
>>> factors = adapters.add("mine", LowRankFactors(A=torch.randn(2, 16), B=torch.zeros(8, 2)))
>>> layer(torch.randn(5, 16)).sum().backward()
>>> factors.B.grad.shape
torch.Size([8, 2])

Sources: Hu et al. 2021 (LoRA), arXiv 2106.09685; Meng et al. 2024 (PiSSA), arXiv 2404.02948;
Cao 2024 (SORSA), arXiv 2409.00055.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from passband.errors import ConfigError, DataError
from passband.parts.targets import is_transposed

if TYPE_CHECKING:
    from passband.parts.edits import LowRank


class LowRankFactors(nn.Module):
    """A, B and optionally S of one adapter: fp32 parameters (fp64 stays), whatever the base is in.

    A, B     [r, n], [m, r], copied;  S [r] multiplies between them, never as a matrix
    A0, B0   [r0, n], [m, r0]: frozen, subtracted; `from_start=True` takes A and B S as given
    scale    c
    dropout  of the input of the trained part alone, while the layer is in training mode
    Raises `DataError` for shapes that don't fit, `ConfigError` for a dropout outside [0, 1).

    >>> factors = LowRankFactors(torch.randn(2, 5), torch.randn(3, 2), from_start=True)
    >>> factors.delta().abs().max().item()
    0.0
    """

    A0: Tensor | None
    B0: Tensor | None

    def __init__(
        self,
        A: Tensor,
        B: Tensor,
        S: Tensor | None = None,
        *,
        A0: Tensor | None = None,
        B0: Tensor | None = None,
        from_start: bool = False,
        scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_factors(A, B, S)
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"dropout = {dropout}", expected="0 <= dropout < 1")
        self.A = nn.Parameter(_copy(A))
        self.B = nn.Parameter(_copy(B))
        self.S = None if S is None else nn.Parameter(_copy(S))
        if from_start:
            A0, B0 = self.A, self.scaled_left()
        if (A0 is None) != (B0 is None):
            raise DataError("one of A0 and B0 alone", expected="both or neither")
        if A0 is not None and B0 is not None:
            _check_factors(A0, B0, None)
            if (len(B0), A0.shape[1]) != (len(B), A.shape[1]):
                raise DataError(
                    f"A0 {tuple(A0.shape)} and B0 {tuple(B0.shape)}",
                    expected=f"the sides of A {tuple(A.shape)} and B {tuple(B.shape)}",
                )
            A0, B0 = _copy(A0), _copy(B0)
        self.register_buffer("A0", A0)
        self.register_buffer("B0", B0)
        self.scale, self.dropout, self.enabled = scale, dropout, True

    @property
    def rank(self) -> int:
        return int(self.A.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the matrix that is changed."""
        return int(self.B.shape[0]), int(self.A.shape[1])

    def scaled_left(self) -> Tensor:
        """B with its columns multiplied by S [m, r]."""
        return self.B if self.S is None else self.B * self.S

    def delta(self) -> Tensor:
        """c (B S A - B0 A0) [m, n], dense."""
        return sum_of_products(self.pairs())

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """(left [m, k], right [k, n]) whose products sum to `delta`; rounding spared, see top."""
        left, right, c = self.scaled_left(), self.A, self.scale
        if self.A0 is None or self.B0 is None:
            return [(c * left, right)]
        if self.A0.shape == right.shape:
            return [(c * (left - self.B0), right), (c * self.B0, right - self.A0)]
        return [(c * left, right), (-c * self.B0, self.A0)]


def sum_of_products(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """sum_i L_i R_i as one product: [L_1, L_2, ...] [R_1; R_2; ...].

    >>> sum_of_products([(torch.ones(1, 1), torch.ones(1, 2)), (torch.ones(1, 1), torch.eye(1, 2))])
    tensor([[2., 1.]])
    """
    return torch.cat([left for left, _ in pairs], 1) @ torch.cat([right for _, right in pairs])


class LowRankLinear:
    """The adapters of one layer, by name; patches its forward pass, replaces no module.

    layer   nn.Linear, GPT-2's Conv1D, nn.Conv1d / 2d / 3d (groups too: all use the same A)

    Adapters are no submodules: names, parameters and state of the model stay the pretrained ones.
    They move to the device of the input; products are made in the dtype of the layer's output, so
    bf16 bases and autocast work. A deep copy of the model has adapters of its own. A weight shared
    by several layers needs the same `LowRankFactors` added to each of them.
    Raises `DataError` for other layers and for layers that something else has patched.
    """

    def __init__(self, layer: nn.Module) -> None:
        _check_layer(layer)
        self.layer = layer
        self.adapters: dict[str, LowRankFactors] = {}
        self.enabled = True
        self._add: Callable[..., Tensor] = (
            _add_convolution if isinstance(layer, _ConvNd) else _add_product
        )

    @classmethod
    def of(cls, layer: nn.Module) -> LowRankLinear:
        """The one that patches this layer already, or a new one."""
        patch = layer.__dict__.get("forward")
        if isinstance(patch, MethodType) and isinstance(patch.__self__, cls):
            return patch.__self__
        return cls(layer)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(m, n): outputs and inputs of the layer's matrix."""
        weight = cast(Tensor, self.layer.weight)
        m, n = weight.shape[0], weight[0].numel()
        return (n, m) if is_transposed(self.layer) else (m, n)

    def add(self, name: str, factors: LowRankFactors) -> LowRankFactors:
        """Put an adapter on the layer; returns it. Raises `DataError` for a name in use, a shape
        that doesn't fit or NaN."""
        if not self.adapters:
            _refuse_patched(self.layer)
        if name in self.adapters:
            raise DataError(f"the layer has an adapter {name!r} already", expected="a new name")
        if factors.shape != self.matrix_shape:
            raise DataError(
                f"factors of a matrix {factors.shape}", expected=f"{self.matrix_shape} [out, in]"
            )
        if not all(bool(torch.isfinite(p).all()) for p in factors.parameters()):
            raise DataError(f"factors of adapter {name!r} have NaN or infinite entries")
        self.adapters[name] = factors.to(cast(Tensor, self.layer.weight).device)
        # On the instance. A bound method follows a deep copy of the model to the copied layer.
        cast(Any, self.layer).forward = self._forward
        return factors

    def __getitem__(self, name: str) -> LowRankFactors:
        if name not in self.adapters:
            raise DataError(
                f"no adapter {name!r} on this layer", expected=f"one of {list(self.adapters)}"
            )
        return self.adapters[name]

    def detach(self, name: str | None = None) -> None:
        """Take an adapter (None: all) off; without any, the layer has its own forward again."""
        for gone in list(self.adapters) if name is None else [name]:
            self[gone]
            del self.adapters[gone]
        if not self.adapters and "forward" in self.layer.__dict__:
            del self.layer.forward

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base layer alone inside, to the bit."""
        was, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = was

    def change(self, name: str = "default") -> LowRank:
        """What an adapter does to the weight, S multiplied into B."""
        from passband.parts.edits import LowRank

        factors = self[name]
        A, B = factors.A.detach().clone(), factors.scaled_left().detach().clone()
        return LowRank(
            B,
            A,
            factors.B0,
            factors.A0,
            scale=factors.scale,
            shape=tuple(cast(Tensor, self.layer.weight).shape),
            transposed=is_transposed(self.layer),
        )

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Tensors of every adapter, by its name."""
        return {name: factors.state_dict() for name, factors in self.adapters.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Into adapters of the same names and shapes; raises `DataError` for others."""
        if set(state) != set(self.adapters):
            raise DataError(f"adapters {sorted(state)}", expected=f"{sorted(self.adapters)}")
        for name, tensors in state.items():
            own = self.adapters[name].state_dict()
            shapes = {key: tuple(value.shape) for key, value in tensors.items()}
            expected = {key: tuple(value.shape) for key, value in own.items()}
            if shapes != expected:
                raise DataError(f"adapter {name!r} of shapes {shapes}", expected=f"{expected}")
            self.adapters[name].load_state_dict(tensors)

    def _forward(self, x: Tensor) -> Tensor:
        y: Tensor = type(self.layer).forward(self.layer, x)
        if not self.enabled:
            return y
        for factors in self.adapters.values():
            if factors.enabled:
                if factors.A.device != x.device:
                    factors.to(x.device)
                y = self._with(factors, x, y)
        return y

    def _with(self, factors: LowRankFactors, x: Tensor, y: Tensor) -> Tensor:
        """y, overwritten, with an adapter's part added."""
        left, right, c = factors.scaled_left(), factors.A, factors.scale
        A0, B0 = factors.A0, factors.B0
        drops = factors.dropout > 0 and self.layer.training
        if A0 is not None and B0 is not None and (drops or A0.shape != right.shape):
            y = self._add(y, x, A0, B0, None, None, -c, self.layer)
            A0 = B0 = None
        if drops:
            x = F.dropout(x, factors.dropout)
        return self._add(y, x, right, left, A0, B0, c, self.layer)


def _add_product(
    y: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    A0: Tensor | None,
    B0: Tensor | None,
    c: float,
    layer: nn.Module,
) -> Tensor:
    out: Tensor = _AddLowRank.apply(y.contiguous(), x, A, B, A0, B0, c)  # type: ignore[no-untyped-call]
    return out


def _joined(
    A: Tensor, B: Tensor, A0: Tensor | None, B0: Tensor | None, c: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """K [k, n], R [k, m] with R^T K = c (B A - B0 A0), k = r or 2r; differences in fp32."""
    if A0 is None or B0 is None:
        return A.to(dtype), (c * B.T).to(dtype, memory_format=torch.contiguous_format)
    R = torch.cat([(B - B0).T, B0.T]).mul(c)
    return torch.cat([A, A - A0]).to(dtype), R.to(dtype)


class _AddLowRank(torch.autograd.Function):
    """y += (x K^T) R in place. Frozen factors get no gradient products, y is never copied.

    Narrow matrices lie as [k, ...] rows: BLAS is up to six times faster that way round.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        y: Tensor,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        A0: Tensor | None,
        B0: Tensor | None,
        c: float,
    ) -> Tensor:
        K, R = _joined(A, B, A0, B0, c, y.dtype)
        rows = x.reshape(-1, x.shape[-1]).to(y.dtype)
        h = K @ rows.T
        y.view(-1, y.shape[-1]).addmm_(h.T, R)
        ctx.mark_dirty(y)
        ctx.save_for_backward(rows, h, K, R)
        ctx.scale, ctx.rank, ctx.shape, ctx.dtypes = c, len(A), x.shape, (x.dtype, A.dtype, B.dtype)
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, h, K, R = ctx.saved_tensors
        r, (x_type, A_type, B_type) = ctx.rank, ctx.dtypes
        _, x_needs, A_needs, B_needs, *_ = ctx.needs_input_grad
        g = dy.reshape(-1, dy.shape[-1])
        dx = dA = dB = None
        if x_needs or A_needs:
            dh = R @ g.T
            if x_needs:
                dx = (dh.T @ K).view(ctx.shape).to(x_type)
            if A_needs:  # d(R^T K) = c B dA: both halves of R add up to c B^T
                dA = ((dh if len(K) == r else dh[:r] + dh[r:]) @ rows).to(A_type)
        if B_needs:
            dB = (h[:r] @ g).T.to(B_type, memory_format=torch.contiguous_format).mul_(ctx.scale)
        return dy, dx, dA, dB, None, None, None


_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def _add_convolution(
    y: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    A0: Tensor | None,
    B0: Tensor | None,
    c: float,
    layer: _ConvNd,
) -> Tensor:
    """The layer's own convolution (stride, padding, ...) with K as kernels, then 1 x 1 with R^T."""
    K, R = _joined(A, B, A0, B0, c, y.dtype)
    kernels = K.reshape(len(K), *layer.weight.shape[1:])
    kernels = kernels.repeat(layer.groups, *[1] * (kernels.ndim - 1))
    h = cast(Any, layer)._conv_forward(x.to(y.dtype), kernels, None)
    mix = R.T.reshape(len(layer.weight), len(R), *[1] * (layer.weight.ndim - 2))
    return y + _CONVOLUTIONS[layer.weight.ndim](h, mix, groups=layer.groups)


def _copy(factor: Tensor) -> Tensor:
    dtype = torch.promote_types(factor.dtype, torch.float32)
    return factor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)


def _check_factors(A: Tensor, B: Tensor, S: Tensor | None) -> None:
    fits = A.ndim == B.ndim == 2 and A.shape[0] == B.shape[1] and A.shape[0] > 0
    if not fits or (S is not None and S.shape != A.shape[:1]):
        given = f"A {tuple(A.shape)}, B {tuple(B.shape)}"
        raise DataError(
            given if S is None else f"{given}, S {tuple(S.shape)}",
            expected="A [r, n], B [m, r], S [r], r > 0",
        )


def _check_layer(layer: nn.Module) -> None:
    kinds = isinstance(layer, nn.Linear) or is_transposed(layer)
    kernels = isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd)
    if not (kinds or kernels):
        raise DataError(
            f"a low-rank adapter on {type(layer).__name__}",
            expected="nn.Linear, Conv1D of transformers, nn.Conv1d, nn.Conv2d or nn.Conv3d",
        )
    if type(layer).__name__ == "NonDynamicallyQuantizableLinear":
        raise DataError(
            "the output projection of nn.MultiheadAttention, whose forward is never called",
            expected="a layer that its parent calls",
            mend="leave it out of the targets",
        )
    _refuse_patched(layer)


def _refuse_patched(layer: nn.Module) -> None:
    if "forward" in layer.__dict__:
        raise DataError(
            f"the forward pass of this {type(layer).__name__} is patched already",
            expected="a layer as its class made it",
            mend="detach the other method first",
        )
