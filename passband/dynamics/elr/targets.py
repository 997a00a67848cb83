"""Where the running targets live: one row of class probabilities for every training example.

    T [N, C]   float32: 4 N C bytes (CIFAR-10 2 MB, ImageNet 5.1 GB);  float16: half of it
               top k:   the k largest of each row with their classes, 4 or 6 k N bytes

>>> targets = make_targets(1000, 10, "float16")
>>> targets.write(torch.tensor([3, 7]), torch.eye(10)[:2])
>>> targets.read(torch.tensor([7]))[0, :3]
tensor([0., 1., 0.])

Rows are read and written by tensors of places, never one by one. All of it is buffers: whatever
saves a module's `state_dict` saves the targets, and a state without them is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from passband.errors import CheckpointError, ConfigError, UnknownNameError


class Targets(nn.Module):
    """Base: rows [N, C] by place.

    kept   names of the buffers that make up the rows
    stays  True: on the device it was made on, wherever the rest of the model moves
    """

    kept: tuple[str, ...] = ()

    def __init__(self, rows: int, classes: int, stays: bool) -> None:
        super().__init__()
        self.rows, self.classes, self.stays = rows, classes, stays

    def read(self, index: Tensor, device: torch.device | None = None) -> Tensor:
        """[B] places -> [B, C] float32, on `device` if given."""
        raise NotImplementedError

    def write(self, index: Tensor, rows: Tensor) -> None:
        """Put rows [B, C] at places [B]; of a place that comes twice the last row stays (CPU)."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """[N, C] float32 on the CPU."""
        device = torch.device("cpu")
        places = torch.arange(self.rows).split(65536)
        return torch.cat([self.read(part, device) for part in places])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return self if self.stays else super()._apply(fn, recurse)

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        # torch reports a missing buffer only if asked to be strict; without targets ELR starts
        # anew on a network that may have memorised already.
        for name in self.kept:
            own, found = getattr(self, name), state.get(prefix + name)
            if found is None:
                raise CheckpointError(
                    f"the saved state has no {prefix}{name}", expected="the running targets of ELR",
                    mend="save loss.state_dict() beside the model's and load both",
                )
            if found.shape != own.shape:
                raise CheckpointError(
                    f"{prefix}{name} of shape {list(found.shape)} for {list(own.shape)}",
                    expected="targets of the same data set, classes and storage",
                )
        super()._load_from_state_dict(state, prefix, *args)


class DenseTargets(Targets):
    """All classes of every row.

    device  None: wherever the module is moved; a device: there for good. "cpu" beside a GPU keeps
            the rows in the computer's memory and copies those of a batch without being waited for
    """

    kept = ("targets",)
    targets: Tensor

    def __init__(
        self, rows: int, classes: int, dtype: torch.dtype = torch.float32, device: Any = None
    ) -> None:
        super().__init__(rows, classes, stays=device is not None)
        self.register_buffer("targets", torch.zeros(rows, classes, dtype=dtype, device=device))

    def read(self, index: Tensor, device: torch.device | None = None) -> Tensor:
        rows = self.targets.index_select(0, index.to(self.targets.device))
        return _moved(rows, device).float()

    def write(self, index: Tensor, rows: Tensor) -> None:
        # Not index_copy_, which torch.vmap maps by a loop.
        self.targets[index.to(self.targets.device)] = rows.to(self.targets)


class TopTargets(Targets):
    """The k largest of every row; what is smaller counts as 0. k = C keeps everything."""

    kept = ("values", "places")
    values: Tensor
    places: Tensor

    def __init__(self, rows: int, classes: int, k: int = 8, device: Any = None) -> None:
        super().__init__(rows, classes, stays=device is not None)
        if k < 1:
            raise ConfigError(f"k = {k}", expected="1 or more")
        k = min(k, classes)
        whole = torch.int16 if classes <= 2**15 else torch.int32
        self.register_buffer("values", torch.zeros(rows, k, dtype=torch.float16, device=device))
        # Different classes from the start: one that comes twice in a row would be lost in `read`.
        first = torch.arange(k, dtype=whole, device=device).repeat(rows, 1)
        self.register_buffer("places", first)

    def read(self, index: Tensor, device: torch.device | None = None) -> Tensor:
        index = index.to(self.values.device)
        values = _moved(self.values[index], device).float()
        places = _moved(self.places[index], device).long()
        rows = torch.zeros(len(index), self.classes, device=values.device)
        return rows.scatter_(1, places, values)

    def write(self, index: Tensor, rows: Tensor) -> None:
        index, rows = index.to(self.values.device), rows.to(self.values.device)
        values, places = rows.topk(self.values.shape[1], 1)
        self.values[index] = values.to(self.values)
        self.places[index] = places.to(self.places)


def _moved(rows: Tensor, device: torch.device | None) -> Tensor:
    """Rows on a device. A copy from pinned memory to a GPU need not be waited for."""
    if device is None or device == rows.device:
        return rows
    if device.type == "cuda" and rows.device.type == "cpu":
        rows = rows.pin_memory()
    return rows.to(device, non_blocking=device.type == "cuda")


def everywhere(index: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Places [B] and rows [B, C] of all processes, one after the other; B may differ."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return index, rows
    processes = distributed.get_world_size()
    if processes == 1:
        return index, rows
    index = index.to(rows.device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(processes)]
    distributed.all_gather(sizes, torch.full_like(sizes[0], len(index)))
    counts = [int(size) for size in sizes]
    spare = max(counts) - len(index)  # all send as much
    found = []
    for tensor in (index, rows.contiguous()):
        padded = torch.cat([tensor, tensor.new_zeros(spare, *tensor.shape[1:])])
        parts = [torch.empty_like(padded) for _ in range(processes)]
        distributed.all_gather(parts, padded)
        found.append(torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]))
    return found[0], found[1]


STORAGES: dict[str, Callable[..., Targets]] = {
    "float32": lambda n, c, k, device: DenseTargets(n, c, torch.float32, device),
    "float16": lambda n, c, k, device: DenseTargets(n, c, torch.float16, device),
    "topk": lambda n, c, k, device: TopTargets(n, c, k, device),
}


def make_targets(
    rows: int, classes: int, storage: str = "float32", *, k: int = 8, device: Any = None
) -> Targets:
    """Zero targets for so many examples; k is of "topk".

    Raises ConfigError for fewer than two classes or no row, UnknownNameError for a storage.
    """
    if classes < 2 or rows < 1:
        raise ConfigError(
            f"targets for {rows} examples of {classes} classes", expected="1 or more, 2 or more",
            mend="num_samples is len(dataset), num_classes the width of the logits",
        )
    if storage not in STORAGES:
        raise UnknownNameError("storage", storage, STORAGES)
    return STORAGES[storage](rows, classes, k, device)
