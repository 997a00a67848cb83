"""Batches of a run, as a function of the position in it: any step's batch can be asked for.

Example number k of a run is `order(k // n)[k % n]`: one permutation of the n examples an epoch,
epochs laid end to end, nothing dropped. A step takes the next `batch_size` numbers, so the batch
of a step depends on the seed alone, not on processes, accumulation or where a run was resumed.

>>> source = Examples(dataset, batch_size=8, stream=Streams(0).data, parts=2)
>>> (first, weight), (second, _) = next(source.steps(start=5))     # two micro-batches of four
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.utils import find_batch_size
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from passband.bench.interrupts import leave_to_parent
from passband.bench.streams import Stream, sequence
from passband.errors import ConfigError, DataError

Micro = tuple[Any, float]  # a batch and its weight in the mean over the step


class Source(Protocol):
    """Where batches come from."""

    examples: int  # of one step over all processes; 0 when there are no examples to count

    def steps(self, start: int) -> Generator[list[Micro], None, None]:
        """Micro-batches of this process, one list a step, from iteration `start` on."""


class Examples:
    """An indexable: a Dataset, a sequence, a tensor or an array of rows.

    With a method `draw(index, rng)` in place of `[index]`, an example may be random (a crop, a
    mixture): `rng` depends on the example's number in the run alone.

    batch_size  examples of one step, over all processes and micro-batches
    parts       micro-batches a step and process; their weighted mean equals the whole batch
    workers     processes that read ahead
    """

    def __init__(
        self, data: Any, batch_size: int, stream: Stream, *, shuffle: bool = True, parts: int = 1,
        process: int = 0, processes: int = 1, workers: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        n = len(data)
        if n == 0:
            raise DataError("the training data are empty", expected="at least one example")
        self.examples = min(batch_size, n)
        if self.examples < parts * processes:
            raise ConfigError(
                f"a batch of {self.examples} examples is split into {parts} micro-batches on each "
                f"of {processes} processes", expected="at least one example in each",
                mend="raise batch_size or lower accumulate",
            )
        self.parts, self.process, self.processes, self.workers = parts, process, processes, workers
        self.keyed = _Keyed(data, stream, shuffle, collate or default_collate)

    def steps(self, start: int) -> Generator[list[Micro], None, None]:
        loader = DataLoader(
            self.keyed, batch_sampler=_Numbers(self, start), num_workers=self.workers,
            collate_fn=_as_it_is, worker_init_fn=leave_to_parent,
            generator=torch.Generator(),  # its own: loading must not move the global state
        )
        batches = iter(loader)
        while True:
            step = list(islice(batches, self.parts))
            yield [
                (batch, len(numbers) * self.processes / self.examples)
                for batch, numbers in zip(step, self.numbers(0), strict=True)
            ]

    def numbers(self, iteration: int) -> list[range]:
        """Example numbers of this process's micro-batches in one step."""
        pieces = self.parts * self.processes
        first = iteration * self.examples
        edges = [first + self.examples * i // pieces for i in range(pieces + 1)]
        mine = range(self.process * self.parts, (self.process + 1) * self.parts)
        return [range(edges[i], edges[i + 1]) for i in mine]


class _Numbers:
    """An endless batch sampler for the data loader."""

    def __init__(self, source: Examples, start: int) -> None:
        self.source, self.start = source, start

    def __iter__(self) -> Iterator[list[int]]:
        iteration = self.start
        while True:
            yield from (list(numbers) for numbers in self.source.numbers(iteration))
            iteration += 1


class _Keyed(Dataset[Any]):
    """Examples by their number in the run, read a batch at a time."""

    def __init__(self, data: Any, stream: Stream, shuffle: bool, collate: Any) -> None:
        self.data, self.shuffle, self.collate = data, shuffle, collate
        self.n = len(data)
        self.stream = stream.seed, stream.path
        self.draw = getattr(data, "draw", None)
        self.order = lru_cache(maxsize=2)(self._order)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("order", "draw")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.draw = getattr(self.data, "draw", None)
        self.order = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> np.ndarray[Any, Any]:
        if not self.shuffle:
            return np.arange(self.n)
        return self._rng(0, epoch).permutation(self.n)

    def _rng(self, *position: int) -> np.random.Generator:
        seed, path = self.stream
        return np.random.default_rng(sequence(seed, *path, *position))

    def __getitem__(self, number: int) -> Any:
        index = int(self.order(number // self.n)[number % self.n])
        return self.draw(index, self._rng(1, number)) if self.draw else self.data[index]

    def __getitems__(self, numbers: Sequence[int]) -> Any:
        if isinstance(self.data, (Tensor, np.ndarray, TensorDataset)):
            rows = np.array([self.order(k // self.n)[k % self.n] for k in numbers])
            if isinstance(self.data, np.ndarray):
                return torch.from_numpy(self.data[rows])
            return self.data[torch.from_numpy(rows)]
        return self.collate([self[k] for k in numbers])


def _as_it_is(batch: Any) -> Any:
    return batch


class Flow:
    """An iterable of ready batches, for data that can't be indexed.

    Every process reads the whole of it and keeps its share. When it ends it is read again from
    the start. A resumed run skips what was read before, so it must give the same batches again.
    """

    def __init__(
        self, data: Iterable[Any], *, parts: int = 1, process: int = 0, processes: int = 1
    ) -> None:
        self.data, self.parts, self.process, self.processes = data, parts, process, processes
        self.examples = 0

    def steps(self, start: int) -> Generator[list[Micro], None, None]:
        each = self.parts * self.processes
        batches = islice(self._endless(), start * each, None)
        mine = slice(self.process * self.parts, (self.process + 1) * self.parts)
        while True:
            step = list(islice(batches, each))
            self.examples = sum(find_batch_size(batch) or 0 for batch in step)
            yield [(batch, 1 / self.parts) for batch in step[mine]]

    def _endless(self) -> Iterator[Any]:
        while True:
            batches = iter(self.data)
            first = next(batches, _END)
            if first is _END:
                raise DataError(
                    "the training data gave no batch", expected="batches, as often as asked",
                    mend="give an object whose __iter__ starts anew; a generator is used up after "
                    "one pass",
                )
            yield from chain([first], batches)


_END = object()


class SelfMade:
    """No data: the loss draws its own points from the generator that it gets as its batch."""

    examples = 0

    def __init__(self, generator: torch.Generator, parts: int = 1) -> None:
        self.generator, self.parts = generator, parts

    def steps(self, start: int) -> Generator[list[Micro], None, None]:
        while True:
            yield [(self.generator, 1 / self.parts)] * self.parts


def open_source(
    data: Any, stream: Stream, generator: torch.Generator, *, batch_size: int, shuffle: bool,
    parts: int, process: int, processes: int, workers: int, collate: Any = None,
) -> Source:
    """The source that fits the data: none, indexable, or a stream of batches."""
    if data is None:
        return SelfMade(generator, parts)
    if hasattr(data, "__len__") and (hasattr(data, "__getitem__") or hasattr(data, "draw")):
        return Examples(
            data, batch_size, stream, shuffle=shuffle, parts=parts, process=process,
            processes=processes, workers=workers, collate=collate,
        )
    if isinstance(data, Iterable):
        return Flow(data, parts=parts, process=process, processes=processes)
    raise DataError(
        f"the training data are a {type(data).__name__}",
        expected="None, something with len() and [index] or draw(index, rng), or an iterable of "
        "batches",
    )
