"""Which parameters of a model a mask may choose from, and which are trained densely beside it.

    maskable   parameters under the base model's prefix, without what is frozen
    dense      heads: given by name, or everything outside of the base model

>>> model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
>>> find_parts(model, ["head"])
Parts(maskable=('body.weight', 'body.bias'), dense=('head.weight', 'head.bias'))
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from passband.errors import DataError, PassbandWarning


@dataclass(frozen=True)
class Parts:
    """Names of parameters; tied tensors count once."""

    maskable: tuple[str, ...]
    dense: tuple[str, ...]


def find_parts(
    model: nn.Module, head: Sequence[str] = (), *, prefix: str | None = None,
    layer_norm: bool = True, embeddings: bool = True, heads: bool = True, decoder: bool = True,
) -> Parts:
    """
    head    prefixes of parameters trained densely; empty: all outside of the base model
    prefix  of the base model; None: `model.base_model_prefix` where the model has such a part,
            else the whole model without `head`
    The flags say what is trained: norms and embedding tables, heads, the output projection. What
    was frozen before (`requires_grad`) stays so.
    Raises `DataError` when nothing is left to mask; warns when the projection should stay as it is
    but is tied to trained embeddings.
    """
    named = dict(model.named_parameters())
    base = _base_prefix(model, prefix)
    given = {n for n in named if any(n == h or n.startswith(h + ".") for h in head)}
    inside = {n for n in named if n.startswith(base) and n not in given}
    kept = {n for n, parameter in named.items() if not parameter.requires_grad}
    if not layer_norm:
        kept |= _owned(model, lambda m: "norm" in type(m).__name__.lower())
    tables = _owned(model, lambda m: isinstance(m, nn.Embedding))
    if not embeddings:
        kept |= tables
    projection = _projection(model)
    if not decoder:
        tied = projection & inside - kept
        if tied:
            warnings.warn(
                f"the output projection is tied to {', '.join(sorted(tied))}, which is trained: it "
                "changes too. untie_embeddings=True keeps it as it is", PassbandWarning,
                stacklevel=3,
            )
        kept |= projection - inside
    outside = given if head else set(named) - inside
    dense = outside - kept if heads else set()
    maskable = inside - kept
    if not maskable:
        raise DataError(
            f"no parameter to mask under the prefix {base!r}", expected="the base model's prefix",
            mend=f"prefix= one of {', '.join(n for n, _ in model.named_children())}",
        )
    return Parts(
        tuple(n for n in named if n in maskable), tuple(n for n in named if n in dense)
    )


def _base_prefix(model: nn.Module, prefix: str | None) -> str:
    if prefix is None:
        known = getattr(model, "base_model_prefix", "")
        prefix = known if known and hasattr(model, known) else ""
    return prefix and prefix.rstrip(".") + "."


def _owned(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> set[str]:
    """Names of the parameters of the modules that are wanted."""
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        names[id(p)] for module in model.modules() if wanted(module)
        for p in module.parameters(recurse=False)
    }


def _projection(model: nn.Module) -> set[str]:
    found = getattr(model, "get_output_embeddings", lambda: None)()
    if found is None:
        return set()
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)] for p in found.parameters()}


def untied(model: nn.Module) -> Callable[[], None] | None:
    """Give the output projection a weight of its own; returns what ties it again.

    None where it was not tied, or where the model has no output projection.
    """
    table = getattr(model, "get_input_embeddings", lambda: None)()
    projection = getattr(model, "get_output_embeddings", lambda: None)()
    if table is None or projection is None or projection.weight is not table.weight:
        return None
    projection.weight = nn.Parameter(table.weight.detach().clone())

    def tie() -> None:
        projection.weight = table.weight

    return tie
