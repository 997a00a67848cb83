"""MAD-X: a bottleneck after every block for the language, another on top of it for the task.

    h [B, T, D] output of a block
    A(h) = h + U relu(V h + b) + c           V [m, D], U [D, m]; U = 0 at the start
    h  <-  A_task(A_language(h))             the language's is frozen while the task is learned
    e  <-  C(e)                              invertible adapter on the embeddings (coupling of
    h  <-  C^-1(h) before the LM head        halves), part of the language module

For another language A_language and C are exchanged. MAD-X 2.0 leaves A_language out of the last
block. Unlike weight edits the modules stay in the model and cost time at inference.

Source: Pfeiffer, Vulic, Gurevych, Ruder, EMNLP 2020, arXiv 2005.00052; Pfeiffer et al. 2021 (2.0).

>>> layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
>>> model = nn.Sequential(*layers)
>>> adapters = Adapters(width=8, blocks=2, size=2)
>>> hooks = install(list(model), [adapters])
>>> model(torch.ones(1, 8)).shape
torch.Size([1, 8])
>>> for hook in hooks:
...     hook.remove()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passband.errors import ConfigError, DataError
from passband.parts.edits import Change, Edit, Replace
from passband.parts.targets import blocks
from passband.tuning.handle import Calibration, Handle

PREFIX = "adapters."  # of the names of adapter tensors in an edit


class Bottleneck(nn.Module):
    """h [..., D] -> h + U relu(V h + b) + c; the identity at the start."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = h + self.up(torch.relu(self.down(h)))
        return out


class Coupling(nn.Module):
    """Invertible: halves a, b of e [..., D] -> a + F(b), b + G(a + F(b)); the identity at first."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        if width % 2:
            raise ConfigError(f"an invertible adapter of width {width}", expected="an even width")
        self.first, self.second = _net(width // 2, size), _net(width // 2, size)

    def forward(self, e: Tensor) -> Tensor:
        a, b = e.chunk(2, -1)
        a = a + self.first(b)
        return torch.cat([a, b + self.second(a)], -1)

    def inverse(self, h: Tensor) -> Tensor:
        a, b = h.chunk(2, -1)
        b = b - self.second(a)
        return torch.cat([a - self.first(b), b], -1)


def _net(width: int, size: int) -> nn.Sequential:
    out = nn.Linear(size, width)
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)
    return nn.Sequential(nn.Linear(width, size), nn.ReLU(), out)


class Adapters(nn.Module):
    """One module of a language or a task: a bottleneck per block, an invertible adapter if any.

    size        m of the bottlenecks
    invertible  width of the nets of the coupling; 0: none
    skip_last   no bottleneck in the last block
    """

    def __init__(
        self, width: int, blocks: int, size: int, invertible: int = 0, skip_last: bool = False
    ) -> None:
        super().__init__()
        count = blocks - int(skip_last)
        self.facts = {
            "width": width, "blocks": blocks, "size": size, "invertible": invertible,
            "skip_last": skip_last,
        }
        self.bottlenecks = nn.ModuleList(Bottleneck(width, size) for _ in range(count))
        self.coupling = Coupling(width, invertible) if invertible else None

    def after(self, block: int, h: Tensor) -> Tensor:
        if block >= len(self.bottlenecks):
            return h
        out: Tensor = self.bottlenecks[block](h)
        return out


def size_for(entries: int, width: int, blocks: int) -> int:
    """The largest m whose bottlenecks have at most so many parameters, at least 1.

    >>> size_for(7_077_888 + 12 * (384 + 768), width=768, blocks=12)      # reduction 2 on mBERT
    384
    """
    return max(1, (entries // blocks - width) // (2 * width + 1))


def install(
    stack_on: Sequence[nn.Module], stack: Sequence[Adapters], *,
    embeddings: nn.Module | None = None, lm_head: nn.Module | None = None,
    enabled: Callable[[], bool] = lambda: True,
) -> list[Any]:
    """Hooks that put the adapters, first one innermost, after every block; returns the hooks.

    embeddings  module whose output invertible adapters transform; lm_head: before it they go back
    """
    hooks = []
    for number, block in enumerate(stack_on):

        def after(_: nn.Module, __: Any, out: Any, number: int = number) -> Any:
            if not enabled():
                return out
            h = out[0] if isinstance(out, tuple) else out
            for adapters in stack:
                h = adapters.after(number, h)
            return (h, *out[1:]) if isinstance(out, tuple) else h

        hooks.append(block.register_forward_hook(after))
    couplings = [a.coupling for a in stack if a.coupling is not None]
    if couplings and embeddings is not None:

        def transform(_: nn.Module, __: Any, e: Tensor) -> Tensor:
            for coupling in couplings if enabled() else ():
                e = coupling(e)
            return e

        hooks.append(embeddings.register_forward_hook(transform))
    if couplings and lm_head is not None:

        def back(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            h = inputs[0]
            for coupling in reversed(couplings) if enabled() else ():
                h = coupling.inverse(h)
            return (h, *inputs[1:])

        hooks.append(lm_head.register_forward_pre_hook(back))
    return hooks


@dataclass(frozen=True)
class Places:
    """Where adapters go in a transformers encoder."""

    blocks: list[nn.Module]
    embeddings: nn.Module | None
    lm_head: nn.Module | None
    width: int


def places(model: nn.Module) -> Places:
    """Raises `DataError` for a model without repeated blocks or a known width."""
    stack = blocks(model)
    width = getattr(getattr(model, "config", None), "hidden_size", 0)
    if not stack or not width:
        raise DataError(
            "no stack of blocks with a known width", expected="a transformers encoder",
            mend="a model with config.hidden_size and a list of equal blocks",
        )
    base = getattr(model, getattr(model, "base_model_prefix", "") or "", model)
    return Places(
        list(stack), getattr(base, "embeddings", None),
        getattr(model, "cls", None) or getattr(model, "lm_head", None), width,
    )


@dataclass(frozen=True)
class MADX:
    """
    size        m of the bottlenecks
    invertible  width of the invertible adapter's nets; 0: none
    skip_last   MAD-X 2.0: no adapter in the last block
    """

    size: int = 16
    invertible: int = 0
    skip_last: bool = False

    def build(self, model: nn.Module) -> Adapters:
        found = places(model)
        return Adapters(
            found.width, len(found.blocks), self.size, self.invertible, self.skip_last
        )

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
        below: Sequence[Adapters] = (),
    ) -> AdapterStack:
        """`below`: frozen modules of a language, between the blocks and these adapters."""
        return AdapterStack(
            model, self.build(model), below, method=self, head=head, steps=steps, seed=seed,
            name=name,
        )


class AdapterStack(Handle):
    """Adapters on a model. They are no weight edits: `edit()` holds them under the names
    `adapters.*`, as new values, for saving; `adapters_of(edit)` builds them again."""

    def __init__(
        self, model: nn.Module, adapters: Adapters, below: Sequence[Adapters] = (), **options: Any
    ) -> None:
        super().__init__(model, **options)
        self.adapters = adapters.to(next(model.parameters()).device)
        for module in below:
            module.requires_grad_(False)
        found = places(model)
        self._hooks = install(
            found.blocks, [*below, adapters], embeddings=found.embeddings, lm_head=found.lm_head,
            enabled=lambda: self.enabled,
        )
        self.about["adapters"] = adapters.facts

    def trained(self) -> dict[str, nn.Parameter]:
        return {PREFIX + n: p for n, p in self.adapters.named_parameters()}

    def changes(self) -> dict[str, Change]:
        return {n: Replace(p.detach().clone()) for n, p in self.trained().items()}

    def _switch(self, on: bool) -> None:
        """The hooks look at `enabled`."""

    def _release(self) -> None:
        for hook in self._hooks:
            hook.remove()


def adapters_of(edit: Edit) -> Adapters:
    """The adapters that an edit of `AdapterStack` holds."""
    adapters = Adapters(**edit.about["adapters"])
    tensors = {
        n.removeprefix(PREFIX): change.values
        for n, change in edit.changes.items()
        if n.startswith(PREFIX) and isinstance(change, Replace)
    }
    adapters.load_state_dict(tensors)
    return adapters.requires_grad_(False)
