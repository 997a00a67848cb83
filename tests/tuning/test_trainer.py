"""Methods inside the Trainer of transformers give what a plain loop gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from passband.errors import ConfigError
from passband.parts.edits import Edit
from passband.tuning.baselines.full_tuning.model import FullFineTuning
from passband.tuning.models import byte_lm
from passband.tuning.trainer import EDIT, HandleCallback, for_trainer

IDS = torch.randint(0, 256, (16, 12), generator=torch.Generator().manual_seed(0))
ROWS = [{"input_ids": row, "labels": row} for row in IDS]


def arguments(folder: Path, **more: object) -> TrainingArguments:
    return TrainingArguments(
        str(folder), max_steps=4, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        lr_scheduler_type="constant", disable_tqdm=True, logging_strategy="no", **more,
    )


def test_it_trains_as_a_plain_loop_does(tmp_path: Path) -> None:
    model = byte_lm(32, 64, 1, 4)
    handle = FullFineTuning("vectors").attach(model)
    trainer = Trainer(
        model, arguments(tmp_path, save_strategy="steps", save_steps=4), train_dataset=ROWS,
        **for_trainer(handle, lr=1e-2),
    )
    order = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: order.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    trainer.train()
    assert handle.count == 4 and handle.steps == 4
    assert len(model._forward_pre_hooks) == 1  # the test's own: nothing is left on the model
    other = byte_lm(32, 64, 1, 4)
    plain = FullFineTuning("vectors").attach(other)
    optimizer = plain.optimizer(lr=1e-2)
    other.train()
    for ids in order:
        logits = other(input_ids=ids).logits[:, :-1]
        loss = plain.objective(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for name, change in plain.edit().changes.items():
        found = handle.edit().changes[name].delta()
        torch.testing.assert_close(found, change.delta(), rtol=1e-4, atol=1e-6)
    saved = Edit.load(tmp_path / "checkpoint-4" / EDIT)
    assert saved.changes.keys() == handle.edit().changes.keys()


def test_a_wrong_optimiser_is_noticed(tmp_path: Path) -> None:
    model = byte_lm(32, 64, 1, 4)
    handle = FullFineTuning("vectors").attach(model)
    wrong = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    trainer = Trainer(
        model, arguments(tmp_path), train_dataset=ROWS, optimizers=(wrong, None),
        callbacks=[HandleCallback(handle)],
    )
    with pytest.raises(ConfigError, match="for_trainer"):
        trainer.train()
