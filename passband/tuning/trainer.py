"""Methods of this family in the Trainer of transformers.

>>> from transformers import Trainer, TrainingArguments
>>> from passband.tuning.sorsa.model import SORSA
>>> model, ids = byte_lm(32, 64, 2, 4), list(b"what the model learns")
>>> data = [{"input_ids": ids, "labels": ids}] * 8
>>> handle = SORSA(rank=4).attach(model)
>>> arguments = TrainingArguments("run", max_steps=2, use_cpu=True, report_to=[])
>>> trainer = Trainer(model, arguments, train_dataset=data, **for_trainer(handle, lr=1e-3))
>>> done = trainer.train()
{'train_runtime': ...}
>>> path = handle.edit().save("adapter.safetensors")

The optimiser drives the method by itself (see `passband.tuning.handle`); the callback tells it the
length of the run and writes the edit into every checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from passband.errors import ConfigError, MissingExtraError
from passband.tuning.handle import Handle

try:
    from transformers import TrainerCallback
except ImportError:
    raise MissingExtraError("transformers", "tuning") from None

EDIT = "passband_edit.safetensors"


def for_trainer(
    handle: Handle, *, optimizer: Optimizer | None = None, **options: Any
) -> dict[str, Any]:
    """Arguments for `Trainer`: optimiser, callback and loss.

    optimizer  bound already (`handle.bind`); None: `handle.optimizer(**options)`
    """
    ready = optimizer if optimizer is not None else handle.optimizer(**options)
    objective = _Objective(handle)
    return {
        "optimizers": (ready, None),
        "callbacks": [HandleCallback(handle, objective)],
        "compute_loss_func": objective,
    }


class HandleCallback(TrainerCallback):
    """Tells a method how long the run is; writes its edit beside each checkpoint."""

    def __init__(self, handle: Handle, objective: _Objective | None = None) -> None:
        self.handle, self.objective = handle, objective

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = kwargs.get("optimizer")
        held = {id(p) for g in getattr(optimizer, "param_groups", ()) for p in g["params"]}
        if any(id(p) not in held for p in self.handle.parameters()):
            raise ConfigError(
                "the Trainer's optimiser doesn't hold the method's parameters",
                expected="the optimiser of the handle",
                mend="Trainer(..., **for_trainer(handle, lr=...))",
            )
        self.handle.steps = state.max_steps
        if self.objective is not None:
            self.objective.watch()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.objective is not None:
            self.objective.leave()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        self.handle.edit().save(folder / EDIT)


class _Objective:
    """The Trainer's loss: of the task, then of the method."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.inputs: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._hook: Any = None

    def watch(self) -> None:
        """Keep the inputs of each forward pass: a teacher may be asked the same."""
        self._hook = self.handle.model.register_forward_pre_hook(self._remember, with_kwargs=True)

    def leave(self) -> None:
        """Take the hook off; no batch is kept alive."""
        if self._hook is not None:
            self._hook.remove()
        self._hook, self.inputs = None, ((), {})

    def _remember(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        self.inputs = (args, kwargs)

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        rows = _rows(labels)
        logits, wanted = rows(outputs.logits)
        args, kwargs = self.inputs
        loss = F.cross_entropy(
            logits.float(), wanted, reduction="mean" if num_items_in_batch is None else "sum"
        )
        if num_items_in_batch is not None:
            loss = loss / num_items_in_batch
        return self.handle.objective(
            loss, logits, wanted, lambda: rows(self.handle.model(*args, **kwargs).logits)[0]
        )


def _rows(labels: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Logits and labels at supervised positions: of a causal LM, or of a classifier."""

    def rows(logits: Tensor) -> tuple[Tensor, Tensor]:
        if labels.ndim == 1:
            return logits, labels
        wanted = labels[:, 1:] != -100
        return logits[:, :-1][wanted], labels[:, 1:][wanted]

    return rows
