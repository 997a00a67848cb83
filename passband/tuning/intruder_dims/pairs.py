"""Matrices before and after tuning, of whatever the user has: models, state dicts, edits.

    Pair(name, before [m, n], after [m, n])       m outputs, n inputs, as in nn.Linear

What is compared: every floating-point matrix that both sides have, but for embeddings (their rows
are entries of a table, no directions) and those of a fresh head. Kernels of convolutions have more
than two axes and are left out. GPT-2's Conv1D weights, stored [in, out], are turned.

>>> before, after = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
>>> [(p.name, tuple(p.before.shape)) for p in pairs(before, after)]
[('weight', (2, 3))]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from passband.errors import DataError
from passband.parts.edits import Edit
from passband.parts.targets import is_transposed

Weights = nn.Module | Mapping[str, Tensor]
_TABLE = re.compile(r"(embed|(^|\.)(wte|wpe|shared|relative_attention_bias)(\.|$))")


@dataclass(frozen=True, eq=False)
class Pair:
    """One matrix before and after, [m, n] with m outputs.

    factors     B [m, r], A [r, n] where after = before + B A exactly, scale included
    transposed  the model stores it [n, m]
    """

    name: str
    before: Tensor
    after: Tensor
    factors: tuple[Tensor, Tensor] | None = None
    transposed: bool = False

    @property
    def delta(self) -> Tensor:
        """The change, float64."""
        return self.after.double() - self.before.double()


def pairs(
    base: Weights, tuned: Weights | Edit, *, names: Iterable[str] | None = None,
    transposed: Iterable[str] = (),
) -> Iterator[Pair]:
    """Matrices of two sets of weights, or of one and an edit of it; one at a time in memory.

    names       which of them; None: all that can be compared
    transposed  names stored [in, out], where a mapping does not say (an nn.Module does)
    Raises `DataError` that lists names or shapes that don't match.
    """
    before = tensors(base)
    turned = set(transposed) | _turned(base)
    if isinstance(tuned, Edit):
        return _of_edit(before, tuned, names, _tables(base), turned)
    after = tensors(tuned)
    if names is None:
        _same_matrices(before, after)
        names = comparable(base)
    chosen = list(names)
    _check(chosen, before, after)
    return (_pair(n, before[n], after[n], n in turned) for n in chosen)


def comparable(base: Weights) -> list[str]:
    """Names of the matrices that are compared where nobody says which."""
    tables = _tables(base)
    return [
        n for n, t in tensors(base).items()
        if t.ndim == 2 and t.is_floating_point() and n not in tables
    ]


def tensors(weights: Weights) -> Mapping[str, Tensor]:
    """Parameters by name, tied ones once; a mapping (of files, perhaps) is left as it is."""
    if isinstance(weights, nn.Module):
        return {name: parameter.detach() for name, parameter in weights.named_parameters()}
    return weights


def _of_edit(
    before: Mapping[str, Tensor], edit: Edit, names: Iterable[str] | None, tables: set[str],
    turned: set[str],
) -> Iterator[Pair]:
    if names is None:
        names = [
            n for n, c in edit.changes.items()
            if len(c.shape) == 2 and c.kind != "replace" and n not in tables
        ]
    chosen = list(names)
    unknown = [n for n in chosen if n not in edit.changes]
    missing = [n for n in chosen if n not in before]
    wrong = [
        f"{n} {tuple(before[n].shape)} (edit: {edit.changes[n].shape})" for n in chosen
        if n in before and n in edit.changes and tuple(before[n].shape) != edit.changes[n].shape
    ]
    if unknown or missing or wrong:
        raise DataError(
            "; ".join([
                *([f"the edit lacks {', '.join(unknown[:5])}"] if unknown else []),
                *([f"the base lacks {', '.join(missing[:5])}"] if missing else []),
                *([f"other shapes: {', '.join(wrong[:5])}"] if wrong else []),
            ]),
            expected="the base weights that the edit was made on",
            mend="edit.renamed({old prefix: new prefix}), or other names",
        )
    return (_edited(n, before[n], edit, n in turned) for n in chosen)


def _edited(name: str, weight: Tensor, edit: Edit, transposed: bool) -> Pair:
    change = edit.changes[name]
    transposed = transposed or bool(getattr(change, "transposed", False))
    delta, factors = change.delta(weight), change.lora()
    before = weight.T if transposed else weight
    delta = delta.T if transposed else delta
    after = before.double() + delta.to(before.device).double()
    return Pair(name, before, after, factors, transposed)


def _pair(name: str, before: Tensor, after: Tensor, transposed: bool) -> Pair:
    if transposed:
        before, after = before.T, after.T
    return Pair(name, before, after.to(before.device), transposed=transposed)


def _turned(base: Weights) -> set[str]:
    if not isinstance(base, nn.Module):
        return set()
    return {f"{n}.weight" for n, m in base.named_modules() if is_transposed(m)}


def _tables(base: Weights) -> set[str]:
    """Embeddings: by their modules, or by what they are called where there are no modules."""
    if not isinstance(base, nn.Module):
        return {n for n in base if _TABLE.search(n)}
    # An output projection tied to an embedding bears the embedding's name.
    return {
        f"{n}.{own}" for n, m in base.named_modules() if isinstance(m, nn.Embedding)
        for own, _ in m.named_parameters(recurse=False)
    }


def _same_matrices(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    matrices = {n for n, t in before.items() if t.ndim == 2}
    others = {n for n, t in after.items() if t.ndim == 2}
    lost, new = sorted(matrices - others), sorted(others - matrices)
    if lost or new:
        said = [f"only the base has {', '.join(lost[:5])}"] if lost else []
        said += [f"only the tuned model has {', '.join(new[:5])}"] if new else []
        raise DataError(
            f"{len(lost) + len(new)} names differ: {'; '.join(said)}",
            expected="two models of the same architecture",
            mend="names=[...] of the matrices to compare, or rename the tensors of one side",
        )


def _check(names: list[str], before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    for side, known in (("base", before), ("tuned model", after)):
        missing = [n for n in names if n not in known]
        if missing:
            raise DataError(
                f"the {side} lacks {', '.join(missing[:5])}",
                expected=f"names such as {', '.join(list(known)[:5])}",
            )
    if not names:
        raise DataError("no matrices to compare", expected="models with floating-point matrices")
    wrong = [n for n in names if before[n].shape != after[n].shape]
    if wrong:
        shapes = (f"{n} {tuple(before[n].shape)} and {tuple(after[n].shape)}" for n in wrong[:5])
        raise DataError(
            f"{len(wrong)} matrices have other shapes after tuning: {', '.join(shapes)}",
            expected="equal shapes", mend="leave resized ones out: names=[...]",
        )
    whole = [
        n for n in names for t in (before[n], after[n]) if not t.is_floating_point()
    ]
    if whole:
        raise DataError(
            f"{', '.join(whole[:5])} hold integers (a quantised model?)",
            expected="floating-point weights", mend="load it without quantisation",
        )
