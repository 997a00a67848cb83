"""Training chosen entries of a model's weights, at the memory of the entries.

>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
>>> selected = Selected(model, {"0.weight": torch.arange(5), "2.bias": torch.tensor([1])})
>>> optimizer = torch.optim.AdamW(selected.parameters(), lr=1e-2)
>>> model(torch.randn(3, 4)).square().sum().backward()
>>> selected.values["0.weight"].grad.shape, model[0].weight.grad
(torch.Size([5]), None)
>>> optimizer.step()                                    # the next forward pass sees the new values
>>> with selected.off():                                # the pretrained model, to the bit
...     pretrained = model(torch.randn(3, 4))
>>> selected.detach()                                   # and for good

The model keeps its modules, its parameters and its state dict. Every selected weight W still gets
its dense gradient from autograd, one layer at a time: a hook gathers it at the entries, adds it to
`values.grad` and drops it. The optimiser sees only the values [k]; they are written into W before
the next forward pass, so any optimiser works, and steps like a dense one with its gradient and
update masked, to the last bit. Clip by the norm of the values' gradients.

Sources: SaRA's unstructured backpropagation (arXiv 2409.06633), SpIEL (arXiv 2401.16405).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from passband.errors import CheckpointError, DataError, UnknownNameError
from passband.parts.selected_tensor import Parametrisation, SelectedTensor

if TYPE_CHECKING:
    from passband.parts.edits import Sparse

_MARK = "_passband_selected"


class Selected:
    """Entries of the model's weights as parameters [k]; all other weights are frozen meanwhile.

    model            any module; `off`, `detach` and a run's end leave its modules as they were
    indices          flat row-major indices [k] by name of `model.named_parameters()` (tied tensors
                     once, by their first name); Linear, convolutions, embeddings, norms, biases
    dtype            of the values; never less precise than the weight
    parametrisation  `value`: the values are the weights; `delta`: their change, from 0. The same
                     trajectory but for rounding and for weight decay, which pulls to 0 or to the
                     pretrained weight
    also             prefixes of parameters trained densely as well (a fresh head); `off` and
                     `detach` don't take those back
    on_gradient      called with (name, dense gradient in the weight's shape) at each backward pass
                     before the gradient is dropped; loss scaling, if any, is still in it

    Attach after the model is on its device and of its type. Hooks write pending values when the
    model, or a module that owns a selected weight, is called, and when a state dict is taken;
    `sync` writes them at any time (needed after writing into `values.data` by hand).

    Raises `UnknownNameError` for names that the model lacks, `DataError` for quantised, NaN or
    already selected weights and for indices that are empty, repeated or out of range.
    """

    def __init__(
        self, model: nn.Module, indices: Mapping[str, Tensor], *,
        dtype: torch.dtype = torch.float32, parametrisation: Parametrisation = "value",
        also: Iterable[str] = (), on_gradient: Callable[[str, Tensor], None] | None = None,
    ) -> None:
        weights = dict(model.named_parameters())
        self._check_names(model, weights, indices)
        self.also = _under(weights, also)
        if both := sorted(set(self.also) & set(indices)):
            raise DataError(
                f"{', '.join(both)} is both selected and trained densely", expected="one of them"
            )
        self.model = model
        self.on_gradient = on_gradient
        self._entries = {
            name: SelectedTensor(
                name, weights[name], at, dtype=dtype, parametrisation=parametrisation
            )
            for name, at in indices.items()
        }
        self._attached = True
        self._paused = False
        self._away = 0  # depth of `off`
        self._trainable = {name: weight.requires_grad for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.requires_grad_(name in self._entries or name in self.also)
        self._hooks = [*self._gradient_hooks(), *self._writing_hooks()]

    @staticmethod
    def _check_names(
        model: nn.Module, weights: Mapping[str, nn.Parameter], indices: Mapping[str, Tensor]
    ) -> None:
        if not indices:
            raise DataError("no weight is selected", expected="indices of at least one parameter")
        first = {id(weight): name for name, weight in weights.items()}
        aliases = dict(model.named_parameters(remove_duplicate=False))
        for name in indices:
            if name in aliases and name not in weights:
                raise DataError(
                    f"{name} is tied to {first[id(aliases[name])]}",
                    expected="tied tensors once, by their first name",
                    mend=f"select in {first[id(aliases[name])]!r}: both see the change",
                )
            if name not in weights:
                raise UnknownNameError("parameter", name, weights)
            if hasattr(weights[name], _MARK):
                raise DataError(
                    f"entries of {name} are selected already", expected="one selection at a time",
                    mend="detach the other one first",
                )

    def _gradient_hooks(self) -> Iterator[Any]:
        for name, entry in self._entries.items():
            entry.weight.grad = None  # an older gradient would be added to the first one

            def gather(weight: Tensor, name: str = name, entry: SelectedTensor = entry) -> None:
                if self._paused:
                    return
                gradient, weight.grad = weight.grad, None
                if gradient is None:
                    return
                if gradient.is_sparse:  # nn.Embedding(sparse=True)
                    gradient = gradient.to_dense()
                if self.on_gradient is not None:
                    self.on_gradient(name, gradient.detach())
                entry.collect(gradient)

            setattr(entry.weight, _MARK, True)
            yield entry.weight.register_post_accumulate_grad_hook(gather)  # type: ignore[no-untyped-call]

    def _writing_hooks(self) -> Iterator[Any]:
        # Functions, not bound methods: a deep copy of the model must not drag this object along.
        def before(entries: list[SelectedTensor]) -> Callable[..., None]:
            def write_pending(*_: Any) -> None:
                self._write_pending(entries)

            return write_pending

        everything = before(list(self._entries.values()))
        yield self.model.register_forward_pre_hook(everything, prepend=True)
        yield self.model.register_state_dict_pre_hook(everything)  # type: ignore[no-untyped-call]
        of = {id(entry.weight): entry for entry in self._entries.values()}
        for module in self.model.modules():
            owned = [of[id(p)] for p in module.parameters(recurse=False) if id(p) in of]
            if owned and module is not self.model:
                yield module.register_forward_pre_hook(before(owned), prepend=True)

    def _write_pending(self, entries: Iterable[SelectedTensor]) -> None:
        if self._away or not self._attached:
            return
        for entry in entries:
            if entry.pending:
                entry.write()

    @property
    def paused(self) -> bool:
        """True: gradients are left where they are, and others may select entries meanwhile."""
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        for entry in self._entries.values():
            if paused and hasattr(entry.weight, _MARK):
                delattr(entry.weight, _MARK)
            elif not paused:
                setattr(entry.weight, _MARK, True)
        self._paused = paused

    @property
    def values(self) -> dict[str, nn.Parameter]:
        """The trained values [k] by parameter name; the same objects for the whole run."""
        return {name: entry.values for name, entry in self._entries.items()}

    @property
    def indices(self) -> dict[str, Tensor]:
        """Flat indices [k] of the values; sorted until slots move."""
        return {name: entry.indices for name, entry in self._entries.items()}

    @property
    def support(self) -> dict[str, Tensor]:
        """Sorted indices of all entries that may differ from the original: those of the values and
        those frozen by `keep`. Entries that `change_slots` left are original again, so not here."""
        return {name: entry.support for name, entry in self._entries.items()}

    def originals(self) -> dict[str, Tensor]:
        """The entries [k] as they were, in the weight's type and the order of the values."""
        return {name: entry.original for name, entry in self._entries.items()}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What an optimiser gets: the values, then the parameters in `also`."""
        yield from self.values.items()
        yield from self.also.items()

    def parameters(self) -> Iterator[nn.Parameter]:
        """`named_parameters` without the names."""
        for _, parameter in self.named_parameters():
            yield parameter

    def place(self, parameter: Tensor) -> tuple[Tensor, int, int] | None:
        """Where the values stand: (indices [k], rows, columns) of the weight; None for others.

        Weights of more axes count all but the first as columns; vectors have one column.
        """
        for entry in self._entries.values():
            if entry.values is parameter:
                rows = entry.weight.shape[0] if entry.weight.dim() else 1
                return entry.indices, rows, entry.weight.numel() // rows
        return None

    def sync(self) -> None:
        """Write all values into the weights now."""
        self._require_on("sync")
        for entry in self._entries.values():
            entry.write()

    @contextmanager
    def off(self) -> Iterator[None]:
        """The selected weights as they were, to the bit, inside the block; nests.

        Graphs made before the block may run backward after it. Forward passes inside it belong
        under `torch.no_grad()`, or must be run backward inside it as well.
        """
        if not self._attached:
            raise DataError("these entries are detached", mend="select them again")
        if not self._away:
            self._write_pending(self._entries.values())
        stood = {name: entry.swap() for name, entry in self._entries.items()}
        self._away += 1
        try:
            yield
        finally:
            self._away -= 1
            for name, bits in stood.items():
                self._entries[name].swap(bits)

    def change_slots(
        self, name: str, slots: Tensor, new_indices: Tensor, new_values: Tensor | float = 0.0
    ) -> None:
        """Let some values stand for other entries of the weight; those they leave are restored.

        slots        [n] positions in `values[name]`
        new_indices  [n] flat indices outside the support (or among those being left)
        new_values   [n] or a number: the change from the original weight at the new entries

        Their gradient, if any, becomes 0. The optimiser's state of the slots is the caller's to
        set: `SlotAdamW.seed`.
        """
        self._require_on("change_slots")
        self._entry(name).move(slots, new_indices, new_values)

    def keep(self, name: str, mask: Tensor) -> None:
        """Train only the entries where `mask` [k] holds from now on; the others stay as they stand
        and remain part of the change.

        `values[name]` keeps its identity and gets shorter; `slots.gather_state` does the same to
        an optimiser's state. Raises `DataError` when nothing at all would be left to train.
        """
        self._require_on("keep")
        entry = self._entry(name)
        others = any(e.values.numel() for e in self._entries.values() if e is not entry)
        if not (others or self.also or bool(mask.any())):
            raise DataError(
                f"{name} was the last weight with entries to train and keeps none",
                expected="at least one entry", mend="raise the threshold, or stop here",
            )
        entry.keep(mask)

    def edit_changes(self) -> dict[str, Sparse]:
        """The change of every weight over its support, as differences in the values' precision.

        For `value` parametrisation the difference is rounded once: adding it to the original gives
        the trained weight to the last bit unless a weight changed by more than its own size.
        Raises `DataError` naming the tensor when a value is NaN.
        """
        from passband.parts.edits import Sparse

        changes = {}
        for name, entry in self._entries.items():
            at, difference = entry.change()
            changes[name] = Sparse(at, difference.float(), tuple(entry.weight.shape))
        return changes

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors `<name>.<part>` to resume exactly, resized and moved sets included.

        Dense parameters in `also` are the model's own and not in here.
        """
        return {
            f"{name}.{part}": tensor
            for name, entry in self._entries.items()
            for part, tensor in entry.tensors().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict()` on the same pretrained model; load the optimiser after it.

        Raises `CheckpointError`, with nothing changed, for other weights or another selection.
        """
        self._require_on("load_state_dict")
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            name, _, part = key.rpartition(".")
            parts.setdefault(name, {})[part] = tensor
        if other := sorted(set(parts) ^ set(self._entries)):
            raise CheckpointError(
                f"only one of the saved and this selection has entries of {', '.join(other)}",
                expected=f"entries of {', '.join(self._entries)}",
                mend="select in the same weights as the saved run",
            )
        with self.off():
            for name, entry in self._entries.items():
                entry.check_tensors(parts[name])
        for name, entry in self._entries.items():
            entry.load(parts[name])

    def detach(self, restore: bool = True) -> None:
        """Remove all hooks and give every parameter its `requires_grad` back.

        restore  True: the weights are the original ones, to the bit; False: the trained ones
        """
        if not self._attached:
            return
        self._require_on("detach")
        for entry in self._entries.values():
            if restore:
                entry.restore()
            else:
                entry.write()
            entry.weight.grad = None
            delattr(entry.weight, _MARK)
        for hook in self._hooks:
            hook.remove()
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(self._trainable.get(name, weight.requires_grad))
        self._attached = False

    def _entry(self, name: str) -> SelectedTensor:
        if name not in self._entries:
            raise UnknownNameError("selected parameter", name, self._entries)
        return self._entries[name]

    def _require_on(self, verb: str) -> None:
        if not self._attached:
            raise DataError(f"{verb} after detach", mend="select the entries again")
        if self._away:
            raise DataError(f"{verb} inside off()", mend="leave the block first")


def _under(weights: Mapping[str, nn.Parameter], prefixes: Iterable[str]) -> dict[str, nn.Parameter]:
    found: dict[str, nn.Parameter] = {}
    for prefix in prefixes:
        here = {n: w for n, w in weights.items() if n == prefix or n.startswith(f"{prefix}.")}
        if not here:
            raise UnknownNameError("parameter prefix", prefix, weights)
        found |= here
    return found
