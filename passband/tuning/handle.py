"""What every fine-tuning method looks like from a training loop.

    attach   the method takes hold of a model in place: no module is replaced
    train    any optimiser on `handle.parameters()`, any loop
    edit     what came out, as weight edits that save, scale, add, merge and revert
    off      the pretrained model, to the bit, while the method stays attached

>>> from passband.tuning.sorsa.model import SORSA
>>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
>>> handle = SORSA(rank=4).attach(model)
>>> optimizer = handle.optimizer(lr=1e-3)
>>> for batch in torch.randn(5, 32, 8):
...     handle.objective((model(batch) - batch).square().mean()).backward()
...     optimizer.step()
...     optimizer.zero_grad()
>>> path = handle.edit().save("adapter.safetensors")

An optimiser that comes from somewhere else is told to the handle by `handle.bind(optimizer)`: what
a method does after each step (moving sparse positions, schedules) then happens by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, ClassVar, Protocol
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from passband.errors import ConfigError, DataError
from passband.parts.edits import Change, Edit, Replace, fingerprint

Calibration = Mapping[str, Sequence[Any]]  # batches by purpose: "task", "knowledge"
_HELD: WeakKeyDictionary[nn.Module, WeakSet[Handle]] = WeakKeyDictionary()


class Method(Protocol):
    """A configured method; a frozen dataclass in each room's `model.py`."""

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> Handle:
        """Take hold of a model.

        calibration  batches for methods that look at activations first
        head         prefixes of parameters trained in any case, such as a fresh classifier
        steps        length of the run, for schedules; None: the loop tells (`Handle.at`)
        seed         of the method's own random choices, apart from that of the data
        """


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own optimiser; shares of a method's phases sum to one."""

    name: str = "train"
    share: float = 1.0


class Handle(ABC):
    """A method attached to a model. Raises `DataError` for a model that can't be adapted."""

    clips_penalty: ClassVar[bool] = True  # False: its gradient is added after clipping

    def __init__(
        self, model: nn.Module, *, method: Any = None, head: Sequence[str] = (),
        steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> None:
        _refuse_others(model)
        self.model, self.name, self.steps, self.seed = model, name, steps, seed
        self.about = {"method": type(self).__name__, "config": _plain(method)}
        self.head = {n: p for n, p in model.named_parameters() if _under(n, head)}
        for prefix in head:
            if not any(_under(n, [prefix]) for n in self.head):
                raise DataError(
                    f"the model has no parameter under {prefix!r}", expected="its task head",
                    mend=f"one of {', '.join(sorted(dict(model.named_children())))}",
                )
        self.base = fingerprint(model, without=self.head)
        self.count = 0  # optimiser steps so far, over all phases
        self.enabled = True
        self.optimizers: list[Optimizer] = []  # those bound in this phase
        self.terms: dict[str, Tensor] = {}  # last values of the method's own terms, for logs
        self._told: float | None = None
        self._flags = {n: p.requires_grad for n, p in model.named_parameters()}
        self._start = {n: p.detach().clone() for n, p in self.head.items()}
        self._freeze()
        _HELD.setdefault(model, WeakSet()).add(self)

    def _freeze(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.head)

    # ---- what a method gives ---------------------------------------------------------------

    @abstractmethod
    def trained(self) -> dict[str, nn.Parameter]:
        """The method's own trainable parameters by name, without the head."""

    @abstractmethod
    def changes(self) -> dict[str, Change]:
        """What the method has done to each tensor of the model so far, without the head."""

    @abstractmethod
    def _switch(self, on: bool) -> None:
        """Make the model the adapted one, or the pretrained one to the bit."""

    def _pause(self, paused: bool) -> None:
        """Leave gradients alone while another method may be attached."""
        return None

    def _release(self) -> None:
        """Take hooks and patches off; the model is the pretrained one already."""
        return None

    def _after_step(self) -> None:
        """What the method does after each optimiser step."""
        return None

    def penalty(self) -> Tensor | None:
        """A loss of the weights alone, scaled as it enters the objective."""
        return None

    def phases(self) -> Iterator[Phase]:
        """Phases in turn; the handle changes what it trains between them."""
        yield Phase()

    def decays(self, name: str) -> bool:
        """Whether weight decay applies to a trained parameter: not to vectors by default."""
        return self.named_parameters()[name].ndim > 1

    def extra_state(self) -> dict[str, Any]:
        """What an exact resume needs beyond parameters: indices, ages, schedules."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        return None

    # ---- training --------------------------------------------------------------------------

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {**self.trained(), **self.head}

    def parameters(self) -> list[nn.Parameter]:
        """What an optimiser gets, the head included."""
        return list(self.named_parameters().values())

    def optimizer(
        self, lr: float, *, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> Optimizer:
        """AdamW as the method wants it, bound to this handle."""
        return self.bind(torch.optim.AdamW(
            self.groups(weight_decay), lr=lr, betas=betas, eps=eps, foreach=True
        ))

    def groups(self, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Parameter groups with and without weight decay."""
        named = self.named_parameters()
        split = {
            decay: [p for n, p in named.items() if self.decays(n) is (decay > 0)]
            for decay in {weight_decay, 0.0}
        }
        if weight_decay == 0:
            split = {0.0: list(named.values())}
        return [{"params": p, "weight_decay": decay} for decay, p in split.items() if p]

    def bind(self, optimizer: Optimizer) -> Optimizer:
        """Let an optimiser's steps drive the method; returns the optimiser."""
        self.optimizers.append(optimizer)
        if not self.clips_penalty:
            optimizer.register_step_pre_hook(lambda *_: self._add_penalty())
        optimizer.register_step_post_hook(lambda *_: self.step())
        return optimizer

    def _add_penalty(self) -> None:
        penalty = self.penalty()
        if penalty is not None:
            penalty.backward()

    def objective(
        self, loss: Tensor, logits: Tensor | None = None, labels: Tensor | None = None,
        again: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """The task's loss plus the method's own terms.

        logits  [M, C] at the M supervised positions (or [N, C] of a classifier)
        labels  [M]
        again   computes the same logits from the model as it stands when called
        """
        penalty = self.penalty() if self.clips_penalty else None
        return loss if penalty is None else loss + penalty

    def step(self) -> None:
        """After each optimiser step; called by bound optimisers."""
        self.count += 1
        self._after_step()

    def at(self, fraction: float) -> None:
        """A loop says how much of its budget is spent, in [0, 1]."""
        self._told = fraction

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1].

        Raises `ConfigError` where neither `steps` nor a loop has said how long the run is.
        """
        if self._told is not None:
            return self._told
        if self.steps is None:
            raise ConfigError(
                f"{type(self).__name__} has a schedule, but the length of the run is unknown",
                expected="the number of optimiser steps", mend="attach(model, steps=...)",
            )
        return min(1.0, self.count / self.steps)

    # ---- what came out ---------------------------------------------------------------------

    def edit(self) -> Edit:
        """The change so far as an edit of the pretrained weights; the head as it stands."""
        values = self.head if self.enabled else self._start
        head = {n: Replace(p.detach().clone()) for n, p in values.items()}
        return Edit({**self.changes(), **head}, self.base, dict(self.about))

    @contextmanager
    def off(self) -> Iterator[nn.Module]:
        """The pretrained model inside, to the bit; the adapted one again outside.

        >>> from passband.tuning.sorsa.model import SORSA
        >>> model, x = nn.Linear(8, 4), torch.randn(3, 8)
        >>> pretrained, handle = model(x), SORSA(rank=2).attach(model)
        >>> with handle.off(), torch.no_grad():
        ...     teacher = model(x)
        >>> torch.equal(teacher, pretrained)
        True
        """
        was = self.enabled
        self._turn(False)
        try:
            yield self.model
        finally:
            self._turn(was)

    def disable(self) -> None:
        """Pretrained weights until `enable`: another method may attach meanwhile."""
        self._turn(False)
        self._unfreeze()
        self._pause(True)

    def enable(self) -> None:
        _refuse_others(self.model, but=self)
        self._pause(False)
        self._turn(True)
        self._refreeze()

    def _turn(self, on: bool) -> None:
        if on is self.enabled:
            return
        self._switch(on)
        for name, parameter in self.head.items():
            # Storage changes hands, nothing is written: a graph that was built with the head as it
            # is (a teacher is asked between forward and backward pass) stays valid.
            now = parameter.data
            parameter.data = self._start[name]
            self._start[name] = now
        self.enabled = on

    def _unfreeze(self) -> None:
        self._working = {n: p.requires_grad for n, p in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._flags[name])

    def _refreeze(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._working[name])

    def detach(self, *, merge: bool = False) -> Edit:
        """Let go of the model: pretrained again, or with the edit merged into its weights."""
        edit = self.edit()
        self._turn(False)
        self._release()
        _HELD[self.model].discard(self)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._flags[name])
        if merge:
            edit.apply(self.model)
        return edit

    # ---- exact resume ----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "extra": self.extra_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]
        self.load_extra_state(state["extra"])


def _refuse_others(model: nn.Module, but: Handle | None = None) -> None:
    for other in _HELD.get(model, ()):
        if other.enabled and other is not but:
            raise DataError(
                f"{type(other).__name__} {other.name!r} is attached to this model and switched on",
                expected="one method at a time", mend="call its disable() or detach() first",
            )
    wrapped = next((m for m in model.modules() if type(m).__module__.startswith("peft.")), None)
    if wrapped is not None:
        raise DataError(
            f"the model is adapted by peft already ({type(wrapped).__name__})",
            expected="a plain pretrained model", mend="merge it first: model.merge_and_unload()",
        )


def _under(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def _plain(method: Any) -> dict[str, Any]:
    """A method's configuration as JSON values."""
    if not is_dataclass(method) or isinstance(method, type):
        return {}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(method).items()}
