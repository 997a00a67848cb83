"""Several adapters of one model, switched by name.

>>> from passband.parts.edits import Sparse
>>> model = nn.Linear(3, 2)
>>> adapters = Adapters(model)
>>> for name, value in (("formal", 1.0), ("funny", 2.0)):
...     adapters.add(name, Edit({"bias": Sparse(torch.tensor([0]), torch.tensor([value]), (2,))}))
>>> adapters.use("funny")                       # applied to the weights: an ordinary model
>>> adapters.use("formal", "funny")             # both
>>> adapters.active
('formal', 'funny')
>>> adapters.use()                              # the pretrained weights, to the bit
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from passband.errors import DataError, UnknownNameError
from passband.parts.edits import Applied, Edit

__all__ = ["Adapters"]


class Adapters:
    """Edits of a model by name; those in use are in its weights, so that inference costs nothing.

    Switching takes time in proportion to the entries that are changed, and the bits of the
    pretrained weights come back each time.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.edits: dict[str, Edit] = {}
        self._applied: dict[str, Applied] = {}

    @property
    def active(self) -> tuple[str, ...]:
        """Names of those in use, in the order they were applied."""
        return tuple(self._applied)

    def add(self, name: str, edit: Edit) -> None:
        """Raises `DataError` for a name that is taken."""
        if name in self.edits:
            raise DataError(f"an adapter {name!r} is there already", expected="a new name")
        self.edits[name] = edit

    def remove(self, name: str) -> Edit:
        """Take an adapter out, of use as well."""
        self._find(name)
        self.use(*(other for other in self.active if other != name))
        return self.edits.pop(name)

    def use(self, *names: str) -> None:
        """These adapters and no others; without names, the pretrained model.

        Raises `UnknownNameError`, and `CheckpointError` for an edit of another base: nothing is in
        use then that wasn't.
        """
        wanted = [self._find(name) for name in dict.fromkeys(names)]
        before = self.active
        self._put_off()
        try:
            for name, edit in zip(dict.fromkeys(names), wanted, strict=True):
                self._applied[name] = edit.apply(self.model)
        except Exception:
            self._put_off()
            for name in before:
                self._applied[name] = self.edits[name].apply(self.model)
            raise

    @contextmanager
    def using(self, *names: str) -> Iterator[nn.Module]:
        """These inside, those in use before outside."""
        before = self.active
        self.use(*names)
        try:
            yield self.model
        finally:
            self.use(*before)

    def _find(self, name: str) -> Edit:
        if name not in self.edits:
            raise UnknownNameError("adapter", name, self.edits)
        return self.edits[name]

    def _put_off(self) -> None:
        for name in reversed(self.active):
            self._applied.pop(name).revert()
