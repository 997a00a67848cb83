"""The system around the methods: rounds, resume, files, the user's own model."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from passband import api, catalog
from passband.bench.budget import Budget
from passband.bench.system import NullMonitor, System
from passband.bench.task import Data
from passband.data import text
from passband.errors import CheckpointError, ConfigError, DataError
from passband.tuning.adaptation import Adaptation, causal_lm
from passband.tuning.baselines.full_tuning.system import Full
from passband.tuning.jobs.text import as_call, windows_of
from passband.tuning.models import byte_lm

METHODS = [c.id for c in catalog.cards().values() if "adapt" in c.verbs and c.id != "mad-x"]
TINY = (32, 64, 2, 4)


def job(seed: int = 0, line: str = "the quick brown fox jumps over the lazy dog; ") -> Adaptation:
    """A tiny language model learns one line by heart."""
    examples = windows_of(text.encode(40 * line), 40, seed)
    batches = [as_call(*text.collate(examples[i : i + 8])) for i in range(0, 40, 8)]
    held_out = text.collate(examples[:8])
    return Adaptation(
        "line", lambda: byte_lm(*TINY), examples, causal_lm, collate=text.collate,
        calibration={"task": batches, "knowledge": batches},
        validation=lambda model: {"loss": float(causal_lm(model, held_out).loss)},
    )


def edit_of(system: System) -> dict[str, torch.Tensor]:
    base = dict(byte_lm(*TINY).named_parameters())
    changes = system.fitted().changes  # type: ignore[attr-defined]
    return {name: change.delta(base[name].detach()) for name, change in changes.items()}


class Interrupting(NullMonitor):
    """Ctrl-C when so much of the work is done."""

    def __init__(self, at: float) -> None:
        self.at = at

    def progress(self, fraction: float, text: str = "") -> None:
        if fraction >= self.at:
            self.at = 2.0
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.filterwarnings("default::passband.errors.PassbandWarning")
@pytest.mark.parametrize("at", [0.3, 0.7])
@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_fit_resumes_to_the_same_edit(
    name: str, at: float, tmp_path: Path
) -> None:
    data, budget = Data(train=job()), Budget(steps=24)
    card = catalog.get(name)
    whole = card.create("smoke")
    whole.fit(data, budget)
    broken = card.create("smoke")
    broken.checkpoints = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        broken.fit(data, budget, Interrupting(at))
    resumed = card.create("smoke")
    resumed.checkpoints, resumed.resume = tmp_path / "checkpoint", True
    resumed.fit(data, budget)
    wanted, found = edit_of(whole), edit_of(resumed)
    assert wanted.keys() == found.keys()
    for key, delta in wanted.items():
        assert torch.equal(found[key], delta), key


def test_rounds_add_up_and_each_is_kept(tmp_path: Path) -> None:
    first, second = job(), job(line="0123456789 ")
    problem = Adaptation(
        "both", first.model, first.examples, causal_lm, collate=text.collate,
        rounds=(first, second),
    )
    system = Full.from_preset("smoke")
    system.fit(Data(train=problem), Budget(steps=40))
    assert len(system.edits) == 2
    losses = []
    for edit in system.edits:
        model = byte_lm(*TINY)
        edit.apply(model)
        batch = text.collate(second.examples[:8])
        losses.append(float(causal_lm(model, batch).loss.detach()))
    assert losses[1] < losses[0] - 0.5  # the second round learned the second line
    again = Full.load(system.save(tmp_path / "rounds"))
    assert len(again.edits) == 2


def test_another_base_is_refused() -> None:
    system = Full.from_preset("smoke")
    system.fit(Data(train=job()), Budget(steps=3))
    with pytest.raises(CheckpointError, match="differ"):
        system.adapt(byte_lm(*TINY, seed=1))
    with pytest.raises(ConfigError, match="adapted nothing"):
        Full.from_preset("smoke").adapt(byte_lm(*TINY))


# ---- the user's own model and data ----------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("own")
    byte_lm(*TINY).save_pretrained(folder / "model")
    rows = [{"prompt": f"{i} and one is ", "response": str(i + 1)} for i in range(40)]
    (folder / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder / "model", folder / "data.jsonl"


@pytest.mark.filterwarnings("default::passband.errors.PassbandWarning")
@pytest.mark.parametrize("name", ["s2ft", "spiel", "sorsa"])
def test_own_data_on_an_own_model_and_back_to_a_folder(
    name: str, own: tuple[Path, Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model, data = own
    result = api.train(
        name, "own-text", data=data, model=model, preset="smoke", budget="30 steps",
        runs=tmp_path / "runs",
    )
    assert result.metrics["gain"] > 0
    written = api.apply(tmp_path / "runs" / result.folder, model, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    system = api.load(tmp_path / "runs" / result.folder)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        wanted = system.adapt(AutoModelForCausalLM.from_pretrained(model))(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, wanted, rtol=1e-5, atol=1e-5)
        if name != "spiel":  # a sparse change has no exact form as LoRA
            import peft

            assert any(path.name == "adapter_config.json" for path in written)
            base = AutoModelForCausalLM.from_pretrained(model)
            theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "out" / "peft"))
            torch.testing.assert_close(
                theirs(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-5
            )


def test_own_tasks_ask_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data"):
        api.train("full-tuning", "own-text", preset="smoke", runs=tmp_path)
    with pytest.raises(ConfigError, match="takes no model"):
        api.train("full-tuning", "lm-code", model=tmp_path, preset="smoke", runs=tmp_path)
