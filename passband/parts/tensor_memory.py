"""Exact memory of tensors in a stretch of code, to the byte, the same at every run.

>>> layer = torch.nn.Linear(256, 256)
>>> x = torch.randn(32, 256)
>>> with PeakTensors() as memory:
...     y = layer(x).relu()                      # the layer's output ends: relu keeps its own
>>> memory.peak, memory.alive                    # bytes: two of [32, 256] at once, one is left
(65536, 32768)

    alive(t) = sum of the bytes of all storages that were allocated inside and live at time t
    peak     = max over t of alive(t)

Counted at the dispatcher after every operation, forward and backward, on any device ("meta" too):
each storage once, however many views there are of it. What lived before counts neither while it
lives nor when it ends. What a kernel takes and gives back within one operation is not seen, nor
what allocators keep in reserve: the numbers follow from the mathematics, not from the machine.
Resident memory is `passband.bench.memory`.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

# Their argument was made from Python's numbers an instant before, out of the dispatcher's sight.
_FRESH = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)


class PeakTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are allocated inside the block.

    peak   most bytes alive at one time inside the block
    alive  bytes alive now; after the block, those of what it left behind, until that ends

    Blocks may be nested: each counts what is allocated inside itself. An object serves one block.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self.alive = 0
        self._bytes: dict[int, int] = {}  # by the storage's address, removed when the storage ends
        self._lock = threading.RLock()  # storages may end in any thread, also while one is counted

    def __enter__(self) -> Self:
        # Tensors in reference cycles end with a collection: begin each block with the same count.
        # A full one would take half a second.
        gc.collect(1)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = (args, kwargs or {})
        # A result in the storage of an argument is a view or an in-place change: not new.
        old = set() if func in _FRESH else {storage._cdata for storage in _storages(given)}
        out = func(*args, **(kwargs or {}))
        with self._lock:
            if func._schema.is_mutable:
                for storage in _storages(given):  # `resize_` and `out=` may enlarge a storage
                    self._measure(storage)
            for storage in _storages(out):
                if storage._cdata not in old and storage._cdata not in self._bytes:
                    self._begin(storage)
            self.peak = max(self.peak, self.alive)
        return out

    def _begin(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        self._bytes[key] = 0
        self._measure(storage)
        # Torch keeps one Python object a storage for as long as any tensor, also one that autograd
        # saved, holds it: the object's end is the memory's.
        weakref.finalize(storage, self._end, key).atexit = False

    def _measure(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._bytes:
            self.alive += storage.nbytes() - self._bytes[storage._cdata]
            self._bytes[storage._cdata] = storage.nbytes()

    def _end(self, key: int) -> None:
        with self._lock:
            self.alive -= self._bytes.pop(key)


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    """The storages of all tensors in a tree; a sparse tensor has those of its parts."""
    for leaf in tree_iter(tree):
        if isinstance(leaf, Tensor):
            parts = _PARTS[leaf.layout](leaf) if leaf.layout in _PARTS else (leaf,)
            yield from (part.untyped_storage() for part in parts)


_PARTS: dict[torch.layout, Callable[[Tensor], tuple[Tensor, ...]]] = {
    torch.sparse_coo: lambda t: (t._indices(), t._values()),
    torch.sparse_csr: lambda t: (t.crow_indices(), t.col_indices(), t.values()),
}
