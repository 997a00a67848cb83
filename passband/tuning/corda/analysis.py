"""What a decomposition is worth: without the smallest components, what does the model still know?

    co-svd   components of W C_d, C_d the damped second moments of the inputs (CorDA)
    asvd     components of W diag(s), s_j = (mean |x_j|)^alpha + 1e-6         (arXiv 2312.05821)
    plain    components of W

In all three, component i of W is u_i u_i^T W: undoing what stands on the right of W leaves the left
vectors as they are.

>>> model, batches = byte_lm(32, 64, 2, 4), [{"input_ids": torch.randint(256, (8, 32))}]
>>> layers = find_targets(model, "all-linear")
>>> parts = decomposed(layers, collect(model, layers, batches), "co-svd")
>>> with composed(model, [without(model, parts, drop=16)]):
...     perplexity(model, batches) > 1
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import ConfigError, DataError, UnknownNameError
from passband.parts.edits import Edit, LowRank, composed, fingerprint
from passband.parts.targets import find_targets, is_transposed, weight_of
from passband.tuning.corda.calibration import Batch, collect
from passband.tuning.corda.covariance import Covariance
from passband.tuning.corda.orientation import DAMPING, damped, directions

Parts = Mapping[str, Tensor]  # U [m, R] of each layer, the most important direction first


def decomposed(
    layers: Mapping[str, nn.Module], found: Mapping[str, Covariance] | None, kind: str, *,
    damping: float = DAMPING, alpha: float = 0.5,
) -> Parts:
    """Directions of all layers.

    found   covariances by layer, as `collect` gives them; not needed for "plain"
    alpha   exponent of ASVD
    """
    if kind not in KINDS:
        raise UnknownNameError("decomposition", kind, KINDS)
    return {
        name: KINDS[kind](weight_of(layer)[0], name, found or {}, damping, alpha)
        for name, layer in layers.items()
    }


def _of(found: Mapping[str, Covariance], name: str) -> Covariance:
    if name not in found:
        raise DataError(
            f"no covariance of {name}", expected="those of all layers",
            mend="collect(model, layers, batches)",
        )
    return found[name]


def _co_svd(
    weight: Tensor, name: str, found: Mapping[str, Covariance], damping: float, _: float
) -> Tensor:
    return directions(weight, damped(_of(found, name).matrix(), damping))


def _asvd(
    weight: Tensor, name: str, found: Mapping[str, Covariance], _: float, alpha: float
) -> Tensor:
    columns = _of(found, name).mean_absolute().double() ** alpha + 1e-6
    return directions(weight.detach().double() * columns.to(weight.device))


def _plain(
    weight: Tensor, name: str, found: Mapping[str, Covariance], damping: float, alpha: float
) -> Tensor:
    return directions(weight)


KINDS: dict[str, Callable[[Tensor, str, Mapping[str, Covariance], float, float], Tensor]] = {
    "plain": _plain, "asvd": _asvd, "co-svd": _co_svd,
}


def without(model: nn.Module, parts: Parts, drop: int) -> Edit:
    """The edit that takes the `drop` least important components out of every layer.

    Raises `ConfigError` where a layer has not that many.
    """
    modules = dict(model.named_modules())
    changes = {}
    for name, u in parts.items():
        if not 0 < drop <= u.shape[1]:
            raise ConfigError(
                f"drop = {drop} components of {name}", expected=f"1 to {u.shape[1]}"
            )
        layer = modules[name]
        gone = u[:, u.shape[1] - drop :]
        rows = gone.T @ weight_of(layer)[0].detach().to(gone)
        shape = tuple(getattr(layer, "weight").shape)  # noqa: B009
        changes[f"{name}.weight"] = LowRank(
            -gone.float(), rows.float(), shape=shape, transposed=is_transposed(layer)
        )
    return Edit(changes, fingerprint(model), {"method": "without", "drop": drop})


@torch.no_grad()
def perplexity(model: nn.Module, batches: Sequence[Batch]) -> float:
    """exp of the mean loss of a causal language model over all tokens but each sample's first.

    batches  with `input_ids`; `attention_mask` and `labels` (-100: not asked) where there are any
    """
    total, count = 0.0, 0
    training = model.training
    model.eval()
    try:
        for batch in batches:
            ids, mask = batch["input_ids"], batch.get("attention_mask")
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            labels = batch.get("labels", ids)
            labels = labels if mask is None else labels.masked_fill(mask == 0, -100)
            wanted = labels[:, 1:].flatten()
            total += float(F.cross_entropy(logits.flatten(0, 1), wanted, reduction="sum"))
            count += int((wanted != -100).sum())
    finally:
        model.train(training)
    if count == 0:
        raise DataError("no token to predict in these batches", expected="texts of two tokens")
    return math.exp(total / count)


def compare(
    model: nn.Module, calibration: Sequence[Batch], batches: Sequence[Batch],
    drops: Sequence[int], *, kinds: Sequence[str] = ("plain", "asvd", "co-svd"),
    targets: tuple[str, ...] = ("all-linear",), damping: float = DAMPING, alpha: float = 0.5,
    measure: Callable[[nn.Module, Sequence[Any]], float] = perplexity,
) -> dict[str, dict[int, float]]:
    """Perplexity on `batches` by kind and number of components dropped; the model stays as it is.

    >>> model, batches = byte_lm(32, 64, 2, 4), [{"input_ids": torch.randint(256, (8, 32))}]
    >>> table = compare(model, batches, batches, drops=[8, 16])
    >>> list(table), list(table["co-svd"])
    (['plain', 'asvd', 'co-svd'], [8, 16])
    """
    layers = find_targets(model, targets)
    found = collect(model, layers, calibration) if set(kinds) != {"plain"} else None
    table: dict[str, dict[int, float]] = {}
    for kind in kinds:
        parts = decomposed(layers, found, kind, damping=damping, alpha=alpha)
        table[kind] = {}
        for drop in drops:
            with composed(model, [without(model, parts, drop)], check=False):
                table[kind][drop] = measure(model, batches)
    return table
