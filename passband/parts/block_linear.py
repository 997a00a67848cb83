"""Training a block of rows or columns of a linear layer, with back-propagation to the block only.

>>> linear = nn.Linear(16, 8)
>>> block = BlockLinear(linear, inputs=torch.tensor([3, 4, 5]))
>>> linear(torch.randn(2, 7, 16)).square().sum().backward()
>>> block.values.grad.shape, linear.weight.grad
(torch.Size([8, 3]), None)

x [..., n] -> y [..., m] = x W^T + b; selected are input units I (columns of W) or output units R:
    inputs    dW[:, I] = dy^T x_I       a copy of x_I is saved for it, x itself isn't
    outputs   dW[R, :] = dy_R^T x       x is saved
    both      dx = dy W                 only where x needs it
The block is a parameter in the weight's own layout and lives in W as well: the forward pass is the
layer's own, one dense product. It is written into W before the next forward pass, so any optimiser,
clipping, accumulation and loss scaling work; frozen parts of W have no gradient at any time.

Source: S2FT (arXiv 2412.06289).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from passband.errors import ConfigError, DataError
from passband.parts.selected_tensor import Parametrisation, check_parametrisation, check_trainable
from passband.parts.written import stamp

if TYPE_CHECKING:
    from passband.parts.edits import Block


class BlockLinear:
    """Patches the forward pass of one `nn.Linear` or GPT-2 `Conv1D`; the module stays in its place.

    linear           the layer; its weight must not be shared with another module
    inputs, outputs  one of them: distinct unit numbers [k] of x or of y, kept sorted
    dtype            of the values; never less precise than the weight
    parametrisation  `value`: the values are the weights; `delta`: their change, from 0
    name             for error messages

    values  [m, k] or [k, n] for a Linear, [k, m] or [n, k] for a Conv1D (whose weight is [n, m])

    The weight is frozen until `detach`; a bias that trains goes on training. A deep copy of the
    model is a model with a block of its own. Raises `DataError` for other layers, patched layers,
    quantised or NaN weights and units that are empty, repeated or out of range.
    """

    def __init__(
        self, linear: nn.Module, *, inputs: Tensor | None = None, outputs: Tensor | None = None,
        dtype: torch.dtype = torch.float32, parametrisation: Parametrisation = "value",
        name: str = "the layer",
    ) -> None:
        if (inputs is None) == (outputs is None):
            raise ConfigError("a block needs inputs or outputs", expected="exactly one of them")
        check_parametrisation(parametrisation)
        transposed = _check_layer(name, linear)
        weight: nn.Parameter = linear.weight  # type: ignore[assignment]
        check_trainable(name, weight)
        self.linear, self.name, self.parametrisation = linear, name, parametrisation
        self.transposed = transposed
        self.on_inputs = inputs is not None
        # The axis of the weight that the units run along.
        self.dim = int(self.on_inputs != transposed)
        units = inputs if inputs is not None else outputs
        self.index = _checked_units(name, units, weight, self.dim)
        self._range = _as_range(self.index)
        self.original = self._part(weight).detach().clone()
        start = self.original.to(torch.promote_types(dtype, weight.dtype), copy=True)
        self.values = nn.Parameter(torch.zeros_like(start) if self._is_delta else start)
        self._written = stamp(self.values)
        self._away = 0
        self._attached = True
        self._trainable = weight.requires_grad
        weight.requires_grad_(False)
        weight.grad = None
        # On the instance. A bound method follows a deep copy of the model to the copied layer.
        linear.forward = self._forward

    @property
    def _is_delta(self) -> bool:
        return self.parametrisation == "delta"

    @property
    def weight(self) -> nn.Parameter:
        """The layer's whole weight."""
        weight: nn.Parameter = self.linear.weight  # type: ignore[assignment]
        return weight

    def sync(self) -> None:
        """Write the block into the weight now, rounded once."""
        self._require_attached()
        if self.weight.dtype != self.original.dtype or self.weight.device != self.original.device:
            raise DataError(
                f"the weight of {self.name} became {self.weight.dtype} on {self.weight.device}",
                expected=f"{self.original.dtype} on {self.original.device}, as when attached",
                mend="move the model first and attach then",
            )
        with torch.no_grad():
            block: Tensor = self.values
            if self._is_delta:
                block = self.original.to(block.dtype) + block
            self._put(self.weight.detach(), block.to(self.weight.dtype))
        self._written = stamp(self.values)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The pretrained layer, to the bit, inside the block; nests. Run it under `no_grad`, or
        backward inside it as well."""
        self._require_attached()
        self._write_pending()
        weight = self.weight.data  # its own version counter: earlier graphs may still run backward
        stood = self._part(weight).clone()
        self._put(weight, self.original)
        self._away += 1
        try:
            yield
        finally:
            self._away -= 1
            self._put(weight, stood)

    def edit_change(self) -> Block:
        """The change of the weight: whole rows or columns, in the values' precision."""
        from passband.parts.edits import Block

        values = self.values.detach()
        if not bool(torch.isfinite(values).all()):
            raise DataError(
                f"trained values of {self.name} are NaN or infinite", expected="finite values",
                mend="lower the learning rate, or clip the gradients",
            )
        if not self._is_delta:
            values = values - self.original.to(values.dtype)
        return Block(
            self.dim, self.index, values.float(), tuple(self.weight.shape),
            transposed=self.transposed,
        )

    def detach(self, restore: bool = True) -> None:
        """Give the layer its own forward pass and its `requires_grad` back.

        restore  True: the original weight, to the bit; False: the trained one
        """
        if not self._attached:
            return
        if self._away:
            raise DataError("detach inside off()", mend="leave the block first")
        if restore:
            self._put(self.weight.detach(), self.original)
        else:
            self.sync()
        del self.linear.forward
        self.weight.requires_grad_(self._trainable)
        self._attached = False

    def _forward(self, x: Tensor) -> Tensor:
        self._write_pending()
        if not torch.is_grad_enabled():
            return _plain(self.linear, x)
        y: Tensor = _PartialBackward.apply(  # type: ignore[no-untyped-call]
            x, self.linear.bias, self.values, self
        )
        return y

    def _write_pending(self) -> None:
        if not self._away and stamp(self.values) != self._written:
            self.sync()

    def _part(self, weight: Tensor) -> Tensor:
        """The block's rows or columns of a tensor in the weight's layout."""
        return self._take(weight, self.dim)

    def _take(self, tensor: Tensor, dim: int) -> Tensor:
        """The block's units along an axis: a view where they follow one another."""
        if self._range is not None:
            return tensor.narrow(dim, *self._range)
        return tensor.index_select(dim, self.index)

    def _put(self, weight: Tensor, block: Tensor) -> None:
        if self._range is not None:
            weight.narrow(self.dim, *self._range).copy_(block)
        else:
            weight.index_copy_(self.dim, self.index, block)

    def _require_attached(self) -> None:
        if not self._attached:
            raise DataError(f"the block of {self.name} is detached", mend="attach a new one")


class _PartialBackward(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, bias: Tensor | None, values: Tensor, block: BlockLinear
    ) -> Tensor:
        y = _plain(block.linear, x)
        need_x, need_bias, need_block, _ = ctx.needs_input_grad
        kept = None
        if need_block:
            # y's type is that of the product, another one than x's under autocast.
            kept = x.to(y.dtype)
            if block.on_inputs:
                # A copy even where the units follow one another: a view would keep all of x.
                kept = block._take(kept, -1).clone() if block._range else block._take(kept, -1)
        ctx.save_for_backward(kept, block.weight if need_x else None)
        ctx.block, ctx.need_bias = block, need_bias
        ctx.types = (x.dtype, bias.dtype if bias is not None else None, values.dtype)
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        kept, weight = ctx.saved_tensors
        block: BlockLinear = ctx.block
        x_type, bias_type, values_type = ctx.types
        dx = dbias = dblock = None
        with torch.autocast(dy.device.type, enabled=False):
            if weight is not None:
                w = weight.to(dy.dtype)
                dx = (dy @ (w.T if block.transposed else w)).to(x_type)
            if ctx.need_bias:
                dbias = dy.reshape(-1, dy.shape[-1]).sum(0).to(bias_type)
            if kept is not None:
                seen = dy if block.on_inputs else block._take(dy, -1)
                left, right = _rows(seen), _rows(kept)
                dblock = right.T @ left if block.transposed else left.T @ right
                dblock = dblock.to(values_type)
        return dx, dbias, dblock, None


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _plain(linear: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = type(linear).forward(linear, x)
    return y


def _check_layer(name: str, linear: nn.Module) -> bool:
    """Whether the weight is [inputs, outputs] (Conv1D); `DataError` where it's no plain layer."""
    kind = type(linear)
    conv1d = kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
    # nn.MultiheadAttention reads its output layer's weight and never calls its forward pass.
    plain = kind.forward is nn.Linear.forward and "NonDynamically" not in kind.__name__
    if not (conv1d or plain):
        raise DataError(
            f"{name} is a {kind.__name__}", expected="nn.Linear or transformers' Conv1D",
            mend="select entries of its weight with passband.parts.selective.Selected",
        )
    if "forward" in vars(linear):
        raise DataError(
            f"the forward pass of {name} is patched already", expected="the layer's own",
            mend="detach the other block, or remove the hook first",
        )
    return conv1d


def _checked_units(name: str, units: Tensor | None, weight: Tensor, dim: int) -> Tensor:
    assert units is not None  # the caller has looked
    whole = not (units.is_floating_point() or units.is_complex() or units.dtype == torch.bool)
    if units.dim() != 1 or not whole or not units.numel():
        raise DataError(
            f"units of {name} are {units.dtype} {tuple(units.shape)}",
            expected="a list of at least one unit number [k]",
        )
    units = units.to(weight.device, torch.int64).sort().values
    low, high = int(units[0]), int(units[-1])
    if low < 0 or high >= weight.shape[dim]:
        raise DataError(
            f"unit {low if low < 0 else high} of {name}", expected=f"0 to {weight.shape[dim] - 1}"
        )
    if bool((units[1:] == units[:-1]).any()):
        raise DataError(f"units of {name} are repeated", expected="distinct unit numbers")
    return units


def _as_range(index: Tensor) -> tuple[int, int] | None:
    """(start, length) where sorted units follow one another."""
    start, length = int(index[0]), len(index)
    return (start, length) if int(index[-1]) - start + 1 == length else None
