"""Measures take tensors and arrays, and answer in kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from passband.errors import DataError

Array: TypeAlias = np.ndarray[Any, Any]
Signal = TypeVar("Signal", Array, Tensor)


def tensors(*signals: Array | Tensor) -> list[Tensor]:
    """Floating tensors, at least single precision; arrays are measured in double."""
    found = []
    for x in signals:
        if isinstance(x, Tensor):
            found.append(x if x.dtype == torch.float64 else x.float())
        else:
            found.append(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)))
    return found


def like(value: Tensor, model: Signal) -> Signal:
    """The value as an array where `model` is one."""
    return value if isinstance(model, Tensor) else value.numpy()


def same_shape(estimate: Tensor, target: Tensor) -> None:
    """Refuses what would be broadcast: [B, 1, L] against [B, L] is B x B comparisons."""
    if estimate.shape != target.shape or estimate.dim() == 0 or estimate.shape[-1] == 0:
        raise DataError(
            f"estimate {tuple(estimate.shape)} against target {tuple(target.shape)}",
            expected="equal shapes [..., L] with at least one sample",
            mend="cut both to one length, and give every estimate a target",
        )


def one_by_one(
    measure: Callable[[Array, Array], float], reference: Signal, estimate: Signal
) -> Signal:
    """A measure of two signals [L] for batches [..., L]: the values [...], in double precision."""
    ref, est = tensors(reference, estimate)
    same_shape(est, ref)
    if not bool(ref.isfinite().all() and est.isfinite().all()):
        raise DataError("signals that are not finite", expected="no NaN and no infinity")
    length = ref.shape[-1]
    rows = zip(
        ref.detach().cpu().reshape(-1, length).numpy(),
        est.detach().cpu().reshape(-1, length).numpy(), strict=True,
    )
    values = torch.tensor([measure(*row) for row in rows], dtype=torch.float64)
    return like(values.reshape(ref.shape[:-1]), reference)
