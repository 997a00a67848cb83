"""Methods that train chosen entries of the weights: one handle for all of them.

    W.flat[indices] = W0.flat[indices] + values          everything else stays as it is

The values are what an optimiser gets, the edit is sparse, and "off" is exact to the bit (see
`passband.parts.selective`).

>>> model = nn.Linear(8, 4)
>>> handle = EntryHandle(model, {"weight": torch.arange(10)}, parametrisation="delta")
>>> handle.trained()["weight"].shape
torch.Size([10])
>>> handle.edit().changes["weight"].indices     # ten numbers and their places
tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from passband.parts.edits import Change, Sparse
from passband.parts.selective import Selected
from passband.tuning.handle import Handle

OnGradient = Callable[[str, Tensor], None]


class Entries(Protocol):
    """Trained entries of a model's weights: `Selected`, or `NF4Selected` on packed weights."""

    on_gradient: OnGradient | None
    paused: bool

    @property
    def values(self) -> dict[str, nn.Parameter]: ...

    @property
    def indices(self) -> dict[str, Tensor]: ...

    def place(self, parameter: Tensor) -> tuple[Tensor, int, int] | None: ...

    def change_slots(
        self, name: str, slots: Tensor, new_indices: Tensor, new_values: Tensor | float = 0.0
    ) -> None: ...

    def edit_changes(self) -> dict[str, Sparse]: ...

    def off(self) -> AbstractContextManager[None]: ...

    def sync(self) -> None: ...

    def detach(self, restore: bool = True) -> None: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class EntryHandle(Handle):
    """Entries of a model's weights in training.

    indices  flat row-major positions by parameter name
    select   makes the entries of a model; by default `Selected`, which gets `options` of its own
             (parametrisation, dtype)
    """

    def __init__(
        self, model: nn.Module, indices: Mapping[str, Tensor], *, parametrisation: Any = "value",
        dtype: torch.dtype = torch.float32, on_gradient: OnGradient | None = None,
        select: Callable[..., Entries] | None = None, **options: Any,
    ) -> None:
        super().__init__(model, **options)
        if select is not None:
            self.selected: Entries = select(model, indices, on_gradient=on_gradient)
        else:
            self.selected = Selected(
                model, indices, parametrisation=parametrisation, dtype=dtype,
                also=tuple(self.head), on_gradient=on_gradient,
            )
        self._away: AbstractContextManager[None] | None = None

    def trained(self) -> dict[str, nn.Parameter]:
        return self.selected.values

    def changes(self) -> dict[str, Change]:
        return dict(self.selected.edit_changes())

    def decays(self, name: str) -> bool:
        return True  # entries of matrices, though their values are a vector

    def sync(self) -> None:
        """Write all values into the weights now."""
        self.selected.sync()

    def _switch(self, on: bool) -> None:
        if on:
            assert self._away is not None
            self._away.__exit__(None, None, None)
            self._away = None
        else:
            self._away = self.selected.off()
            self._away.__enter__()

    def _pause(self, paused: bool) -> None:
        self.selected.paused = paused

    def _release(self) -> None:
        if self._away is not None:
            self._switch(True)
        self.selected.detach(restore=True)

    def extra_state(self) -> dict[str, Any]:
        return {"selected": self.selected.state_dict()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.selected.load_state_dict(state["selected"])
