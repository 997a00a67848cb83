"""Which units are trained: how many of each role over all layers, and which.

    n_role = floor(units of the role over ALL layers * ratio)

drawn over all layers at once, so that layers receive unequal numbers; roles are drawn apart.

    random      without replacement (S2FT-R, the default)
    weight      by the Frobenius norm of the unit's rows or columns (S2FT-W)
    activation  by its mean |activation| on calibration batches (S2FT-A)
    product     of the two (S2FT-S)
    gradient    by the norm of the gradient of its rows or columns (S2FT-G)

each of the last four from the largest or from the smallest.

>>> from passband.tuning.s2ft.coupling import find_structures
>>> structures = find_structures(byte_lm(32, 64, 2, 4))
>>> draw(structures, {"d": 0.05}, seed=2)            # 5 % of the model's 128, layers unequal
{'model.layers.0.mlp.down_proj': {'d': (38, 52)},
 'model.layers.1.mlp.down_proj': {'d': (26, 41, 49, 59)}}
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn

from passband.errors import ConfigError, DataError
from passband.parts.modes import evaluating
from passband.tuning.handle import Calibration
from passband.tuning.s2ft.coupling import ROLES, Part, Structure

Strategy = Literal["random", "weight", "activation", "product", "gradient"]
Units = dict[str, dict[str, tuple[int, ...]]]  # structure -> role -> sorted units
Key = tuple[str, str]  # structure, role


def candidates(structures: Sequence[Structure], role: str) -> list[tuple[str, int]]:
    """Every unit of a role: (structure, unit)."""
    return [(s.name, unit) for s in structures if role in s.parts for unit in range(s.units(role))]


def budgets(structures: Sequence[Structure], ratios: Mapping[str, float]) -> dict[str, int]:
    """Units to train by role. Raises `ConfigError` for a ratio that gives none, with the smallest
    usable one, and `DataError` for a role that the model doesn't have."""
    found = {}
    for role, ratio in ratios.items():
        if role not in ROLES:
            raise ConfigError(f"role {role!r}", expected=f"one of {', '.join(ROLES)}")
        if not 0 <= ratio <= 1:
            raise ConfigError(f"{role} = {ratio}", expected="a share of the units, 0 to 1")
        if ratio == 0:
            continue
        total = len(candidates(structures, role))
        if not total:
            raise DataError(
                f"{role} = {ratio}, but no structure with {role} is recognised in this model",
                expected=f"ratios of {', '.join(sorted({r for s in structures for r in s.parts}))}",
                mend="name the structures: couplings=(Coupling({'u': FIRST}, SECOND), ...)",
            )
        # Exact in decimals: 0.29 * 100 is 28.999... in binary.
        found[role] = math.floor(Fraction(str(ratio)) * total)
        if not found[role]:
            raise ConfigError(
                f"{role} = {ratio} of {total} units is less than one",
                expected=f"at least {_smallest(total)}, the smallest ratio that trains one unit",
            )
    if not found:
        raise ConfigError("every ratio is 0", expected="at least one above 0, such as d=0.02")
    return found


def _smallest(total: int) -> float:
    """1 / total with four digits, rounded up."""
    digits = 4 - math.floor(math.log10(1 / total))
    return float(math.ceil(10**digits / total) / 10**digits)


def draw(
    structures: Sequence[Structure], ratios: Mapping[str, float], *, seed: int = 0,
    scores: Mapping[Key, Tensor] | None = None, order: Literal["largest", "smallest"] = "largest",
    avoid: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
) -> Units:
    """Units by structure and role; `scores` [units] by (structure, role), None: at random.

    avoid  units that another adapter trains already, for adapters that don't overlap
    """
    counts = budgets(structures, ratios)
    chosen: Units = {}
    for role, count in counts.items():
        taken = {(n, u) for n, of in (avoid or {}).items() for u in of.get(role, ())}
        pool = [unit for unit in candidates(structures, role) if unit not in taken]
        if len(pool) < count:
            raise DataError(
                f"{count} units of {role}, of which {len(pool)} are not to be avoided",
                expected="as many that are free", mend="a smaller ratio",
            )
        if scores is None:
            # A stream of its own for each role: what one role draws does not depend on others.
            picked = random.Random(f"{seed} {role}").sample(pool, count)
        else:
            sign = -1.0 if order == "largest" else 1.0
            keys = {s.name: scores[s.name, role].tolist() for s in structures if role in s.parts}
            picked = sorted(pool, key=lambda unit: sign * keys[unit[0]][unit[1]])[:count]
        for name in dict.fromkeys(n for n, _ in sorted(picked)):
            units = tuple(sorted(u for n, u in picked if n == name))
            chosen.setdefault(name, {})[role] = units
    return chosen


# ---- scores --------------------------------------------------------------------------------------


def score(
    model: nn.Module, structures: Sequence[Structure], roles: Sequence[str], strategy: Strategy,
    calibration: Calibration | None,
) -> dict[Key, Tensor] | None:
    """Scores [units] by (structure, role); None for the random strategy."""
    return _SCORES[strategy](model, structures, roles, calibration)


def _weights(
    model: nn.Module, structures: Sequence[Structure], roles: Sequence[str], _: Any
) -> dict[Key, Tensor]:
    tensors = dict(model.named_parameters(remove_duplicate=False))
    wanted = {
        (s.name, role): s.parts[role]
        for s in structures for role in roles if role in s.parts
    }
    _refuse_quantised(wanted.values(), tensors)
    return {key: _norms(part, tensors[part.parameter].detach()) for key, part in wanted.items()}


def _refuse_quantised(parts: Iterable[Part], tensors: Mapping[str, Tensor]) -> None:
    for part in parts:
        tensor = tensors.get(part.parameter)
        if tensor is None or not tensor.is_floating_point():
            raise ConfigError(
                f"{part.parameter} is quantised: it has no norm or gradient to rank by",
                expected="strategy random or activation",
            )


def _norms(part: Part, tensor: Tensor) -> Tensor:
    """Frobenius norm of each unit's rows or columns."""
    matrix = part.of(tensor).float()
    squares = matrix.square().sum(1 - part.dim)
    return squares[part.table.to(squares.device)].sum(1).sqrt()


def _activations(
    model: nn.Module, structures: Sequence[Structure], roles: Sequence[str],
    calibration: Calibration | None,
) -> dict[Key, Tensor]:
    modules = dict(model.named_modules())
    wanted = {
        (s.name, role): s.parts[role]
        for s in structures for role in roles if role in s.parts
    }
    stacked = next((p for p in wanted.values() if p.expert is not None), None)
    if stacked is not None:
        raise ConfigError(
            f"activations inside {stacked.module} can't be seen: its experts share one tensor",
            expected="strategy random, weight or gradient",
        )
    sums: dict[Key, Tensor] = {}
    seen: dict[Key, int] = {}
    mask: list[Tensor | None] = [None]

    def watch(key: Key, part: Part) -> Callable[..., None]:
        def see(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = (inputs[0] if part.inputs else output).detach()
            rows = x.reshape(-1, x.shape[-1]).float()
            if mask[0] is not None and mask[0].numel() == len(rows):
                rows = rows[mask[0].reshape(-1).to(rows.device).bool()]  # padding says nothing
            # Summed over the unit's entries: the mean of each, times the size that all share.
            sizes = rows.abs().sum(0)[part.table.to(rows.device)].mean(1)
            sums[key] = sums.get(key, 0) + sizes
            seen[key] = seen.get(key, 0) + len(rows)

        return see

    with evaluating(model), ExitStack() as hooks, torch.no_grad():
        for key, part in wanted.items():
            handle = modules[part.module].register_forward_hook(watch(key, part))
            hooks.callback(handle.remove)
        for batch in _batches(calibration):
            mask[0] = batch.get("attention_mask")
            model(**batch)
    # A layer that no batch reached has no activation.
    return {k: sums[k] / max(seen[k], 1) if k in sums else _none(wanted[k]) for k in wanted}


def _none(part: Part) -> Tensor:
    return torch.zeros(len(part.table))


def _products(*args: Any) -> dict[Key, Tensor]:
    sizes, norms = _activations(*args), _weights(*args)
    return {key: sizes[key] * norms[key].to(sizes[key].device) for key in sizes}


def _gradients(
    model: nn.Module, structures: Sequence[Structure], roles: Sequence[str],
    calibration: Calibration | None,
) -> dict[Key, Tensor]:
    tensors = dict(model.named_parameters(remove_duplicate=False))
    wanted = {
        (s.name, role): s.parts[role]
        for s in structures for role in roles if role in s.parts
    }
    _refuse_quantised(wanted.values(), tensors)
    names = sorted({part.parameter for part in wanted.values()})
    flags = {n: t.requires_grad for n, t in tensors.items()}
    try:
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                tensor.requires_grad_(name in names)
        weights = [tensors[n] for n in names]
        total = {n: torch.zeros_like(tensors[n], dtype=torch.float32) for n in names}
        with evaluating(model):
            for batch in _batches(calibration):
                loss = _loss(model(**batch))
                found = torch.autograd.grad(loss, weights, allow_unused=True)
                for name, gradient in zip(names, found, strict=True):
                    if gradient is not None:
                        total[name] += gradient
    finally:
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                tensor.requires_grad_(flags[name])
    return {key: _norms(part, total[part.parameter]) for key, part in wanted.items()}


def _loss(out: Any) -> Tensor:
    loss = getattr(out, "loss", None)
    if not isinstance(loss, Tensor):
        raise DataError(
            "calibration batches without labels give no loss",
            expected="keyword arguments of a call of the model, labels included",
        )
    return loss


def _batches(calibration: Calibration | None) -> Sequence[Mapping[str, Any]]:
    batches: Sequence[Mapping[str, Any]] = (calibration or {}).get("task", ())
    if not batches:
        raise DataError(
            "no calibration batches", expected="about one per cent of the job's data",
            mend="attach(model, calibration={'task': [batch, ...]}), or strategy='random'",
        )
    return batches


_SCORES: dict[str, Callable[..., dict[Key, Tensor] | None]] = {
    "random": lambda *_: None, "weight": _weights, "activation": _activations,
    "product": _products, "gradient": _gradients,
}
