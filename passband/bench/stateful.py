"""What a run carries besides weights and optimisers, so that a killed one resumes exactly.

>>> class Targets:                                  # running targets of a loss, one a sample
...     def __init__(self, n, classes):
...         self.values = torch.zeros(n, classes)
...     def state_dict(self):
...         return {"values": self.values}
...     def load_state_dict(self, tree):
...         self.values.copy_(tree["values"])
...     def at(self, fraction):
...         pass
>>> train(model, loss, data, streams=streams, state=Targets(1000, 10))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from passband.bench.ema import Tensors
from passband.errors import CheckpointError


class Stateful(Protocol):
    """Moves with a run: its state is in every checkpoint and belongs to the selected weights.

    It may resize parameters in place (`p.data = smaller`, with the optimiser's moments gathered
    alike), in `at` and in `load_state_dict`. It never replaces a parameter by another object.
    """

    def state_dict(self) -> Mapping[str, Any]:
        """A tree of tensors and plain values, as `checkpoint.save` takes it."""

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave; tensors come on the CPU.

        Called before weights and optimiser states are restored: afterwards every parameter has
        the shape that it had when the state was taken.
        """

    def at(self, fraction: float) -> None:
        """Called before every step with the share of the budget that is spent, in [0, 1)."""


def cloned(tree: Any) -> Any:
    """A copy of a tree that later steps don't reach."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, Mapping):
        return {key: cloned(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [cloned(value) for value in tree]
    return tuple(map(cloned, tree)) if isinstance(tree, tuple) else tree


def check_shapes(tensors: Tensors, values: Tensors) -> None:
    """Refuse values of other shapes: copying would broadcast some of them without a word."""
    for name, tensor in tensors.items():
        if tensor.shape != values[name].shape:
            raise CheckpointError(
                f"{name} has shape {list(tensor.shape)} after its state was loaded, the checkpoint "
                f"has {list(values[name].shape)}",
                expected="load_state_dict to give every parameter its shape of that moment",
                mend="resize with `parameter.data = ...` in load_state_dict, or start anew",
            )
