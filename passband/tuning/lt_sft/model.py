"""Sparse fine-tuning that composes: Lottery-Ticket SFT.

Problem. One pretrained model, many tasks and many languages (or domains), each learned from data of
its own, and any of them wanted together: a task learned in English, used in a language that has no
task data. Every one becomes a small sparse difference of weights, and differences add.

    theta0 pretrained parameters, M maskable ones (N_m of them), K entries are kept

    phase 1   theta <- argmin L + l1_full R                        everything is trained
    select    mu = the K largest |theta - theta0| over all of M    one threshold for all tensors
    rewind    theta <- theta0                                      heads as well
    phase 2   theta <- argmin L + l1_sparse R,  entries mu alone   optimiser and schedule anew
    phi = (theta - theta0) mu
    R = sum_i |theta_i - theta0_i| / N                             N: all parameters of the model

    compose   theta = theta0 + phi_task + phi_language

Several iterations J repeat this with K / J more entries each, from where the last one ended; the
distance is always the one to theta0. During training for a task the source language's difference is
applied already and stays: `phi_language.apply(model)` first, then attach; phi_task never contains
it. Parameters outside the base model (task heads) are trained densely in both phases.

Source: Ansell, Ponti, Korhonen, Vulic, ACL 2022, arXiv 2110.07560.

>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
>>> handle = LTSFT(count=10).attach(model, head=["2"])
>>> for phase in handle.phases():
...     optimizer = handle.optimizer(lr=1e-2)
...     for _ in range(3):
...         loss = model(torch.randn(16, 4)).square().mean()
...         handle.objective(loss).backward()
...         optimizer.step()
...         optimizer.zero_grad()
>>> sum(len(c.indices) for c in handle.edit().changes.values() if c.kind == "sparse")
10
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from passband.errors import CheckpointError, ConfigError, DataError
from passband.parts.edits import Change, Dense, Sparse, fingerprint
from passband.parts.selective import Selected
from passband.tuning.handle import Calibration, Handle, Phase
from passband.tuning.lt_sft.maskable import Parts, find_parts, untied
from passband.tuning.lt_sft.selection import Given, Moved, largest, per_tensor, uniform

Criterion = Literal["lottery", "per_tensor", "random", "bitfit", "first_order", "all"]
Normaliser = Literal["total", "maskable", "none"]


@dataclass(frozen=True)
class LTSFT:
    """
    density            K / N_m; used where `count` is None
    count              K itself
    criterion          lottery      the K that moved farthest in phase 1
                       per_tensor   the same share of every tensor, that moved farthest
                       random       drawn uniformly (RAND-SFT); no phase 1
                       bitfit       all biases; no phase 1
                       first_order  largest summed squared gradients over the batches of
                                    `calibration["task"]`; no phase 1
                       all          no mask: dense differences, what sparse ones are compared with
    iterations         J, of select and rewind
    full_share         part of each iteration's steps that phase 1 takes
    l1_full, l1_sparse weight of R in either phase. With N = all parameters the pull on one weight
                       is l1 / N: far below Adam's eps for large models, 300 times stronger at
                       5e5 parameters than at 1.8e8. It has to be tuned anew for another size
    l1_normaliser      N: total, maskable, or none (N = 1)
    l1_maskable_only   leave heads out of R
    freeze_*           what phase 1 and the mask leave alone; the decoder is the output projection
    untie_embeddings   give the output projection a weight of its own while attached
    prefix             of the base model in parameter names; None: the model says it
    """

    density: float = 0.05
    count: int | None = None
    criterion: Criterion = "lottery"
    iterations: int = 1
    full_share: float = 0.5
    l1_full: float = 0.0
    l1_sparse: float = 0.0
    l1_normaliser: Normaliser = "total"
    l1_maskable_only: bool = False
    freeze_layer_norm: bool = True
    freeze_embeddings: bool = False
    freeze_head: bool = False
    freeze_decoder: bool = False
    untie_embeddings: bool = False
    prefix: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigError(f"density = {self.density}", expected="above 0, at most 1")
        if self.count is not None and self.count < 1:
            raise ConfigError(f"count = {self.count}", expected="at least 1, or None")
        if self.iterations < 1 or (self.iterations > 1 and not self.two_phases):
            raise ConfigError(
                f"{self.iterations} iterations of {self.criterion}", expected="1, or more of "
                "lottery or per_tensor: the others have nothing to select again",
            )
        if not 0 < self.full_share < 1:
            raise ConfigError(f"full_share = {self.full_share}", expected="between 0 and 1")

    @property
    def two_phases(self) -> bool:
        return self.criterion in ("lottery", "per_tensor")

    def parts(self, model: nn.Module, head: Sequence[str] = ()) -> Parts:
        """Which parameters can be masked, and which are trained densely."""
        return find_parts(
            model, head, prefix=self.prefix, layer_norm=not self.freeze_layer_norm,
            embeddings=not self.freeze_embeddings, heads=not self.freeze_head,
            decoder=not self.freeze_decoder,
        )

    def entries(self, model: nn.Module, head: Sequence[str] = ()) -> int:
        """K on this model; works on the meta device."""
        known = dict(model.named_parameters())
        parts = self.parts(model, head)
        if self.criterion == "bitfit":
            return sum(known[n].numel() for n in parts.maskable if known[n].ndim == 1)
        if self.criterion == "all":
            return sum(known[n].numel() for n in parts.maskable)
        if self.count is not None:
            return self.count
        return max(1, round(self.density * sum(known[n].numel() for n in parts.maskable)))

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> LotteryTicket:
        """Raises `DataError` when there is nothing to mask or K exceeds it."""
        base = fingerprint(model)
        retie = untied(model) if self.untie_embeddings else None
        parts = self.parts(model, head)
        handle = LotteryTicket(
            model, parts, self.entries(model, head), calibration=calibration,
            method=self, head=parts.dense, steps=steps, seed=seed, name=name,
        )
        # The base is the model as it came: an edit of it must not ask for an untied one.
        handle.base = base.only(lambda n: n not in handle.head)
        handle.retie = retie
        return handle


class LotteryTicket(Handle):
    """LT-SFT on a model.

    entries   K
    maskable  parameters that the mask may choose from, by name; `size` of them
    support   sorted flat indices of the entries that are in the mask so far, by name
    selected  their values, in phase 2; None in phase 1
    """

    def __init__(
        self, model: nn.Module, parts: Parts, entries: int, *, method: LTSFT,
        calibration: Calibration | None = None, **options: Any,
    ) -> None:
        known = dict(model.named_parameters())
        self.method, self.entries, self.calibration = method, entries, calibration or {}
        self.maskable = {name: known[name] for name in parts.maskable}
        self.size = sum(p.numel() for p in self.maskable.values())
        _check(self.maskable, entries, self.size)
        super().__init__(model, method=method, **options)
        self.about |= {"entries": entries, "density": entries / self.size}
        self.retie: Callable[[], None] | None = None
        self.total = sum(p.numel() for p in model.parameters())
        self.support: dict[str, Tensor] = {}
        self.selected: Selected | None = None
        # Pretrained values: of whole tensors while something is to be selected, then of the
        # support alone.
        self._whole: dict[str, Tensor] = {}
        self._entries: dict[str, Tensor] = {}
        self._away: dict[str, Tensor] = {}  # what stands in the weights when switched on again
        self._kept: dict[str, Change] = {}  # the changes, while switched off
        if method.two_phases or method.criterion == "all":
            self._whole = {n: p.detach().clone() for n, p in self.maskable.items()}
            self._train_all()
        else:
            self._train_entries(self._choose(entries))

    # ---- phases ----------------------------------------------------------------------------

    def phases(self) -> Iterator[Phase]:
        method, rounds = self.method, self.method.iterations
        if not method.two_phases:
            yield Phase("train")
            return
        for number in range(rounds):
            label = f"-{number + 1}" if rounds > 1 else ""
            heads = {n: p.detach().clone() for n, p in self.head.items()}
            values = self._train_all()
            yield Phase(f"full{label}", method.full_share / rounds)
            # Whole numbers: the last iteration takes what division left.
            held = sum(map(len, self.support.values()))
            chosen = self._choose(self.entries * (number + 1) // rounds - held)
            self._rewind(values, heads)
            self._train_entries(chosen)
            if number == rounds - 1:
                self._whole = {}
            yield Phase(f"sparse{label}", (1 - method.full_share) / rounds)

    def _train_all(self) -> dict[str, Tensor]:
        """Phase 1: nothing is masked. Returns the values that the entries of the mask have."""
        values = {n: v.detach().clone() for n, v in self._values().items()}
        if self.selected is not None:
            self.selected.detach(restore=False)
            self.selected = None
        self._begin()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.maskable or name in self.head)
        return values

    def _train_entries(self, chosen: Mapping[str, Tensor]) -> None:
        """Phase 2: the entries of the mask alone, with optimiser state of their number."""
        names = [n for n in self.maskable if n in chosen or n in self.support]
        devices = {n: self.maskable[n].device for n in names}
        self.support = {
            n: _joined(self.support.get(n), chosen.get(n)).to(devices[n]) for n in names
        }
        first = self._whole or {n: self.maskable[n].detach() for n in names}
        self._entries = {n: _flat(first[n])[self.support[n]] for n in names}
        self._begin()
        self.selected = Selected(self.model, self.support, also=list(self.head))

    def _begin(self) -> None:
        """Optimisers of an earlier phase are no longer ours; nor are gradients."""
        self.optimizers.clear()
        for parameter in self.model.parameters():
            parameter.grad = None

    def _choose(self, count: int) -> dict[str, Tensor]:
        choose = _CRITERIA[self.method.criterion]
        return choose(self, count)

    @torch.no_grad()
    def _rewind(self, values: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        """Everything as it was when the iteration began, heads included."""
        for name, parameter in self.maskable.items():
            parameter.copy_(self._whole[name])
            if name in values:
                at = self.support[name]
                parameter.view(-1).index_copy_(0, at, values[name].to(parameter.dtype))
        for name, parameter in self.head.items():
            parameter.copy_(heads[name])

    # ---- what a handle gives ---------------------------------------------------------------

    def _values(self) -> dict[str, nn.Parameter]:
        return self.selected.values if self.selected is not None else {}

    def trained(self) -> dict[str, nn.Parameter]:
        return self._values() or dict(self.maskable)

    def changes(self) -> dict[str, Change]:
        """Sparse; dense in phase 1 and without a mask."""
        return dict(self._kept) if not self.enabled else self._changes()

    def _changes(self) -> dict[str, Change]:
        if self.selected is None:
            return {
                n: Dense(p.detach().float() - self._whole[n].float())
                for n, p in self.maskable.items()
            }
        return {
            n: Sparse(self.support[n], v.detach().float() - self._entries[n].float(),
                      tuple(self.maskable[n].shape))
            for n, v in self._values().items()
        }

    def _switch(self, on: bool) -> None:
        """Exchange what stands in the weights; through `.data`, so that graphs stay usable."""
        if on:
            self._put(self._away)
            self._kept, self._away = {}, {}
            return
        if self.selected is not None:
            self.selected.sync()
        self._kept, self._away = self._changes(), self._standing()
        self._put(self._whole if self.selected is None else self._entries)

    def _standing(self) -> dict[str, Tensor]:
        """What stands in the weights now: whole tensors, or the entries of the support."""
        if self.selected is None:
            return {n: p.detach().clone() for n, p in self.maskable.items()}
        return {n: _flat(self.maskable[n])[at] for n, at in self.support.items()}

    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            weight = self.maskable[name].data
            if self.selected is None:
                weight.copy_(value)
            else:
                weight.view(-1).index_copy_(0, self.support[name], value)

    def _release(self) -> None:
        """The weights are the pretrained ones already, and stay so."""
        if self.selected is not None:
            self.selected.detach(restore=True)
            self._put(self._entries)  # the selection's own memory is of the last rewinding
            self.selected = None
        if self.retie is not None:
            self.retie()

    def penalty(self) -> Tensor | None:
        """R of the phase, weighted."""
        method = self.method
        weight = method.l1_full if self.selected is None else method.l1_sparse
        if weight == 0:
            return None
        first = self._whole if self.selected is None else self._entries
        pairs = [(p, first[n]) for n, p in self.trained().items()]
        if not method.l1_maskable_only:
            pairs += [(p, self._start[n]) for n, p in self.head.items()]
        distance = torch.stack([(p - p0.to(p.dtype)).abs().sum().float() for p, p0 in pairs])
        count = {"total": self.total, "maskable": self.size, "none": 1}[method.l1_normaliser]
        return weight / count * distance.sum()

    # ---- exact resume ----------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        phase = "full" if self.selected is None else "sparse"
        return {"support": dict(self.support), "phase": phase}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Within the phase it was taken in. Raises `CheckpointError` for another mask."""
        here = self.extra_state()
        same = here["support"].keys() == state["support"].keys() and all(
            torch.equal(at.cpu(), state["support"][n].cpu()) for n, at in self.support.items()
        )
        if here["phase"] != state["phase"] or not same:
            raise CheckpointError(
                f"a state of phase {state['phase']!r} for a handle in {here['phase']!r}"
                + ("" if same else ", with another mask"),
                expected="the same phase after the same selection",
                mend="resume phase 1 from its own end first: the selection follows from it",
            )


# ---- which entries -------------------------------------------------------------------------------


def _moved(handle: LotteryTicket, count: int) -> dict[str, Tensor]:
    moved = Moved(handle._whole, handle.maskable)
    return largest(moved, count, taken=handle.support, seed=handle.seed)


def _moved_per_tensor(handle: LotteryTicket, count: int) -> dict[str, Tensor]:
    return per_tensor(Moved(handle._whole, handle.maskable), count, taken=handle.support)


def _random(handle: LotteryTicket, count: int) -> dict[str, Tensor]:
    return uniform({n: p.numel() for n, p in handle.maskable.items()}, count, handle.seed)


def _biases(handle: LotteryTicket, count: int) -> dict[str, Tensor]:
    return {n: torch.arange(p.numel()) for n, p in handle.maskable.items() if p.ndim == 1}


def _fisher(handle: LotteryTicket, count: int) -> dict[str, Tensor]:
    """Squared gradients, summed over the calibration batches."""
    batches = handle.calibration.get("task", ())
    if not len(batches):
        raise DataError(
            "criterion 'first_order' without batches", expected="calibration={'task': [...]}",
            mend="some batches, each the keyword arguments of one call of the model",
        )
    names, weights = list(handle.maskable), list(handle.maskable.values())
    flags = [p.requires_grad for p in weights]
    found = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in handle.maskable.items()}
    for parameter in weights:
        parameter.requires_grad_(True)
    with torch.enable_grad():
        for batch in batches:
            loss = handle.model(**batch).loss
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is not None:
                    found[name] += gradient.float().square()
    for parameter, flag in zip(weights, flags, strict=True):
        parameter.requires_grad_(flag)
    return largest(Given(found), count, seed=handle.seed)


_CRITERIA: dict[str, Callable[[LotteryTicket, int], dict[str, Tensor]]] = {
    "lottery": _moved, "per_tensor": _moved_per_tensor, "random": _random, "bitfit": _biases,
    "first_order": _fisher,
}


def _check(maskable: Mapping[str, Tensor], entries: int, size: int) -> None:
    if entries > size:
        raise DataError(
            f"K = {entries}", expected=f"at most the {size} maskable parameters",
            mend="a lower count or density, or fewer freeze_* flags",
        )
    whole = [n for n, p in maskable.items() if not p.is_floating_point()]
    if whole:
        raise DataError(
            f"{', '.join(whole[:5])} hold integers (a quantised model?)",
            expected="floating-point weights", mend="load the model without quantisation",
        )


def _joined(one: Tensor | None, other: Tensor | None) -> Tensor:
    parts = [part.cpu() for part in (one, other) if part is not None]
    return torch.cat(parts).sort().values


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1)
