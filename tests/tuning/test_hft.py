"""Half fine-tuning: what is drawn, what stays to the bit, and the tools around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from passband.errors import ConfigError, DataError
from passband.tuning.continual import (
    backward_transfer,
    project_gradients,
    rehearse,
    remember,
)
from passband.tuning.hft.model import HFT, dpo_loss, half_reset, response_logprob
from passband.tuning.hft.selection import Unit, draw, find_units, ratio_of
from passband.tuning.hft.system import HalfFineTuning
from passband.tuning.models import byte_lm, digits_vit, meta_model

IDS = torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(0))


def tune(model: nn.Module, handle, steps: int = 3, lr: float = 1e-2) -> None:  # type: ignore[no-untyped-def]
    optimizer = handle.optimizer(lr=lr, weight_decay=0.1)
    for _ in range(steps):
        handle.objective(model(input_ids=IDS, labels=IDS).loss).backward()
        optimizer.step()
        optimizer.zero_grad()


# ---- the draw --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_llama_gives_two_of_four_and_two_or_one_of_three(seed: int) -> None:
    units = find_units(byte_lm())
    drawn = draw(units, seed=seed)
    for block in range(4):
        kinds = [u.category for u in drawn if u.block == block]
        assert kinds.count("attention") == 2
        assert kinds.count("norm") == 1
        assert kinds.count("ffn") in (1, 2)
    assert sum(u.category == "ffn" for u in drawn) == 6  # half of 12
    assert ratio_of(drawn, units) == 0.5


@pytest.mark.parametrize("name, total", [("llama-2-7b", 3_500_281_856)])
def test_the_paper_counts(name: str, total: int) -> None:
    system = HalfFineTuning.from_preset("paper", architecture=name)
    assert system.parameter_count() == total
    units = find_units(meta_model(name))
    assert ratio_of(draw(units), units) == 0.5


def test_the_small_count() -> None:
    handle = HFT().attach(byte_lm())
    assert sum(p.numel() for p in handle.parameters()) == 461_440
    assert handle.report.of_blocks == 0.5
    assert handle.report.of_model == pytest.approx(461_440 / 857_216)


def test_seeds_draw_differently_and_every_matrix_is_visited() -> None:
    units = find_units(byte_lm())
    draws = [frozenset(u.name for u in draw(units, seed=s)) for s in range(12)]
    assert len(set(draws)) > 8
    assert frozenset.union(*draws) == {u.name for u in units}
    assert draw(units, seed=3) == draw(units, seed=3)


@pytest.mark.parametrize("blocks", [3, 5])
def test_odd_numbers_of_blocks_balance(blocks: int) -> None:
    units = [
        Unit(f"{b}.{n}", b, "ffn", (f"{b}.{n}.weight",), 10)
        for b in range(blocks) for n in range(3)
    ]
    drawn = draw(units, seed=1)
    assert len(drawn) == int(blocks * 3 * 0.5 + 0.5)
    per_block = [sum(u.block == b for u in drawn) for b in range(blocks)]
    assert set(per_block) == {1, 2}


@pytest.mark.parametrize("ratio", [0.25, 0.4, 0.6])
def test_other_ratios(ratio: float) -> None:
    units = find_units(byte_lm(layers=6))
    assert ratio_of(draw(units, ratio=ratio), units) == pytest.approx(ratio, abs=0.05)


def test_grouped_queries_are_balanced_by_elements() -> None:
    units = find_units(meta_model("llama-3-8b"))
    for seed in range(5):
        drawn = draw(units, seed=seed)
        attention = [u for u in units if u.category == "attention"]
        assert len({u.size for u in attention}) == 2
        chosen = [u for u in drawn if u.category == "attention"]
        assert ratio_of(chosen, attention) == pytest.approx(0.5, abs=0.01)


def test_strategies() -> None:
    units = find_units(byte_lm())
    layers = draw(units, strategy="layer", seed=0)
    assert {sum(u.block == b for u in layers) for b in range(4)} == {0, 9}
    assert len({u.block for u in layers}) == 2
    anywhere = draw(units, strategy="model", seed=0)
    assert len(anywhere) == 18
    assert {sum(u.block == b for u in anywhere) for b in range(4)} != {9, 0}


def test_vision_transformers_and_encoders_are_understood() -> None:
    found = [u.category for u in find_units(digits_vit()) if u.block == 0]
    assert sorted(found) == ["attention"] * 4 + ["ffn"] * 2 + ["norm"] * 2
    with torch.device("meta"):
        bert = meta_model("roberta-base")
    kinds = [u.category for u in find_units(bert) if u.block == 0]
    assert kinds.count("attention") == 4 and kinds.count("ffn") == 2 and kinds.count("norm") == 2


def test_experts_are_categories_of_their_own() -> None:
    class Expert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w2, self.w3 = (nn.Linear(4, 4, bias=False) for _ in range(3))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(4, 2)
            self.experts = nn.ModuleList([Expert(), Expert()])

    model = nn.ModuleDict({"layers": nn.ModuleList([Block(), Block()])})
    kinds = {u.category for u in find_units(model)}
    assert kinds == {"router", "ffn.expert0", "ffn.expert1"}


# ---- training --------------------------------------------------------------------------------


def test_the_frozen_half_is_identical_and_has_no_state() -> None:
    model, before = byte_lm(32, 64, 2, 4), byte_lm(32, 64, 2, 4).state_dict()
    handle = HFT().attach(model, seed=1)
    tune(model, handle)
    trained = set(handle.report.trained)
    for name, parameter in model.named_parameters():
        same = torch.equal(parameter, before[name])
        assert same is (name not in trained), name
        assert (parameter.grad is not None) <= (name in trained)
    assert handle.edit().changes.keys() == trained


def test_it_equals_adamw_on_the_trained_half() -> None:
    model, other = byte_lm(32, 64, 2, 4), byte_lm(32, 64, 2, 4)
    handle = HFT().attach(model)
    tune(model, handle)
    names = set(handle.report.trained)
    for name, parameter in other.named_parameters():
        parameter.requires_grad_(name in names)
    chosen = dict(other.named_parameters())
    groups = [
        {"params": [chosen[n] for n in names if chosen[n].ndim > 1], "weight_decay": 0.1},
        {"params": [chosen[n] for n in names if chosen[n].ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    for _ in range(3):
        other(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for (name, p), (_, q) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(p, q), name


def test_the_soft_form_pulls_the_other_half() -> None:
    model = byte_lm(32, 64, 2, 4)
    handle = HFT(pull=3.0).attach(model)
    assert handle.penalty().item() == 0.0
    name = handle.pulled[0]
    with torch.no_grad():
        dict(model.named_parameters())[name].add_(0.1)
    count = dict(model.named_parameters())[name].numel()
    assert handle.penalty().item() == pytest.approx(3.0 * 0.01 * count, rel=1e-4)


def test_embeddings_head_and_final_norm_can_be_kept() -> None:
    model = byte_lm(32, 64, 2, 4)
    method = HFT(freeze_embeddings=True, freeze_head=True, freeze_final_norm=True)
    names = method.attach(model).report.trained
    assert all(n.startswith("model.layers.") for n in names)


# ---- half reset, preferences, sequences ------------------------------------------------------


def test_half_reset_puts_back_what_it_draws(tmp_path: Path) -> None:
    base = byte_lm(32, 64, 2, 4)
    tuned = byte_lm(32, 64, 2, 4, seed=1)
    path = tmp_path / "base.safetensors"
    save_file({n: p.detach().clone() for n, p in base.named_parameters()}, path)
    names = half_reset(tuned, path, seed=2)
    units = find_units(base)
    assert set(names) == {p for u in draw(units, seed=2) for p in u.parameters}
    other = dict(byte_lm(32, 64, 2, 4, seed=1).named_parameters())
    for name, parameter in tuned.named_parameters():
        wanted = base.get_parameter(name) if name in names else other[name]
        assert torch.equal(parameter, wanted)
    with pytest.raises(DataError, match="lacks"):
        half_reset(tuned, {})


def test_dpo_by_hand() -> None:
    numbers = [torch.tensor([v]) for v in (-1.0, -3.0, -2.0, -2.5)]
    margin = (-1.0 + 3.0) - (-2.0 + 2.5)
    assert dpo_loss(*numbers, beta=0.5).item() == pytest.approx(np.log1p(np.exp(-0.5 * margin)))


def test_response_logprob_sums_supervised_tokens() -> None:
    model = byte_lm(32, 64, 1, 4)
    labels = IDS.clone()
    labels[:, :6] = -100
    found = response_logprob(model, IDS, labels)
    logits = model(input_ids=IDS).logits
    wanted = -F.cross_entropy(
        logits[:, 5:-1].transpose(1, 2), IDS[:, 6:], reduction="none"
    ).sum(1)
    torch.testing.assert_close(found, wanted)


def test_gradients_against_memory_are_projected() -> None:
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([w], lr=1.0)
    project_gradients(optimizer, lambda: (w * torch.tensor([1.0, 0.0])).sum())
    w.grad = torch.tensor([-3.0, 4.0])  # against the remembered gradient [1, 0]
    optimizer.step()
    torch.testing.assert_close(w.detach(), torch.tensor([1.0, -2.0]))
    w.grad = torch.tensor([3.0, 4.0])  # agrees with it
    optimizer.step()
    torch.testing.assert_close(w.detach(), torch.tensor([-2.0, -6.0]))


def test_rehearsal_mixes_a_share_of_the_old() -> None:
    mixed = rehearse([100] * 50, [list(range(40)), list(range(1000, 1020))], 0.1, seed=0)
    values = [mixed[i] for i in range(len(mixed))]
    assert len(values) == 50 + 4 + 2
    assert sum(v < 40 for v in values) == 4
    assert len(remember([[1]], 0.1, 0)) == 1


def test_backward_transfer_by_hand() -> None:
    assert backward_transfer([[90, 0, 0], [80, 70, 0], [60, 75, 50]]) == ((60 - 90) + (75 - 70)) / 2


# ---- bad input -------------------------------------------------------------------------------


def test_models_without_blocks_are_told_how() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(DataError, match="groups"):
        HFT().attach(model)
    handle = HFT(groups={"all": ["0", "1"]}).attach(model)
    assert len(handle.drawn) == 1


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1])
def test_ratios_outside_are_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        HFT(ratio=ratio).attach(byte_lm(32, 64, 2, 4))


def test_partly_frozen_models_are_asked_about() -> None:
    model = byte_lm(32, 64, 2, 4)
    frozen = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    with pytest.raises(DataError, match="respect_existing"):
        HFT().attach(model)
    handle = HFT(respect_existing=True).attach(model)
    assert not any(p is frozen for p in handle.parameters())
