"""A linear layer whose weight gets a gradient at some entries only.

>>> layer = nn.Linear(16, 8).requires_grad_(False)
>>> values = nn.Parameter(torch.zeros(2))                    # changes of two entries of the weight
>>> at = torch.tensor([3, 40])
>>> sampled = SampledLinear(layer, values, lambda: at)
>>> layer(torch.randn(5, 16)).square().sum().backward()
>>> values.grad.shape, layer.weight.grad
(torch.Size([2]), None)
>>> sampled.detach()

    y = x W^T + b          dx = dy W          dvalues_n = sum_b dy[b, i_n] x[b, j_n]

The forward pass is the layer's own; whoever owns the values writes them into W. For few entries of
a large weight this takes a third off the time of a training step (`sampled_product.is_faster`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from passband.errors import DataError
from passband.parts.sampled_product import sampled_product
from passband.parts.targets import is_transposed


def can_sample(layer: nn.Module) -> bool:
    """Whether it is a plain `nn.Linear` or Conv1D that nothing has patched."""
    plain = type(layer).forward is nn.Linear.forward and "NonDyn" not in type(layer).__name__
    return (plain or is_transposed(layer)) and "forward" not in layer.__dict__


class SampledLinear:
    """Patches the forward pass of one layer, whose weight is frozen.

    values    [k], gets the gradient of the weight at `indices()`, flat row-major [k]
    on_dense  asked in each backward pass: None, or a function that is called with the dense
              gradient, which is made for it then
    Raises `DataError` for other layers.
    """

    def __init__(
        self, layer: nn.Module, values: nn.Parameter, indices: Callable[[], Tensor],
        on_dense: Callable[[], Callable[[Tensor], None] | None] = lambda: None,
    ) -> None:
        if not can_sample(layer):
            raise DataError(
                f"a {type(layer).__name__}, or a layer that is patched",
                expected="a plain nn.Linear or transformers' Conv1D",
            )
        self.layer, self.values, self.indices, self.on_dense = layer, values, indices, on_dense
        self.transposed = is_transposed(layer)
        cast(Tensor, layer.weight).requires_grad_(False)
        # On the instance. A bound method follows a deep copy of the model to the copied layer.
        cast(Any, layer).forward = self._forward

    def detach(self) -> None:
        """Give the layer its own forward pass back."""
        del self.layer.forward

    def _forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return _plain(self.layer, x)
        y: Tensor = _Sampled.apply(x, self.layer.bias, self.values, self)  # type: ignore[no-untyped-call]
        return y

    def gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """Of the values [k], from dy [B, m] and x [B, n]."""
        left, right = (x, dy) if self.transposed else (dy, x)
        at, look = self.indices(), self.on_dense()
        if look is None:
            width = right.shape[1]
            return sampled_product(left, right, at // width, at % width)
        dense = left.mT @ right
        look(dense)
        return dense.view(-1).index_select(0, at)


class _Sampled(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, bias: Tensor | None, values: Tensor, owner: SampledLinear
    ) -> Tensor:
        y = _plain(owner.layer, x)
        # y's type is that of the product, another one than x's under autocast.
        kept = x.to(y.dtype) if ctx.needs_input_grad[2] else None
        ctx.save_for_backward(kept, owner.layer.weight if ctx.needs_input_grad[0] else None)
        ctx.owner = owner
        ctx.types = (x.dtype, None if bias is None else bias.dtype, values.dtype)
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        owner: SampledLinear = ctx.owner
        x_type, bias_type, values_type = ctx.types
        dx = dbias = dvalues = None
        with torch.autocast(dy.device.type, enabled=False):
            if weight is not None:
                w = weight.to(dy.dtype)
                dx = (dy @ (w.mT if owner.transposed else w)).to(x_type)
            if ctx.needs_input_grad[1]:
                dbias = dy.flatten(0, -2).sum(0).to(bias_type)
            if x is not None:
                dvalues = owner.gradient(dy.flatten(0, -2), x.flatten(0, -2)).to(values_type)
        return dx, dbias, dvalues, None


def _plain(layer: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = type(layer).forward(layer, x)
    return y
