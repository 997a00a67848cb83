"""Second moments of what goes into each layer, over calibration batches.

    C = (1/N) sum_i X_i^T X_i / max(X_i)^2     X_i [T_i, n] tokens of sample i, but masked ones

Layers that see the same input (query, key, value; gate, up) share one matrix. Blocks are done one
after the other, with the hidden states of one block as the inputs of the next, so that one block's
matrices are alive at a time; models without a list of blocks are run whole.

>>> for names, covariance in stream(model, layers, batches):
...     names, covariance.matrix().shape
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from passband.errors import DataError
from passband.parts.targets import blocks

Batch = Mapping[str, Any]  # keyword arguments of one call of the model


@dataclass
class Covariance:
    """Sum over samples, in float32; `matrix` is their mean.

    scaled   divide each sample by |its signed maximum|, as the paper does
    tokens   seen so far, masked ones left out
    """

    name: str
    scaled: bool = True
    samples: int = 0
    tokens: int = 0
    total: Tensor | None = None
    absolute: Tensor | None = field(default=None, repr=False)  # sum of |x| by column, for ASVD

    def add(self, x: Tensor, mask: Tensor | None) -> None:
        """x [B, T, n] or [B, n]; mask [B, T] or none."""
        rows = x.detach().float()
        rows = rows[:, None] if rows.ndim == 2 else rows.flatten(1, -2)
        if self.total is None:
            n = rows.shape[-1]
            self.total = torch.zeros(n, n, device=rows.device)
            self.absolute = torch.zeros(n, device=rows.device)
        for i, sample in enumerate(rows):
            if mask is not None and mask.shape[1] == len(sample):
                sample = sample[mask[i].bool()]
            if len(sample):
                self._add(sample)

    def _add(self, sample: Tensor) -> None:
        if not bool(torch.isfinite(sample).all()):
            raise DataError(
                f"the inputs of {self.name} have NaN or infinity", expected="finite activations",
                mend="calibrate in float32, or look for a damaged calibration sample",
            )
        assert self.total is not None and self.absolute is not None
        self.absolute += sample.abs().sum(0)
        # The signed maximum: where no entry is positive it is the one nearest to zero.
        largest = sample.max().abs() if self.scaled else sample.new_ones(())
        if largest > 0:
            sample = sample / largest
        self.total.addmm_(sample.T, sample)
        self.samples += 1
        self.tokens += len(sample)

    def matrix(self) -> Tensor:
        """C [n, n]. Raises `DataError` when the layer saw nothing but zeros."""
        if self.total is None or self.samples == 0:
            raise DataError(
                f"{self.name} was never called in calibration", expected="batches that reach it",
                mend="leave it out of the targets, or set on_missing='svd'",
            )
        if not bool(self.total.any()):
            raise DataError(
                f"the inputs of {self.name} are all zero", expected="activations",
                mend="calibrate with real samples",
            )
        return self.total / self.samples

    def mean_absolute(self) -> Tensor:
        assert self.absolute is not None
        return self.absolute / max(self.tokens, 1)


def collect(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Batch], *,
    scaled: bool = True,
) -> dict[str, Covariance]:
    """Covariances of the inputs of layers, by name; layers with one input share one object."""
    found: dict[str, Covariance] = {}
    for part in stream(model, layers, batches, scaled=scaled):
        found.update(part)
    return found


def stream(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Batch], *,
    scaled: bool = True,
) -> Iterator[dict[str, Covariance]]:
    """The same, block by block: one block's matrices at a time."""
    if not batches:
        raise DataError(
            "no calibration batches", expected="at least one",
            mend="attach(model, calibration={'knowledge': [...], 'task': [...]})",
        )
    stack = blocks(model)
    inside = [
        {n: m for n, m in layers.items() if any(m is part for part in block.modules())}
        for block in stack
    ]
    rest = {n: m for n, m in layers.items() if not any(n in part for part in inside)}
    with _evaluating(model), torch.no_grad():
        states = _inputs_of(model, stack[0], batches) if any(inside) else []
        if rest or states is None:
            names = layers if states is None else rest
            yield _run(names, lambda: [model(**batch) for batch in batches], batches, scaled)
        if states is None:
            return
        for block, part in zip(stack, inside, strict=True):
            yield from _advance(block, part, states, scaled)


def _advance(
    block: nn.Module, layers: Mapping[str, nn.Module], states: list[_Call], scaled: bool
) -> Iterator[dict[str, Covariance]]:
    def forward() -> None:
        for call in states:
            out = block(call.hidden, *call.args, **call.kwargs)
            call.after = out[0] if isinstance(out, tuple) else out

    found = _run(layers, forward, [c.batch for c in states], scaled)
    if found:
        yield found
    for call in states:
        call.hidden = call.after


@dataclass
class _Call:
    """What one batch brings to a block."""

    batch: Batch
    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    after: Any = None


class _Stop(Exception):
    """The first block was reached: nothing behind it needs to run."""


def _inputs_of(
    model: nn.Module, first: nn.Module, batches: Sequence[Batch]
) -> list[_Call] | None:
    """What reaches the first block; None where blocks don't pass a tensor on."""
    calls: list[_Call] = []
    current: list[Batch] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not args or not isinstance(args[0], Tensor):
            hidden = kwargs.pop("hidden_states", None)
            args = (hidden, *args)
        calls.append(_Call(current[0], args[0], tuple(args[1:]), dict(kwargs)))
        raise _Stop

    hook = first.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for batch in batches:
            current[:] = [batch]
            try:
                model(**batch)
            except _Stop:
                continue
    finally:
        hook.remove()
    simple = len(calls) == len(batches) and all(isinstance(c.hidden, Tensor) for c in calls)
    return calls if simple else None


def _run(
    layers: Mapping[str, nn.Module], forward: Any, batches: Sequence[Batch], scaled: bool
) -> dict[str, Covariance]:
    """Covariances while `forward` runs over the batches, in their order."""
    found: dict[str, Covariance] = {}
    # The input last seen, itself: as long as it is held, no other tensor can be taken for it.
    last: list[tuple[Tensor, Covariance]] = []
    calls = dict.fromkeys(layers, 0)
    owners: dict[str, str] = {}

    def hook_of(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            batch = batches[min(calls[name], len(batches) - 1)]
            calls[name] += 1
            owner = owners.get(name)
            if owner is None:
                same = next((covariance for held, covariance in last if held is x), None)
                found[name] = Covariance(name, scaled) if same is None else same
                owner = owners[name] = found[name].name
            if owner == name:
                last[:] = [(x, found[name])]
                found[name].add(x, batch.get("attention_mask"))

        return hook

    hooks = [m.register_forward_pre_hook(hook_of(n)) for n, m in layers.items()]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: found.get(name, Covariance(name, scaled)) for name in layers}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
