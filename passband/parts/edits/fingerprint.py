"""Which base a set of weights is: a digest of every tensor, and one of all of them.

An edit remembers the base it was made on. Loading it on another one is refused, and the digests
tell which tensors differ.

>>> model = torch.nn.Linear(2, 2)
>>> base = fingerprint(model)
>>> with torch.no_grad():
...     _ = model.bias.add_(1.0)
>>> fingerprint(model).differences(base)
['bias']
>>> fingerprint(model, without=["bias"]) == base.only(lambda name: name == "weight")
True
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passband.errors import CheckpointError, DataError
from passband.parts.edits.names import renamed_names
from passband.parts.edits.registry import pristine

DIGITS = 16  # hex digits kept per tensor: 64 bits


@dataclass(frozen=True)
class Fingerprint:
    """Digests of a base's tensors. A name plays no part in its tensor's digest: it can change.

    tensors  name -> the first 16 hex digits of sha256(shape, dtype, bytes)
    """

    tensors: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """Of all names and digests: equal for equal bases only."""
        lines = (f"{name} {digest}\n" for name, digest in sorted(self.tensors.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.sha256[:16]} of {len(self.tensors)} tensors"

    def only(self, predicate: Callable[[str], bool]) -> Fingerprint:
        """What it says of the tensors whose name passes."""
        return Fingerprint({n: d for n, d in self.tensors.items() if predicate(n)})

    def renamed(self, prefixes: Mapping[str, str]) -> Fingerprint:
        """The same tensors under other names; see `Edit.renamed`."""
        names = renamed_names(self.tensors, prefixes)
        return Fingerprint({names[name]: digest for name, digest in self.tensors.items()})

    def differences(self, other: Fingerprint) -> list[str]:
        """Names that only one of them has, or whose tensors differ; sorted."""
        names = self.tensors.keys() | other.tensors.keys()
        return sorted(n for n in names if self.tensors.get(n) != other.tensors.get(n))

    def __or__(self, other: Fingerprint) -> Fingerprint:
        """Both. Raises `CheckpointError` when they disagree on a tensor that both know."""
        common = self.tensors.keys() & other.tensors.keys()
        wrong = sorted(n for n in common if self.tensors[n] != other.tensors[n])
        if wrong:
            raise CheckpointError(
                f"edits of different bases: {self} and {other}, which differ in {listed(wrong)}",
                expected="edits of the same base model",
            )
        return Fingerprint({**self.tensors, **other.tensors})

    def to_json(self) -> dict[str, Any]:
        return {"sha256": self.sha256, "tensors": dict(self.tensors)}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Fingerprint:
        """Raises `CheckpointError` when the parts don't give the whole."""
        read = cls({str(name): str(digest) for name, digest in facts["tensors"].items()})
        if read.sha256 != facts["sha256"]:
            raise CheckpointError("a damaged fingerprint", expected=str(facts["sha256"]))
        return read


def fingerprint(
    target: nn.Module | Mapping[str, Tensor], without: Container[str] = ()
) -> Fingerprint:
    """Of a model's parameters, or of the tensors of a state dict.

    A model with edits applied gives the fingerprint it has without them.

    without  names to leave out: a fresh head, in which the base has no say
    Raises `DataError` for tensors without memory (meta device).
    """
    named = dict(target.named_parameters() if isinstance(target, nn.Module) else target)
    return Fingerprint({n: _digest(n, t) for n, t in named.items() if n not in without})


def check_base(
    base: Fingerprint, target: nn.Module | Mapping[str, Tensor], without: Container[str] = ()
) -> None:
    """Every tensor that `base` knows is there and equal; others don't matter.

    Raises `CheckpointError` with both fingerprints and the tensors that differ.
    """
    known = base.only(lambda name: name not in without)
    named = _everything(target)
    here = Fingerprint({n: _digest(n, named[n]) for n in known.tensors if n in named})
    different = known.differences(here)
    if different:
        missing = [n for n in different if n not in here.tensors]
        changed = [n for n in different if n in here.tensors]
        texts = [
            f"{len(names)} {what}: {listed(names)}"
            for names, what in ((changed, "differ"), (missing, "are missing")) if names
        ]
        raise CheckpointError(
            f"the edit was made on base {known}, this is {here}; {'; '.join(texts)}",
            expected="the base model that the edit was made on, in the same dtype",
            mend="load that base; edit.renamed({old: new}) where names differ; edit.only(...) to "
            "take the shared part alone; check=False if the difference is meant",
        )


def listed(names: list[str], most: int = 5) -> str:
    """Names for an error."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _everything(target: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(target, nn.Module):
        return dict(target)
    return dict(target.named_buffers()) | dict(target.named_parameters(remove_duplicate=False))


def _digest(name: str, tensor: Tensor) -> str:
    if tensor.is_meta:
        raise DataError(
            f"{name} has no memory (meta device)", expected="loaded weights",
            mend="load the model's weights first",
        )
    tensor = pristine(tensor)
    state = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype} ".encode())
    flat = tensor.cpu().contiguous().reshape(-1)
    state.update(flat.view(torch.uint8).numpy().data)
    return state.hexdigest()[:DIGITS]
