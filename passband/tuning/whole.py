"""Training whole tensors in place: full fine-tuning, half of it, biases alone.

>>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
>>> handle = WholeTensors(model, ["0.weight", "0.bias"])
>>> {name: change.kind for name, change in handle.edit().changes.items()}
{'0.weight': 'dense', '0.bias': 'dense'}
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from passband.errors import DataError
from passband.parts.edits import Change, Dense
from passband.tuning.handle import Handle


class WholeTensors(Handle):
    """Trains the named parameters of a model; everything else is frozen and stays as it is.

    names  as in `model.named_parameters()`; tied tensors count once
    Raises `DataError` for names that don't exist, integer (quantised) tensors, and NaN.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], **options: Any) -> None:
        super().__init__(model, **options)
        known = dict(model.named_parameters())
        names = [n for n in names if n not in self.head]
        _check(names, known)
        self._tensors = {n: known[n] for n in names}
        self._saved = {n: p.detach().clone() for n, p in self._tensors.items()}
        for parameter in self._tensors.values():
            parameter.requires_grad_(True)

    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self._tensors)

    def changes(self) -> dict[str, Change]:
        now = self._tensors if self.enabled else self._saved
        start = self._saved if self.enabled else self._tensors
        return {n: Dense(now[n].detach().float() - start[n].detach().float()) for n in now}

    @torch.no_grad()
    def _switch(self, on: bool) -> None:
        for name, parameter in self._tensors.items():
            other = parameter.detach().clone()
            parameter.copy_(self._saved[name])
            self._saved[name] = other

    def _release(self) -> None:
        self._saved = {}


def _check(names: list[str], known: dict[str, nn.Parameter]) -> None:
    missing = [n for n in names if n not in known]
    if missing or not names:
        raise DataError(
            f"no parameters {', '.join(missing[:5])}" if names else "no parameters to train",
            expected="names of the model's parameters",
            mend=f"such as {', '.join(list(known)[:5])}",
        )
    whole = [n for n in names if not known[n].is_floating_point()]
    if whole:
        raise DataError(
            f"{', '.join(whole[:5])} hold integers (a quantised model?)",
            expected="floating-point weights", mend="load the model without quantisation",
        )
    broken = [n for n in names if not torch.isfinite(known[n]).all()]
    if broken:
        raise DataError(
            f"{', '.join(broken[:5])} hold NaN or infinity", expected="finite weights",
            mend="the checkpoint is damaged: load another one",
        )
