"""A task learned in several source languages at once, each with its own language difference.

    every batch is of one language; for it the weights are theta + phi_language
    order of an epoch: each language `upsampling` times the batches it has, shuffled

>>> from passband.parts.edits import Dense, fingerprint
>>> from passband.tuning.lt_sft.model import LTSFT
>>> model = torch.nn.Linear(2, 2)
>>> shift = Edit({"bias": Dense(torch.ones(2))}, fingerprint(model))
>>> handle = LTSFT(criterion="random", count=2, freeze_layer_norm=False).attach(model)
>>> optimizer, sources = handle.optimizer(lr=0.1), Sources(handle, {"es": shift})
>>> batches = iter(SourceBatches({"es": [torch.zeros(2)] * 4}, batch_size=2))
>>> language, batch = next(batches)
>>> sources.use(language)
>>> model(torch.stack(batch)).square().sum().backward()
>>> optimizer.step()                             # the difference is gone before the step
>>> sources.current is None
True

Extension of the released code; Ansell et al. 2021 (MAD-G).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.utils.data import default_collate

from passband.errors import DataError, UnknownNameError
from passband.parts.edits import Applied, Edit
from passband.tuning.handle import Handle
from passband.tuning.lt_sft.model import LotteryTicket


class Sources:
    """Language differences, one of which is on the model during a batch's two passes.

    Taking it back restores the bits and comes before the optimiser's step, so that the step moves
    theta alone: in exact arithmetic the same as stepping first. Both cost K numbers.

    edits  by language, without heads
    Make it after the optimiser; in another phase make another one.
    """

    def __init__(self, handle: Handle, edits: Mapping[str, Edit]) -> None:
        heads = [
            f"{language}: {name}" for language, edit in edits.items()
            for name, change in edit.changes.items() if change.kind == "replace"
        ]
        if heads:
            raise DataError(
                f"new values in {', '.join(heads[:5])}", expected="differences alone",
                mend="leave heads out: edit.only(lambda name: name.startswith(prefix))",
            )
        self.handle, self.edits = handle, dict(edits)
        self.current: str | None = None
        self._applied: Applied | None = None
        for edit in self.edits.values():  # a wrong base is said before the first batch
            self._sync()
            edit.apply(handle.model).revert()
        for optimizer in handle.optimizers:
            optimizer.register_step_pre_hook(self._before_step)

    def use(self, language: str) -> None:
        """Put a language's difference on the model, the last one's away."""
        if language not in self.edits:
            raise UnknownNameError("source language", language, self.edits)
        self.drop()
        self._sync()
        self._applied = self.edits[language].apply(self.handle.model, check=False)
        self.current = language

    def drop(self) -> None:
        """The model without any language's difference."""
        if self._applied is not None:
            self._applied.revert()
        self._applied = self.current = None

    def _sync(self) -> None:
        # Values that are written later, by a forward pass, would overwrite the difference.
        if isinstance(self.handle, LotteryTicket) and self.handle.selected is not None:
            self.handle.selected.sync()

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        self.drop()


class SourceBatches:
    """Endless batches (language, examples), each of one language.

    upsampling  language -> how often its batches come in an epoch; 1 where it is not named
    The same order at every iteration over it: a resumed run sees the batches it would have seen.
    """

    def __init__(
        self, examples: Mapping[str, Sequence[Any]], batch_size: int, *,
        upsampling: Mapping[str, int] | None = None, seed: int = 0,
    ) -> None:
        empty = [language for language, rows in examples.items() if not len(rows)]
        if empty or not examples:
            raise DataError(
                f"no examples in {', '.join(empty) or 'any language'}", expected="at least one"
            )
        self.examples, self.batch_size, self.seed = dict(examples), batch_size, seed
        self.upsampling = dict(upsampling or {})
        for language in self.upsampling:
            if language not in self.examples:
                raise UnknownNameError("source language", language, self.examples)

    def __iter__(self) -> Iterator[tuple[str, list[Any]]]:
        rng = random.Random(self.seed)
        while True:
            yield from self._epoch(rng)

    def _epoch(self, rng: random.Random) -> Iterator[tuple[str, list[Any]]]:
        queues: dict[str, list[list[int]]] = {}
        for language, rows in self.examples.items():
            queues[language] = []
            for _ in range(self.upsampling.get(language, 1)):
                order = rng.sample(range(len(rows)), len(rows))
                queues[language] += [
                    order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)
                ]
        turns = [language for language, queue in queues.items() for _ in queue]
        rng.shuffle(turns)
        for language in turns:
            yield language, [self.examples[language][i] for i in queues[language].pop()]


@dataclass(frozen=True)
class Collated:
    """The same as the training loop takes them: (tensors, language), again and again."""

    batches: SourceBatches
    collate: Callable[[list[Any]], Any] | None = None

    def __iter__(self) -> Iterator[tuple[Any, str]]:
        for language, examples in self.batches:
            yield (self.collate or default_collate)(examples), language
