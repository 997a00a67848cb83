"""Which layers of a model a method adapts, and its transformer blocks.

>>> model = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "seq_proj": nn.Linear(4, 4)})
>>> list(find_targets(model, "q_proj"))
['q_proj']
>>> list(find_targets(model, "all-linear"))
['q_proj', 'seq_proj']
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from passband.errors import ConfigError, DataError

ALL_LINEAR = "all-linear"


def find_targets(
    model: nn.Module,
    endings: str | Sequence[str],
    *,
    head: Sequence[str] = (),
    rank: int | None = None,
) -> dict[str, nn.Module]:
    """Layers to adapt, by dotted name, in the model's own order; layers that share a weight once.

    endings  last components of names: "q_proj" fits "layers.0.q_proj" and not "seq_proj",
             "self_attn.q_proj" fits where both components do; or "all-linear": every nn.Linear and
             Conv1D but the output head, which is what lies outside of a transformers model's
             `base_model`, and what `get_output_embeddings` gives
    head     prefixes that are trained as they are: never a target
    rank     raises `ConfigError` when a layer can't have that rank
    Raises `DataError` when an ending fits nothing (with those that would), for quantised and NaN
    weights (with the layer), and for models that peft has wrapped already.
    """
    wanted = [endings] if isinstance(endings, str) else list(endings)
    if not wanted:
        raise ConfigError("no endings of layer names", expected=f"names, or {ALL_LINEAR!r}")
    _refuse_wrapped(model)
    layers = {n: m for n, m in _layers(model) if not _under(n, head)}
    chosen: set[str] = set()
    for ending in wanted:
        fitting = (
            _all_linear(model, layers)
            if ending == ALL_LINEAR
            else [name for name in layers if _ends(name, ending)]
        )
        if not fitting:
            raise _nothing(ending, layers)
        chosen.update(fitting)
    found = {name: layer for name, layer in layers.items() if name in chosen}
    _refuse_quantised(found)
    found = _once(found)
    _check_finite(found)
    if rank is not None:
        _check_rank(found, rank)
    return found


def weight_of(layer: nn.Module) -> tuple[Tensor, bool]:
    """The layer's weight as a matrix [out, in], a view of it, and whether it is stored [in, out].

    Kernels [out, in, h, w] are [out, in * h * w].

    >>> weight_of(nn.Conv2d(3, 8, 2))[0].shape
    torch.Size([8, 12])
    """
    weight = _weight(layer)
    if is_transposed(layer):
        return weight.T, True
    return weight.reshape(len(weight), -1), False


def is_transposed(layer: nn.Module) -> bool:
    """Whether the layer is a Conv1D of transformers (GPT-2), whose weight is [in, out]."""
    return any(
        kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
        for kind in type(layer).__mro__
    )


def sharing(model: nn.Module, layer: nn.Module) -> dict[str, nn.Module]:
    """Every module of the model that holds this layer's weight, the layer itself included.

    >>> tied = nn.ModuleList([nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)])
    >>> tied[1].weight = tied[0].weight
    >>> list(sharing(model=tied, layer=tied[1]))
    ['0', '1']
    """
    return {
        name: module
        for name, module in model.named_modules()
        if any(own is layer.weight for own in module._parameters.values())
    }


def blocks(model: nn.Module) -> list[nn.Module]:
    """The model's transformer blocks in the order of the forward pass; empty when it has none.

    The longest list of modules of one class among those that lie in no other list (so that the
    experts of a block don't count).

    >>> len(blocks(nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])})))
    3
    """
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    outer = [
        list(modules)
        for name, modules in lists.items()
        if not any(name != other and _under(name, [other]) for other in lists)
        and len({type(module) for module in modules}) == 1
    ]
    return max(outer, key=len, default=[])


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | _ConvNd) or is_transposed(module) or _packed(module):
            yield name, module


def _packed(module: nn.Module) -> bool:
    """Whether it is a quantised layer that is no nn.Linear: of torch itself, GPTQ, AWQ, ..."""
    return callable(getattr(module, "weight", None)) or hasattr(module, "qweight")


def _all_linear(model: nn.Module, layers: dict[str, nn.Module]) -> list[str]:
    output = cast(Callable[[], nn.Module | None], getattr(model, "get_output_embeddings", _none))()
    base = getattr(model, "base_model", model)
    inside = {id(module) for module in base.modules()} if isinstance(base, nn.Module) else None
    return [
        name
        for name, layer in layers.items()
        if not isinstance(layer, _ConvNd)
        and layer is not output
        and (inside is None or id(layer) in inside)
    ]


def _none() -> None:
    return None


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)


def _under(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def _once(layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    seen: set[int] = set()
    return {
        name: layer
        for name, layer in layers.items()
        if id(layer.weight) not in seen and not seen.add(id(layer.weight))  # type: ignore[func-returns-value]
    }


def _nothing(ending: str, layers: dict[str, nn.Module]) -> DataError:
    candidates = sorted({name.rpartition(".")[2] for name in layers} - {""})
    names = [c for c in candidates if not c.isdigit()] or candidates
    close = difflib.get_close_matches(ending.rpartition(".")[2], names, n=3, cutoff=0.5)
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return DataError(
        f"no linear layer or convolution of the model is called {ending!r}",
        expected=f"{ALL_LINEAR!r}, or last components of names: {shown or 'the model has none'}",
        mend=f"did you mean {' or '.join(map(repr, close))}?" if close else "",
    )


def _refuse_wrapped(model: nn.Module) -> None:
    wrapped = next((m for m in model.modules() if type(m).__module__.startswith("peft.")), None)
    if wrapped is not None:
        raise DataError(
            f"the model is adapted by peft already ({type(wrapped).__name__})",
            expected="a plain pretrained model",
            mend="merge it first: model.merge_and_unload()",
        )


def _refuse_quantised(layers: dict[str, nn.Module]) -> None:
    found = [n for n, m in layers.items() if _packed(m) or not _weight(m).is_floating_point()]
    if found:
        some = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise DataError(
            f"{len(found)} layers have quantised weights: {some}",
            expected="floating-point weights",
            mend="load the model without quantisation",
        )


def _weight(layer: nn.Module) -> Tensor:
    return cast(Tensor, layer.weight)


def _check_finite(layers: dict[str, nn.Module]) -> None:
    for name, layer in layers.items():
        weight = _weight(layer)
        if weight.is_meta or weight.numel() == 0:
            continue
        low, high = torch.aminmax(weight.detach())
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise DataError(
                f"the weight of {name} has NaN or infinite entries",
                expected="finite weights",
                mend="check the checkpoint that was loaded",
            )


def _check_rank(layers: dict[str, nn.Module], rank: int) -> None:
    if rank < 1:
        raise ConfigError(f"rank = {rank}", expected="1 or more")
    for name, layer in layers.items():
        shape = tuple(weight_of(layer)[0].shape)
        if rank > min(shape):
            raise ConfigError(
                f"rank = {rank} for {name}, a matrix {shape[0]} x {shape[1]}",
                expected=f"at most {min(shape)}",
                mend=f"a smaller rank, or leave {name.rpartition('.')[2]!r} out of the targets",
            )
