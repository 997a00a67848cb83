"""How near every convolution of a model is to an isometry, measured and for every image size.

>>> model = nn.Sequential(
...     nn.Conv2d(1, 8, 3, padding=1, padding_mode="circular"), nn.ReLU(),
...     nn.Flatten(), nn.Linear(512, 10))
>>> certificate = certify(model, (1, 8, 8))
>>> row = certificate.convolutions[0]
>>> row.case, row.exists, row.valid, row.sigma_min <= row.sigma_max <= row.bound_max
('columns', True, True, True)
>>> certificate.lipschitz is not None            # the layers were seen to follow each other
True

One forward pass in evaluation mode tells the sizes. The product of the layers' constants is a
Lipschitz constant of the model if each layer's input is the output of the one before, which is
looked at; a sum, a concatenation or any function between them breaks the chain, and the reason is
given. Statements that need circular padding are withdrawn where it is another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from passband.dynamics.orth_cnn.bounds import isometry_bounds
from passband.dynamics.orth_cnn.geometry import Geometry
from passband.dynamics.orth_cnn.lipschitz import constant_of, is_circular
from passband.dynamics.orth_cnn.regularizer import CONVOLUTIONS, TRANSPOSED
from passband.dynamics.orth_cnn.singular_values import spread
from passband.errors import DataError
from passband.parts.modes import evaluating


@dataclass(frozen=True)
class LayerCertificate:
    """
    shape, stride, groups, dilation   of the convolution;  size: pixels of its input
    case, exists, reason              rows, columns or square; whether an orthogonal layer exists
    lorth, alpha, eps_paper, eps      penalty and bounds of err_s for every image size
    bound_min, bound_max              what eps says of all singular values
    sigma_min, sigma_max, err_s       measured at this size, of the circular layer
    lipschitz                         constant of the layer as it is padded, None if there is none
    valid                             whether all this speaks of the layer as it stands
    notes                             which statements don't, and why
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int
    dilation: tuple[int, ...]
    size: tuple[int, ...]
    case: str
    exists: bool
    reason: str
    lorth: float
    alpha: int
    eps_paper: float
    eps: float
    bound_min: float
    bound_max: float
    sigma_min: float
    sigma_max: float
    err_s: float
    lipschitz: float | None
    valid: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Certificate:
    """
    convolutions  one row each, in the order they are called
    constants     (name, kind, constant or None) of every layer that was called
    product       of sigma_max of the convolutions
    lipschitz     of the whole model in evaluation mode; None, with reasons, where it isn't known
    before_head   the same without the last layer, if that is dense
    """

    input_shape: tuple[int, ...]
    convolutions: tuple[LayerCertificate, ...]
    constants: tuple[tuple[str, str, float | None], ...]
    lipschitz: float | None
    before_head: float | None
    reasons: tuple[str, ...]

    @property
    def product(self) -> float:
        return math.prod(row.sigma_max for row in self.convolutions)

    @property
    def lorth(self) -> float:
        return sum(row.lorth for row in self.convolutions)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "product": self.product}


def certify(model: nn.Module, input_shape: Sequence[int]) -> Certificate:
    """
    input_shape  of one example, without the batch
    Raises `DataError` when the model can't take it, has no convolution or weights that are not
    finite.
    """
    example = torch.zeros(1, *input_shape, **_kind(model))
    calls, out = _trace(model, example)
    reasons, constants, rows = _chain(calls, example, out), [], []
    for call in calls:
        found: float | str | None
        if isinstance(call.module, CONVOLUTIONS + TRANSPOSED):
            rows.append(_row(call))
            found = rows[-1].lipschitz
        else:
            found = constant_of(call.module, call.given.shape, call.out.shape)
        if isinstance(found, str):
            reasons.append(f"{call.name}: {found}")
        constants.append((call.name, call.kind, None if isinstance(found, str) else found))
    if not rows:
        raise DataError("no convolution was called", expected="a model with one or more")
    known = [value for _, _, value in constants if value is not None]
    whole = math.prod(known) if not reasons else None
    headed = not reasons and isinstance(calls[-1].module, nn.Linear)
    return Certificate(
        tuple(input_shape), tuple(rows), tuple(constants), whole,
        math.prod(known[:-1]) if headed else None, tuple(reasons),
    )


def certificate_of(
    weight: Tensor, size: Sequence[int], *, name: str = "", kind: str = "convolution",
    stride: Sequence[int] | int = 1, groups: int = 1, dilation: Sequence[int] | int = 1,
    valid: bool = True, notes: Sequence[str] = (),
) -> LayerCertificate:
    """One kernel [M, C / groups, *k] with circular padding on an image of so many pixels.

    valid  whether the layer is the circular one; if not, it gets no Lipschitz constant here
    """
    if not torch.isfinite(weight).all():
        raise DataError(f"{name or 'a weight'} has values that are not finite",
                        expected="finite numbers", mend="train again from before they appeared")
    g = Geometry.of(weight.shape, stride, groups, dilation)
    grid = tuple(-(-n // s) * s for n, s in zip(size, g.stride, strict=True))
    bounds = isometry_bounds(weight, g.stride, groups, dilation=g.dilation)
    found = spread(weight, g.stride, grid, groups, dilation=g.dilation)
    notes = list(notes)
    if any(n < least for n, least in zip(grid, g.least_size, strict=True)):
        least = " x ".join(map(str, g.least_size))
        notes.append(f"below {least} pixels the kernel overlaps itself around the border: bounds "
                     "from L_orth don't speak of this size, measured values do")
    if not g.exists:
        notes.append(f"no orthogonal layer of this shape exists; L_orth ends at {groups * g.floor}")
    return LayerCertificate(
        name, kind, tuple(weight.shape), g.stride, groups, g.dilation, tuple(size), g.case,
        g.exists, g.says(), bounds.lorth, bounds.alpha, bounds.eps_paper, bounds.eps,
        bounds.sigma_min, bounds.sigma_max, found.sigma_min, found.sigma_max, found.err_s,
        found.sigma_max if valid else None, valid, tuple(notes),
    )


# ---- one forward pass ----------------------------------------------------------------------------


@dataclass
class _Call:
    name: str
    module: nn.Module
    kind: str
    given: Tensor
    out: Tensor


def _trace(model: nn.Module, example: Tensor) -> tuple[list[_Call], Tensor]:
    """Calls of all layers that hold no other, in order, with the tensors themselves."""
    calls: list[_Call] = []

    def watch(name: str, module: nn.Module) -> Any:
        kind = type(module).__name__.removeprefix("Parametrized")

        def hook(_: nn.Module, given: tuple[Any, ...], out: Any) -> None:
            if len(given) == 1 and isinstance(given[0], Tensor) and isinstance(out, Tensor):
                calls.append(_Call(name, module, kind, given[0], out))

        return module.register_forward_hook(hook)

    hooks = [
        watch(name or kind_of(module), module) for name, module in model.named_modules()
        if _is_leaf(module) and "parametrizations" not in name.split(".")
    ]
    try:
        with torch.no_grad(), evaluating(model):
            out = model(example)
    except RuntimeError as error:
        raise DataError(
            f"the model can't take an input of shape {list(example.shape[1:])}: {error}",
            expected="the shape of one example, without the batch",
        ) from None
    finally:
        for hook in hooks:
            hook.remove()
    return calls, out


def kind_of(module: nn.Module) -> str:
    return type(module).__name__


def _is_leaf(module: nn.Module) -> bool:
    inner = [name for name, _ in module.named_children() if name != "parametrizations"]
    return not inner and not isinstance(module, nn.ModuleList)


def _chain(calls: Sequence[_Call], example: Tensor, out: Any) -> list[str]:
    """Reasons why the layers don't simply follow each other."""
    reasons, last, before = [], example, "the input"
    for call in calls:
        if call.given is not last:
            reasons.append(f"something happens between {before} and {call.name}")
        last, before = call.out, call.name
    if out is not last:
        reasons.append(f"something happens after {before}")
    return reasons


def _row(call: _Call) -> LayerCertificate:
    layer: Any = call.module
    turned = isinstance(layer, TRANSPOSED)
    image, outputs = (call.out, call.given) if turned else (call.given, call.out)
    size = tuple(image.shape[2:])
    valid = not turned and is_circular(layer, size, outputs.shape[2:])
    row = certificate_of(
        layer.weight, size, name=call.name, kind=call.kind, stride=layer.stride,
        groups=layer.groups, dilation=layer.dilation, valid=valid,
        notes=() if valid else (_why(layer, turned),),
    )
    if valid:
        return row
    constant = constant_of(layer, call.given.shape, call.out.shape)
    return replace(row, lipschitz=constant if isinstance(constant, float) else None)


def _why(layer: Any, turned: bool) -> str:
    about = "singular values are those of the circular layer; existence, the identity with L_orth "\
        "and lower bounds don't speak of this one, its Lipschitz constant does"
    if turned:
        return f"a transposed convolution is cropped at its borders: {about}"
    if layer.padding_mode == "circular":
        return f"circular, but not one output for each stride: {about}"
    return f"padding is {layer.padding_mode!r} {layer.padding}: {about}"


def _kind(model: nn.Module) -> dict[str, Any]:
    parameter = next(model.parameters(), None)
    return {} if parameter is None else {"dtype": parameter.dtype, "device": parameter.device}


# ---- what follows for classifications ------------------------------------------------------------


def certified_radii(logits: Tensor, head: Tensor, lipschitz: float) -> Tensor:
    """[B] Euclidean radii around inputs within which the predicted class can't change.

    logits     [B, C] of a linear head with matrix [C, d] on features of that Lipschitz constant:
               each margin z_i - z_j moves by at most lipschitz ||w_i - w_j|| for each unit

    >>> certified_radii(torch.tensor([[3.0, 1.0]]), torch.eye(2), 1.0)
    tensor([1.4142])
    """
    top = logits.argmax(1)
    margins = logits.gather(1, top[:, None]) - logits
    slopes = lipschitz * torch.cdist(head[top][:, None], head[None])[:, 0]
    radii = margins / slopes.clamp_min(1e-12)
    radii.scatter_(1, top[:, None], float("inf"))
    return radii.amin(1)
