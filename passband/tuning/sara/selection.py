"""Which entries of a model's weights are trained: those of tiny absolute value.

    M = 1[|P0| < threshold]       strictly below, over every floating-point parameter

>>> model = nn.Linear(3, 2)
>>> with torch.no_grad():
...     _ = model.weight.copy_(torch.tensor([[0.1, -0.2, 0.3], [-0.4, 0.5, 0.6]]))
...     _ = model.bias.copy_(torch.tensor([0.7, 0.01]))
>>> chosen = select(model, threshold=0.2)
>>> {name: at.tolist() for name, at in chosen.indices.items()}
{'weight': [0], 'bias': [1]}
>>> select(model, fraction=0.5).count
4

Zero-initialised tensors (zero convolutions, fresh norms) are selected entirely: `Selection.zeros`
names them, `exclude` leaves them out. Source: SaRA, arXiv 2409.06633, section 3.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from passband.errors import ConfigError, DataError, PassbandWarning
from passband.parts.selected_tensor import TRAINABLE
from passband.parts.targets import find_targets

Order = Literal["smallest", "largest", "random"]
QUANTILES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5)
MANY = 0.5  # a share above which "tiny" has lost its meaning


@dataclass(frozen=True)
class Selection:
    """
    threshold  below which an entry counts as ineffective
    indices    flat row-major positions [k] by parameter name; tensors without any are left out
    total      entries of all parameters that were looked at
    zeros      names of tensors that were zero throughout and are selected entirely
    fresh      entries of those among them that are vectors (biases of fresh norms): they matter
               more than their number
    skipped    names of parameters that hold no floating-point numbers
    """

    threshold: float
    indices: Mapping[str, Tensor]
    total: int
    zeros: tuple[str, ...] = ()
    fresh: int = 0
    skipped: tuple[str, ...] = field(default=())

    @property
    def count(self) -> int:
        return sum(len(at) for at in self.indices.values())


def select(
    model: nn.Module, *, threshold: float | None = None, fraction: float | None = None,
    order: Order = "smallest", exclude: Sequence[str] = (), targets: Sequence[str] = (),
    without: Sequence[str] = (), seed: int = 0,
) -> Selection:
    """The entries of |P0| below a threshold, or equally many others to compare them with.

    threshold  in units of the weights
    fraction   in (0, 1): the threshold below which this share of all entries lies; used in place
               of a threshold. Entries equal to the threshold are never selected, so ties can leave
               fewer
    order      smallest; largest or random: as many entries as "smallest" would give
    exclude    patterns of parameter names, as in file names: "*.zero_conv.*"
    targets    endings of module names whose `weight` alone is looked at; empty: every parameter
    without    prefixes of parameters that are left out (a fresh head)

    Raises `DataError`, with the quantiles of |P0|, when nothing is below the threshold, and for
    NaN; `ConfigError` for values out of range. Warns when more than half is selected, and when
    half-precision weights will round the trained values.
    """
    weights, skipped = _looked_at(model, exclude, targets, without)
    total = sum(w.numel() for w in weights.values())
    limit = _limit(weights, total, threshold, fraction)
    below = {name: _below(w, limit) for name, w in weights.items()}
    count = sum(len(at) for at in below.values())
    if count == 0:
        raise DataError(
            f"no entry of the weights is below {limit:.3g}", expected=_table(weights, total),
            mend="a larger threshold, or fraction=0.05 for the smallest twentieth",
        )
    if count > MANY * total:
        warnings.warn(
            f"{count / total:.0%} of all entries are below {limit:.3g} and will be trained: these "
            "are hardly the ineffective ones", PassbandWarning, stacklevel=3,
        )
    indices = _ORDERS[order](weights, below, count, seed)
    _warn_of_rounding(weights, indices, limit)
    zeros = tuple(n for n in below if len(below[n]) and not weights[n].detach().any())
    return Selection(
        limit, {n: at for n, at in indices.items() if len(at)}, total, zeros,
        sum(weights[n].numel() for n in zeros if weights[n].ndim == 1), skipped,
    )


def _looked_at(
    model: nn.Module, exclude: Sequence[str], targets: Sequence[str], without: Sequence[str]
) -> tuple[dict[str, nn.Parameter], tuple[str, ...]]:
    """Parameters by name, and the names of those that can't be trained."""
    wanted = {f"{name}.weight" for name in find_targets(model, targets)} if targets else None
    named = {
        name: p for name, p in model.named_parameters()
        if (wanted is None or name in wanted)
        and not any(name == h or name.startswith(f"{h}.") for h in without)
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    weights = {n: p for n, p in named.items() if p.dtype in TRAINABLE and p.numel()}
    if not weights:
        raise DataError(
            "no parameter is left to select from" if not named else
            f"{', '.join(list(named)[:5])} hold integers (a quantised model?)",
            expected="floating-point weights", mend="fewer patterns in `exclude`, or load the "
            "model without quantisation",
        )
    broken = [n for n, p in weights.items() if not bool(torch.isfinite(p.detach()).all())]
    if broken:
        raise DataError(
            f"{', '.join(broken[:5])} hold NaN or infinity", expected="finite weights",
            mend="the checkpoint is damaged: load another one",
        )
    return weights, tuple(n for n in named if n not in weights)


def _limit(
    weights: Mapping[str, Tensor], total: int, threshold: float | None, fraction: float | None
) -> float:
    if fraction is None:
        if threshold is None:
            raise ConfigError(
                "neither a threshold nor a fraction is given", expected="one of them",
                mend="fraction=0.05 trains the smallest twentieth",
            )
        if not threshold > 0 or not math.isfinite(threshold):
            raise ConfigError(
                f"threshold = {threshold}", expected=f"above 0; {_table(weights, total)}",
                mend="2e-3 is the paper's, for text-to-image models",
            )
        return threshold
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction = {fraction}", expected="a share in (0, 1)")
    wanted = math.floor(fraction * total)
    if wanted == 0:
        raise DataError(
            f"a fraction of {fraction:g} of {total} entries is none",
            expected=_table(weights, total), mend=f"at least {1 / total:.2g}",
        )
    return nth_smallest(weights.values(), wanted)


def _below(weight: Tensor, limit: float) -> Tensor:
    # In fp32 or wider: in bf16 the limit itself would be rounded.
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (weight.detach().abs().to(wide) < limit).flatten().nonzero().flatten()


# ---- which ones ------------------------------------------------------------------------------

Indices = dict[str, Tensor]


def _smallest(_: Mapping[str, Tensor], below: Indices, __: int, ___: int) -> Indices:
    return below


def _largest(weights: Mapping[str, Tensor], _: Indices, count: int, __: int) -> Indices:
    total = sum(w.numel() for w in weights.values())
    edge = nth_smallest(weights.values(), total - count - 1) if count < total else -1.0
    return {
        n: (w.detach().abs().float() > edge).flatten().nonzero().flatten()
        for n, w in weights.items()
    }


def _random(weights: Mapping[str, Tensor], _: Indices, count: int, seed: int) -> Indices:
    sizes = [w.numel() for w in weights.values()]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(sum(sizes), generator=generator)[:count].sort().values
    ends = torch.tensor(sizes).cumsum(0)
    parts = torch.tensor_split(chosen, torch.searchsorted(chosen, ends[:-1]))
    return {
        name: (part - end + size).to(weights[name].device)
        for name, part, end, size in zip(weights, parts, ends.tolist(), sizes, strict=True)
    }


_ORDERS: dict[str, Callable[[Mapping[str, Tensor], Indices, int, int], Indices]] = {
    "smallest": _smallest, "largest": _largest, "random": _random,
}


# ---- quantiles of |P0| -------------------------------------------------------------------------


def nth_smallest(tensors: Iterator[Tensor] | Sequence[Tensor], n: int) -> float:
    """The entry of smallest absolute value but n, over all tensors: n lie below it, ties apart.

    One histogram over the leading bits, then a sort within one of its bins: no copy of all
    weights is made.

    >>> nth_smallest([torch.tensor([3.0, -1.0]), torch.tensor([[2.0]])], 1)
    2.0
    """
    tensors = list(tensors)
    counts = torch.zeros(1 << 15, dtype=torch.int64)
    for t in tensors:
        counts += torch.bincount(_bits(t) >> 16, minlength=len(counts)).cpu()
    ends = counts.cumsum(0)
    bin_ = int(torch.searchsorted(ends, n, right=True))
    before = int(ends[bin_ - 1]) if bin_ else 0
    inside = torch.cat([b[(b >> 16) == bin_].cpu() for b in map(_bits, tensors)])
    found = inside.kthvalue(n - before + 1).values
    return float(found.view(torch.float32))


def _bits(tensor: Tensor) -> Tensor:
    """|x| in fp32 as integers, which are in the same order."""
    return tensor.detach().abs().float().flatten().view(torch.int32)


def _table(weights: Mapping[str, Tensor], total: int) -> str:
    """Where thresholds could lie."""
    values = list(weights.values())
    found = [(q, nth_smallest(values, min(total - 1, int(q * total)))) for q in QUANTILES]
    return "quantiles of the absolute weights: " + ", ".join(f"{q:g}: {v:.3g}" for q, v in found)


def _warn_of_rounding(
    weights: Mapping[str, Tensor], indices: Mapping[str, Tensor], limit: float
) -> None:
    """Trained values are fp32; what stands in half-precision weights is rounded."""
    half = {weights[n].dtype for n, at in indices.items() if len(at) and weights[n].itemsize < 4}
    for dtype in sorted(half, key=str):
        step = limit * torch.finfo(dtype).eps
        warnings.warn(
            f"the weights are {str(dtype).removeprefix('torch.')}: values are trained in float32, "
            f"but around {limit:.3g} the weights move in steps of {step:.1g}", PassbandWarning,
            stacklevel=4,
        )
