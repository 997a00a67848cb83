"""An edit: what happens to the weights of a model, tensor by tensor.

>>> from passband.parts.edits import Sparse
>>> model = torch.nn.Linear(3, 2)
>>> change = Sparse(torch.tensor([0]), torch.tensor([1.0]), shape=(2, 3))
>>> edit = Edit({"weight": change}, base=fingerprint(model))
>>> applied = edit.apply(model)                     # in place; an ordinary model
>>> applied.revert()                                # to the bit
>>> with composed(model, [edit, edit], weights=[0.5, 0.25]) as applied:
...     applied.lost                                # nothing was rounded away
0.0
>>> path = edit.save("edit.safetensors")
>>> Edit.load(path).changes["weight"].values.tolist()
[1.0]
>>> path.unlink()

Edits add, scale, restrict and rename. An edit belongs to a base: the fingerprint in it says which,
and applying it to another one is refused.

Source of the algebra: Ansell et al. 2022, arXiv 2110.07560; Hu et al. 2025 (SaRA), 2409.06633.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from passband.errors import CheckpointError, DataError
from passband.parts.edits.change import Change, change_of, checked_factor, is_finite
from passband.parts.edits.dense import Dense, Replace
from passband.parts.edits.fingerprint import Fingerprint, check_base, fingerprint, listed
from passband.parts.edits.names import find, renamed_names
from passband.parts.edits.registry import Applied, Trained, apply_changes, edited


@dataclass(frozen=True, eq=False)
class Edit:
    """Changes by parameter name.

    changes  name -> Change; names of `model.named_parameters()`, tied tensors once
    base     fingerprint of the model it was made on; None: it is never checked
    about    what made it, as JSON (method, configuration, ...)
    Raises `DataError` for changes with NaN or infinity, or an `about` that is no JSON.
    """

    changes: dict[str, Change]
    base: Fingerprint | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "changes", dict(self.changes))
        broken = [
            f"{name}.{part}" for name, change in self.changes.items()
            for part, tensor in change.held().items() if not is_finite(tensor)
        ]
        if broken:
            raise DataError(
                f"{len(broken)} tensors with NaN or infinity: {listed(broken)}",
                expected="finite changes", mend="the training diverged: lower its learning rate",
            )
        try:
            json.dumps(self.about)
        except (TypeError, ValueError) as error:
            raise DataError(f"about: {error}", expected="numbers, texts, lists and dicts") from None

    # ---- on a model ------------------------------------------------------------------------

    def apply(self, model: nn.Module, scale: float = 1.0, check: bool = True) -> Applied:
        """Add the changes to the model's weights in place; `Applied.revert()` restores the bits.

        scale  of everything but new values (fresh heads)
        check  compare the model with the base by fingerprint first: one pass over its bytes
        Raises `DataError` for names or shapes that don't fit and for an edit applied twice,
        `CheckpointError` for another base. The model is untouched then.
        """
        shapes = self._shapes()
        find(model, shapes)
        if check:
            self._check(model)
        return apply_changes(model, self.changes, scale)

    def _check(self, target: nn.Module | Mapping[str, Tensor]) -> None:
        if self.base is not None:
            heads = {n for n, change in self.changes.items() if change.kind == "replace"}
            check_base(self.base, target, heads)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: change.shape for name, change in self.changes.items()}

    # ---- algebra ---------------------------------------------------------------------------

    def scaled(self, factor: float) -> Edit:
        """`factor` times as strong; new values (fresh heads) stay as they are."""
        changes = {name: change.scaled(factor) for name, change in self.changes.items()}
        return Edit(changes, self.base, self.about)

    def __add__(self, other: Edit) -> Edit:
        return compose([self, other])

    def only(self, predicate: Callable[[str], bool]) -> Edit:
        """The changes of tensors whose name passes.

        >>> edit = Edit({"bert.w": Dense(torch.ones(1)), "head.w": Dense(torch.ones(1))})
        >>> list(edit.only(lambda name: name.startswith("bert.")).changes)
        ['bert.w']

        What it says of its base is restricted likewise: an edit of the encoder alone fits every
        model with that encoder, whatever its head.
        """
        changes = {n: change for n, change in self.changes.items() if predicate(n)}
        return Edit(changes, self.base and self.base.only(predicate), self.about)

    def renamed(self, prefixes: Mapping[str, str]) -> Edit:
        """For a model that calls the same tensors otherwise; the longest fitting prefix counts.

        >>> list(Edit({"bert.w": Dense(torch.ones(1))}).renamed({"bert.": "roberta."}).changes)
        ['roberta.w']

        Raises `DataError` when no name has such a prefix or two names become one.
        """
        idle = [p for p in prefixes if not any(n.startswith(p) for n in self.changes)]
        if idle:
            raise DataError(
                f"no changed tensor begins with {', '.join(map(repr, idle))}",
                expected=f"prefixes of names such as {listed(list(self.changes), 3)}",
            )
        names = renamed_names(self.changes, prefixes)
        changes = {names[name]: change for name, change in self.changes.items()}
        return Edit(changes, self.base and self.base.renamed(prefixes), self.about)

    # ---- measures --------------------------------------------------------------------------

    def norm(self) -> float:
        """Frobenius norm over all changes that add; new values and masks have none."""
        return math.hypot(*(c.norm() for c in self.changes.values() if c.additive))

    def bytes(self) -> int:
        """Bytes of the tensors in its file."""
        return sum(
            tensor.numel() * tensor.element_size()
            for change in self.changes.values() for tensor in change.tensors().values()
        )

    def lora(self) -> dict[str, tuple[Tensor, Tensor]]:
        """B [m, r], A [r, n] of every tensor whose change is B A exactly; others are left out."""
        pairs = {name: change.lora() for name, change in self.changes.items()}
        return {name: pair for name, pair in pairs.items() if pair is not None}

    # ---- to and from files -----------------------------------------------------------------

    def tensors(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """All tensors by "name/part". Raises `DataError` where `dtype` can't hold a value."""
        found: dict[str, Tensor] = {}
        for name, change in self.changes.items():
            try:
                parts = change.tensors(dtype)
            except DataError as error:
                raise DataError(
                    f"{name}: {error.what}", expected=error.expected, mend=error.mend
                ) from None
            found.update({f"{name}/{part}": tensor for part, tensor in parts.items()})
        return found

    def facts(self) -> dict[str, Any]:
        """The rest of it, as JSON; `Edit.build(edit.tensors(), edit.facts())` is the edit again."""
        return {
            "changes": {n: {"kind": c.kind, **c.facts()} for n, c in self.changes.items()},
            "base": self.base.to_json() if self.base else None,
            "about": self.about,
        }

    @classmethod
    def build(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Edit:
        """Raises `CheckpointError` for tensors that are missing or too many."""
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in facts["changes"]}
        for key, tensor in tensors.items():
            name, _, part = key.rpartition("/")
            if name not in parts:
                raise CheckpointError(f"a tensor {key!r} that no change speaks of")
            parts[name][part] = tensor
        changes = {n: change_of(kind, parts[n]) for n, kind in facts["changes"].items()}
        base = Fingerprint.from_json(facts["base"]) if facts["base"] else None
        return cls(changes, base, dict(facts["about"]))

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> Path:
        """One safetensors file, written to a temporary name and renamed.

        dtype  of differences in the file: torch.float16 or torch.bfloat16 halves it; None keeps
               fp32. New values keep their own dtype, factors with a start (B0, A0) fp32.
        Raises `DataError` when a value overflows in `dtype`.
        """
        from passband.parts.edits.files import write

        return write(self, Path(path), dtype)

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Raises `CheckpointError` for a file that is damaged, of another format, or no edit."""
        from passband.parts.edits.files import read

        return read(Path(path))

    @classmethod
    def between(
        cls, before: nn.Module | Mapping[str, Tensor], after: nn.Module | Mapping[str, Tensor],
        names: Iterable[str] | None = None,
    ) -> Edit:
        """Dense differences; tensors that `before` lacks (a fresh head) become new values.

        names  the tensors to compare, equal or not; None: all that differ
        Raises `DataError` for tensors of `before` that `after` lacks, or of other shapes.
        Applied to `before` it gives `after` up to the fp32 rounding of the differences.
        """
        old, new = _named(before), _named(after)
        wanted = list(names) if names is not None else [*old, *(n for n in new if n not in old)]
        lacking = [n for n in wanted if n not in new]
        if lacking:
            raise DataError(
                f"the second model lacks {listed(lacking)}", expected="the tensors of the first",
            )
        find(new, {n: tuple(old[n].shape) for n in wanted if n in old})
        changes: dict[str, Change] = {}
        for name in wanted:
            value = new[name].detach()
            if name not in old:
                changes[name] = Replace(value.clone())
            elif names is not None or not torch.equal(old[name].detach(), value):
                changes[name] = Dense(value.float() - old[name].detach().float())
        return cls(changes, fingerprint(before))


def compose(edits: Sequence[Edit], weights: Sequence[float] | None = None) -> Edit:
    """sum_i weights_i edit_i, in fp32: overlapping supports add, ranks are stacked.

    >>> one = Edit({"w": Dense(torch.tensor([1.0, 2.0]))})
    >>> compose([one, one], weights=[1.0, 0.5]).changes["w"].values.tolist()
    [1.5, 3.0]

    Raises `DataError` for two edits that both give a tensor new values (named in the error), and
    `CheckpointError` for edits of different bases.
    """
    edits = list(edits)
    weights = [1.0] * len(edits) if weights is None else [checked_factor(w) for w in weights]
    if not edits or len(weights) != len(edits):
        raise DataError(
            f"{len(edits)} edits and {len(weights)} weights",
            expected="at least one edit, and one weight for each",
        )
    scaled = [e if w == 1.0 else e.scaled(w) for e, w in zip(edits, weights, strict=True)]
    together: dict[str, list[Change]] = {}
    for edit in scaled:
        for name, change in edit.changes.items():
            together.setdefault(name, []).append(change)
    bases = [edit.base for edit in edits if edit.base is not None]
    base = reduce(Fingerprint.__or__, bases) if bases else None
    if len(edits) == 1:
        about = edits[0].about
    else:
        about = {"composed": [edit.about for edit in edits], "weights": weights}
    return Edit(_sums(together), base, about)


def _sums(together: Mapping[str, Sequence[Change]]) -> dict[str, Change]:
    sums: dict[str, Change] = {}
    refused: dict[str, DataError] = {}
    for name, changes in together.items():
        try:
            sums[name] = reduce(Change.__add__, changes)
        except DataError as error:
            refused[name] = error
    if refused:
        first = next(iter(refused.values()))
        raise DataError(
            f"{listed(list(refused))}: {first.what}", expected=first.expected, mend=first.mend
        )
    return sums


@contextmanager
def composed(
    model: nn.Module, edits: Sequence[Edit], weights: Sequence[float] | None = None, *,
    check: bool = True, trained: Trained = "refuse",
) -> Iterator[Applied]:
    """The model with the sum of the edits inside, as it was (to the bit) outside.

    >>> model, shift = torch.nn.Linear(1, 1), Edit({"bias": Dense(torch.ones(1))})
    >>> before = model(torch.zeros(1))
    >>> with composed(model, [shift, shift]):
    ...     round((model(torch.zeros(1)) - before).item(), 5)
    2.0
    >>> bool(model(torch.zeros(1)) == before)
    True

    check    compare the model with the edits' base first
    trained  what happens to training inside, see `Applied.revert`
    """
    applied = compose(edits, weights).apply(model, check=check)
    try:
        yield applied
    finally:
        if applied.active:
            applied.revert(trained)


def merge(
    target: nn.Module | Mapping[str, Tensor], edits: Sequence[Edit],
    weights: Sequence[float] | None = None, *, check: bool = True,
) -> dict[str, Tensor]:
    """The state dict with the sum of the edits added; neither model nor input is changed.

    Changed tensors are new; the others are those of the input, so nothing is copied twice. Tensors
    tied to a changed one follow it.
    Raises what `Edit.apply` does, and `DataError` for a model with edits applied.
    """
    if isinstance(target, nn.Module) and edited(target):
        raise DataError(
            f"edits are applied to {listed(edited(target))}", expected="the pretrained model",
            mend="revert them first, or merge(model.state_dict(), ...) to add to what is there",
        )
    edit = compose(edits, weights)
    weights_of = find(target, edit._shapes())
    if check:
        edit._check(target)
    state = dict(target.state_dict() if isinstance(target, nn.Module) else target)
    memory: dict[tuple[Any, ...], Tensor] = {}
    for name, change in edit.changes.items():
        new = weights_of[name].detach().clone()
        change.add_to(new)
        memory[_memory(weights_of[name])] = new
    return {name: memory.get(_memory(tensor), tensor) for name, tensor in state.items()}


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two names of the same memory."""
    if tensor.numel() == 0 or tensor.is_meta:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _named(source: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(source.named_parameters() if isinstance(source, nn.Module) else source)
