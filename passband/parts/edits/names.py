"""Names of parameters: what an edit and a model call them, and how one leads to the other.

>>> renamed_names(["bert.encoder.weight"], {"bert.": "roberta."})
{'bert.encoder.weight': 'roberta.encoder.weight'}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from passband.errors import DataError


def renamed_names(names: Iterable[str], prefixes: Mapping[str, str]) -> dict[str, str]:
    """Old name -> new name; the longest prefix that fits is replaced, other names stay.

    Raises `DataError` when two names become one.
    """
    new = {name: _renamed(name, prefixes) for name in names}
    if len(set(new.values())) < len(new):
        seen: set[str] = set()
        twice = sorted({n for n in new.values() if n in seen or seen.add(n)})  # type: ignore[func-returns-value]
        raise DataError(
            f"renaming gives {', '.join(twice[:5])} more than once", expected="different names",
        )
    return new


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    fitting = max((p for p in prefixes if name.startswith(p)), key=len, default=None)
    return name if fitting is None else prefixes[fitting] + name[len(fitting) :]


def find(
    target: nn.Module | Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """The tensors that an edit changes, by name.

    Raises `DataError` that names what is missing, tied to another tensor, or of another shape.
    """
    known: dict[str, Tensor] = dict(
        target.named_parameters() if isinstance(target, nn.Module) else target
    )
    missing = [name for name in shapes if name not in known]
    if missing:
        raise _missing(target, missing, known, shapes)
    wrong = [name for name, shape in shapes.items() if tuple(known[name].shape) != shape]
    if wrong:
        pairs = (f"{n} {tuple(known[n].shape)} (edit: {shapes[n]})" for n in wrong[:5])
        raise DataError(
            f"{len(wrong)} tensors of another shape: {', '.join(pairs)}",
            expected="the model that the edit was made on",
            mend="a resized vocabulary or another size of model: leave these tensors out with "
            "edit.only(...), or edit.renamed({old: new}) where names were mixed up",
        )
    return {name: known[name] for name in shapes}


def _missing(
    target: nn.Module | Mapping[str, Tensor], missing: list[str], known: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> DataError:
    what = f"the model lacks {len(missing)} of {len(shapes)} tensors: {', '.join(missing[:5])}"
    expected = "the names of model.named_parameters()"
    if isinstance(target, nn.Module):
        aliases = dict(target.named_parameters(remove_duplicate=False))
        tied = [name for name in missing if name in aliases]
        if tied:
            own = {id(tensor): name for name, tensor in known.items()}
            pairs = ", ".join(f"{n} is tied to {own[id(aliases[n])]}" for n in tied[:5])
            return DataError(
                f"{what}; {pairs}", expected=expected,
                mend="untie them in this model, or leave them out with edit.only(...)",
            )
    prefixes = _guess(missing, known, shapes)
    mend = (
        f"edit.renamed({prefixes})" if prefixes else
        "edit.renamed({old prefix: new prefix}), or leave them out with edit.only(...)"
    )
    return DataError(what, expected=expected, mend=mend)


def _guess(
    missing: list[str], known: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, str] | None:
    """One change of prefix after which every tensor is found, in its shape."""
    parts = missing[0].split(".")
    for cut in range(len(parts)):
        old, tail = parts[:cut], ".".join(parts[cut:])
        for name in known:
            if name != tail and not name.endswith("." + tail):
                continue
            prefixes = {"".join(p + "." for p in old): name[: len(name) - len(tail)]}
            new = {m: _renamed(m, prefixes) for m in shapes}
            if all(n in known and tuple(known[n].shape) == shapes[m] for m, n in new.items()):
                return prefixes
    return None
