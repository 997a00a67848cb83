"""Optimisers for values whose places move: every slot has an age, or no state of its own.

>>> values = nn.Parameter(torch.zeros(4))
>>> optimizer = SlotAdamW([values], lr=0.1)
>>> values.grad = torch.ones(4)
>>> optimizer.step()
>>> newborn = torch.tensor([2])                     # slot 2 now stands for another weight
>>> optimizer.seed(values, newborn, m=torch.zeros(1), v=torch.zeros(1), age=0)
>>> optimizer.step()
>>> optimizer.state[values]["age"]
tensor([2, 2, 1, 2], dtype=torch.int32)

`SlotAdamW`: Adam whose bias correction counts the gradients that each slot's moments have seen,
    m = b1 m + (1 - b1) g ;  v = b2 v + (1 - b2) g^2 ;  age += 1
    x -= lr (m / (1 - b1^age)) / (sqrt(v / (1 - b2^age)) + eps)
`SM3`: one accumulator for each row and column of the weight that the slots stand in,
    nu = min(r_i, c_j) + g^2 ;  r_i = max(r_i, nu) ;  c_j = max(c_j, nu)
    x -= lr g / sqrt(nu + eps)

Sources: SpIEL (arXiv 2401.16405); AdamW (1711.05101); SM3 (1901.11150).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from passband.errors import ConfigError, DataError

EpsPlacement: TypeAlias = Literal["torch", "before"]
Place: TypeAlias = tuple[Tensor, int, int]


def gather_state(optimizer: Optimizer, parameter: Tensor, keep: Tensor) -> None:
    """Shrink an optimiser's state of `parameter` to the slots where `keep` [k] (bool) holds.

    For `Selected.keep`, with any optimiser whose state has one entry for each value. The order of
    the two calls doesn't matter.
    """
    state = optimizer.state.get(parameter, {})
    for key in getattr(optimizer, "per_slot", tuple(state)):
        old = state.get(key)
        if isinstance(old, Tensor) and old.shape == keep.shape:
            state[key] = old[keep.to(old.device)]


class SlotOptimizer(Optimizer, ABC):
    """Base: state tensors that keep their own types when they are loaded."""

    per_slot: ClassVar[tuple[str, ...]] = ()

    def gather(self, parameter: Tensor, keep: Tensor) -> None:
        """Keep the state of the slots where `keep` [k] (bool) holds."""
        gather_state(self, parameter, keep)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but ages stay integers and moments in the type they were saved in."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for key, saved in state_dict["state"].get(number, {}).items():
                if isinstance(saved, Tensor):
                    self.state[parameter][key] = saved.detach().to(parameter.device, copy=True)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._update(parameter, parameter.grad, group)
        return loss

    @abstractmethod
    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """One parameter's step, in place."""


class SlotAdamW(SlotOptimizer):
    """AdamW with an age for each element (int32, state key `age`).

    lr, betas, eps  as in `torch.optim.AdamW`
    weight_decay    decoupled; of the values, so of the change where they are changes
    eps_placement   `torch`: as above, decay before the update; with equal ages the same bits as
                    `torch.optim.AdamW(foreach=False)`.
                    `before`: eps joins sqrt(v) before the correction and decay comes after the
                    update, as in SpIEL and older Hugging Face code:
                    x -= lr m / ((sqrt(v) + eps) (1 - b1^age) / sqrt(1 - b2^age)) ; x -= lr wd x
    moments_dtype   of m and v between steps (torch.bfloat16 halves them); None: the values'.
                    bfloat16 rounds a decay by less than 1/512 away: take b2 <= 0.99 with it

    An age is the number of gradients inside m and v: the first update of a new slot has age 1.
    """

    per_slot: ClassVar[tuple[str, ...]] = ("age", "exp_avg", "exp_avg_sq")

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.01, *, eps_placement: EpsPlacement = "torch",
        moments_dtype: torch.dtype | None = None,
    ) -> None:
        _at_least_0(lr=lr, eps=eps, weight_decay=weight_decay)
        _below_1(**{"betas[0]": betas[0], "betas[1]": betas[1]})
        if eps_placement not in get_args(EpsPlacement):
            raise ConfigError(f"eps_placement={eps_placement!r}", expected="'torch' or 'before'")
        if moments_dtype is not None and not moments_dtype.is_floating_point:
            raise ConfigError(f"moments_dtype={moments_dtype}", expected="a floating-point type")
        self.moments_dtype = moments_dtype
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "eps_placement": eps_placement,
        }
        super().__init__(params, defaults)

    def seed(
        self, parameter: nn.Parameter, slots: Tensor, m: Tensor | float = 0.0,
        v: Tensor | float = 0.0, age: Tensor | int = 0,
    ) -> None:
        """Give newborn slots [n] their first moments, second moments and ages.

        For means g of c gradients and g2 of their squares: m = g (1 - b1^c), v = g2 (1 - b2^c),
        age = c are what the optimiser would hold had it seen g and g2 at each of c steps.
        """
        state = self._state(parameter)
        slots = slots.to(parameter.device)
        for key, new in (("exp_avg", m), ("exp_avg_sq", v), ("age", age)):
            moment = state[key]
            filled = torch.as_tensor(new, device=moment.device).to(moment.dtype)
            moment[slots] = filled

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            moments = self.moments_dtype or parameter.dtype
            state["age"] = torch.zeros_like(parameter, dtype=torch.int32)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=moments)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=moments)
        return state

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if not parameter.numel():
            return
        state = self._state(parameter)
        lr, (beta1, beta2), eps = float(group["lr"]), group["betas"], group["eps"]
        decay, before = group["weight_decay"], group["eps_placement"] == "before"
        age = state["age"].add_(1)
        # In place where the moments have the values' type; through a copy where they are coarser.
        m = state["exp_avg"].to(parameter.dtype).lerp_(gradient, 1 - beta1)
        v = state["exp_avg_sq"].to(parameter.dtype).mul_(beta2)
        v.addcmul_(gradient, gradient, value=1 - beta2)
        state["exp_avg"].copy_(m)
        state["exp_avg_sq"].copy_(v)
        if decay and not before:
            parameter.mul_(1 - lr * decay)
        lowest, highest = (int(end) for end in age.aminmax())
        if lowest == highest:
            _step_together(parameter, m, v, lowest, lr, beta1, beta2, eps, before)
        else:
            powers = _powers(beta1, beta2, lowest, highest).to(age.device)
            _step_apart(parameter, m, v, age - lowest, powers, lr, eps, before)
        if decay and before:
            parameter.add_(parameter, alpha=-lr * decay)


def _step_together(
    x: Tensor, m: Tensor, v: Tensor, age: int, lr: float, beta1: float, beta2: float, eps: float,
    before: bool,
) -> None:
    """All slots of one age: the corrections are numbers, as in torch."""
    step, root = lr / (1 - beta1**age), (1 - beta2**age) ** 0.5
    if before:
        x.addcdiv_(m, v.sqrt().add_(eps), value=-step * root)
    else:
        x.addcdiv_(m, (v.sqrt() / root).add_(eps), value=-step)


def _step_apart(
    x: Tensor, m: Tensor, v: Tensor, row: Tensor, powers: Tensor, lr: float, eps: float,
    before: bool,
) -> None:
    """A correction for each slot, `powers[:, row]`; rounded as torch rounds: to the same bits."""
    step, root = -lr / powers[0], powers[1]
    if before:
        size = _look_up((step * root).to(x.dtype), row)
        x.add_(size.mul_(m).div_(v.sqrt().add_(eps)))
    else:
        denominator = v.sqrt().div_(_look_up(root.to(x.dtype), row)).add_(eps)
        x.add_(_look_up(step.to(x.dtype), row).mul_(m).div_(denominator))


def _look_up(table: Tensor, row: Tensor) -> Tensor:
    return table.index_select(0, row.flatten()).view_as(row)


def _powers(beta1: float, beta2: float, lowest: int, highest: int) -> Tensor:
    """1 - b1^age and sqrt(1 - b2^age) in float64 for ages lowest ... highest: [2, ages]."""
    size = max(1024, 1 << highest.bit_length())  # doubles: each power is computed about once
    return _table(beta1, beta2, size)[:, lowest : highest + 1]


@lru_cache(maxsize=8)
def _table(beta1: float, beta2: float, size: int) -> Tensor:
    # Python's powers, as in `_step_together`: vectorised ones differ in the last bit.
    rows = [(1 - beta1**age, (1 - beta2**age) ** 0.5) for age in range(size)]
    return torch.tensor(rows, dtype=torch.float64).T.contiguous()


class SM3(SlotOptimizer):
    """Adaptive steps from row and column maxima: memory of rows + columns, whatever k is.

    places          `places(parameter)` gives (indices [k], rows, columns) of the weight that the
                    values stand in, asked at each step: `Selected.place`. None, or no such
                    function: the parameter is dense, its first axis the rows
    momentum        u = (1 - momentum) u_now + momentum u_before; 0 keeps nothing for slots
    eps             inside the root
    weight_decay    decoupled, after the update
    row_cover_only  keep the rows' accumulators only: nu = r_i + g^2

    State keys `rows` and `columns` (float32 at least), and `momentum` [k] if any.
    """

    per_slot: ClassVar[tuple[str, ...]] = ("momentum",)

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.0, eps: float = 1e-8,
        weight_decay: float = 0.0, *, places: Callable[[Tensor], Place | None] | None = None,
        row_cover_only: bool = False,
    ) -> None:
        _at_least_0(lr=lr, eps=eps, weight_decay=weight_decay)
        _below_1(momentum=momentum)
        self.places, self.row_cover_only = places, row_cover_only
        defaults = {"lr": lr, "momentum": momentum, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def covers(self, parameter: nn.Parameter) -> tuple[Tensor, Tensor | None]:
        """Accumulators of the rows and of the columns (None if not kept); zeros before a step."""
        _, rows, columns = self._place(parameter)
        state = self._state(parameter, rows, columns)
        return state["rows"], state.get("columns")

    def seed(self, parameter: nn.Parameter, slots: Tensor) -> None:
        """Newborn slots [n] start without momentum; they have no other state."""
        if "momentum" in self.state[parameter]:
            self.state[parameter]["momentum"][slots.to(parameter.device)] = 0

    def _place(self, parameter: Tensor) -> Place:
        place = self.places(parameter) if self.places is not None else None
        if place is None:
            rows = parameter.shape[0] if parameter.dim() else 1
            everything = torch.arange(parameter.numel(), device=parameter.device)
            return everything, rows, parameter.numel() // max(rows, 1)
        if place[0].numel() != parameter.numel():
            raise DataError(
                f"{place[0].numel()} places for {parameter.numel()} values",
                expected="an index for each value",
            )
        return place

    def _state(self, parameter: Tensor, rows: int, columns: int) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            precise = torch.promote_types(parameter.dtype, torch.float32)
            state["rows"] = parameter.new_zeros(rows, dtype=precise)
            if not self.row_cover_only:
                state["columns"] = parameter.new_zeros(columns, dtype=precise)
        return state

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        indices, rows, columns = self._place(parameter)
        state = self._state(parameter, rows, columns)
        covers = [(state["rows"], indices // columns)]
        if not self.row_cover_only:
            covers.append((state["columns"], indices % columns))
        g = gradient.flatten().to(state["rows"].dtype)
        # All of a step's nu come from the accumulators as they were before it.
        first, *second = (accumulator.index_select(0, at) for accumulator, at in covers)
        nu = torch.minimum(first, *second, out=first) if second else first
        nu.addcmul_(g, g)
        for accumulator, at in covers:
            accumulator.scatter_reduce_(0, at, nu, "amax")
        update = g.div(nu.add_(group["eps"]).sqrt_()).view_as(gradient)
        if mu := group["momentum"]:
            previous = state.get("momentum")
            if previous is None:
                previous = state["momentum"] = torch.zeros_like(update)
            update = previous.mul_(mu).add_(update, alpha=1 - mu)
        lr = float(group["lr"])
        parameter.add_(update.to(parameter.dtype), alpha=-lr)
        if group["weight_decay"]:
            parameter.add_(parameter, alpha=-lr * group["weight_decay"])


def _at_least_0(**numbers: float) -> None:
    for name, number in numbers.items():
        if not float(number) >= 0:
            raise ConfigError(f"{name}={number}", expected=f"{name} >= 0")


def _below_1(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 <= number < 1:
            raise ConfigError(f"{name}={number}", expected=f"0 <= {name} < 1")
