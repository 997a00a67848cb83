"""Adapters go to peft and come from it: outputs through peft's own code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from passband.errors import CheckpointError, DataError
from passband.parts.edits import Block, Dense, Edit, LowRank, fingerprint
from passband.tuning.models import byte_lm
from passband.tuning.peft_bridge import read_peft, to_peft, write_peft

IDS = torch.arange(40).reshape(2, 20)


def small() -> torch.nn.Module:
    return byte_lm(32, 64, 2, 4).eval()


def edits() -> dict[str, Edit]:
    model = small()
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(*shape, generator=generator)

    low = {
        f"model.layers.{i}.self_attn.{n}.weight": LowRank(
            draw(32, 2 + i), draw(2 + i, 32), draw(32, 2), draw(2, 32), scale=0.5, shape=(32, 32)
        )
        for i in range(2) for n in ("q_proj", "v_proj")
    }
    block = {
        "model.layers.0.mlp.down_proj.weight": Block(
            1, torch.tensor([3, 40]), draw(32, 2), (32, 64)
        ),
        "model.layers.1.mlp.up_proj.weight": Block(0, torch.tensor([5]), draw(1, 32), (64, 32)),
    }
    base = fingerprint(model)
    return {"low rank": Edit(low, base), "block": Edit(block, base)}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["low rank", "block"])
def test_peft_loads_our_edits(kind: str, tmp_path: Path) -> None:
    edit, model = edits()[kind], small()
    edit.apply(model)
    wanted = model(input_ids=IDS).logits
    found = to_peft(small(), edit, tmp_path / "adapter")(input_ids=IDS).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_we_load_adapters_of_peft(tmp_path: Path) -> None:
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 2},
        alpha_pattern={"down_proj": 8}, init_lora_weights=False,
    )
    theirs = peft.get_peft_model(small(), config).eval()
    wanted = theirs(input_ids=IDS).logits
    theirs.save_pretrained(str(tmp_path))
    model = small()
    read_peft(tmp_path, model).apply(model)
    torch.testing.assert_close(model(input_ids=IDS).logits, wanted, rtol=0, atol=1e-5)


def test_what_has_no_exact_form_is_not_written(tmp_path: Path) -> None:
    model = small()
    name = "model.layers.0.mlp.down_proj.weight"
    edit = Edit({name: Dense(torch.randn(32, 64))}, fingerprint(model))
    assert write_peft(edit, tmp_path / "none") == []
    assert not (tmp_path / "none").exists()
    with pytest.raises(DataError, match="no exact form"):
        to_peft(model, edit, tmp_path / "none")


def test_other_adapters_and_damage_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="can't be read"):
        read_peft(tmp_path, small())
    edit = edits()["low rank"]
    write_peft(edit, tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(CheckpointError, match="use_dora"):
        read_peft(tmp_path, small())


def test_rows_go_to_the_layout_of_method_comparison(tmp_path: Path) -> None:
    from passband import api
    from passband.tuning.method_comparison import write_method_comparison

    api.train("bitfit", "digits-shift", preset="smoke", size="smoke", budget="2 steps",
              runs=tmp_path / "runs")
    (path,) = write_method_comparison(tmp_path / "runs", tmp_path / "out")
    row = json.loads(path.read_text())
    assert row["train_info"]["status"] == "success"
    metrics = row["train_info"]["metrics"][-1]
    assert 0 <= metrics["test accuracy"] <= 1
    assert row["run_info"]["peft_config"]["peft_type"] == "BITFIT"
    assert row["train_info"]["num_trainable_params"] > 1000
    assert {"torch-version", "peft-version"} <= row["meta_info"]["package_info"].keys()
