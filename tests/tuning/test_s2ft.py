"""S2FT against slices of dense gradients, dense masked AdamW, peft, and hand-made cases."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from passband.errors import CheckpointError, ConfigError, DataError, UnknownNameError
from passband.parts.edits import Block, Dense, Edit, compose, composed
from passband.tuning.models import byte_lm, meta_model
from passband.tuning.s2ft.coupling import Coupling, find_structures
from passband.tuning.s2ft.model import S2FT
from passband.tuning.s2ft.permutation import Order, Permuted, chosen_first, random_order, verify
from passband.tuning.s2ft.selection import budgets, draw, score
from passband.tuning.s2ft.serving import Parallel, Switcher, add_block, disjoint
from passband.tuning.s2ft.system import S2FTTuner

transformers = pytest.importorskip("transformers")

_SIZE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
}
_LLAMA: dict[str, Any] = {**_SIZE, "intermediate_size": 48, "num_key_value_heads": 2}

# (class, config, fields, heads' group, heads may be exchanged)
MODELS: dict[str, tuple[str, str, dict[str, Any], int, bool]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _LLAMA, 2, True),
    "mistral": ("MistralForCausalLM", "MistralConfig", _LLAMA, 2, True),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _LLAMA, 2, True),
    # head_dim is 16, not 32 / 4
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_LLAMA, "head_dim": 16}, 2, True),
    # norms of q and k over all heads
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", _LLAMA, 2, True),
    "bitnet": ("BitNetForCausalLM", "BitNetConfig", _LLAMA, 2, True),  # norms between
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**_LLAMA, "pad_token_id": 0}, 2, True),
    "gpt-neox": (
        "GPTNeoXForCausalLM", "GPTNeoXConfig", {**_SIZE, "intermediate_size": 48}, 1, True
    ),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}, 1, True,
    ),
    "bert": ("BertModel", "BertConfig", {**_SIZE, "intermediate_size": 48}, 1, True),
    "mixtral": (
        "MixtralForCausalLM", "MixtralConfig", {**_LLAMA, "num_local_experts": 3}, 2, True
    ),
    "falcon": ("FalconForCausalLM", "FalconConfig", _SIZE, 4, True),
    "falcon-new": (
        "FalconForCausalLM", "FalconConfig",
        {**_SIZE, "new_decoder_architecture": True, "num_kv_heads": 2}, 2, True,
    ),
    "bloom": (
        "BloomForCausalLM", "BloomConfig",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}, 1, False,
    ),
    "t5": (
        "T5ForConditionalGeneration", "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64},
        1, False,
    ),
}
IDS = torch.arange(1, 15).reshape(2, 7)


def built(name: str, seed: int = 0) -> nn.Module:
    """A small random model whose biases and norms are not 0 and 1."""
    model, config, fields, *_ = MODELS[name]
    torch.manual_seed(seed)
    found = getattr(transformers, model)(getattr(transformers, config)(**fields)).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return found


def example(name: str) -> dict[str, torch.Tensor]:
    return {"input_ids": IDS} | ({"decoder_input_ids": IDS} if name == "t5" else {})


def result(model: nn.Module, name: str = "") -> torch.Tensor:
    out = model(**example(name))
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def small(kv_heads: int = 4, seed: int = 0) -> nn.Module:
    return byte_lm(32, 64, 2, 4, kv_heads, seed=seed)


def batch(step: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, 12), generator=torch.Generator().manual_seed(step))


def loss(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    ids = ids % model.config.vocab_size
    return model(input_ids=ids, labels=ids).loss


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(p, before[n]) for n, p in model.named_parameters())


ALL_ROLES: dict[str, float] = {
    "o": 0.25, "d": 0.1, "v": 0.5, "u": 0.1, "q": 0.25, "k": 0.5, "gate": 0.05
}


def trained(method: S2FT, model: nn.Module, steps: int = 4, lr: float = 1e-2, seed: int = 0):
    handle = method.attach(model, seed=seed)
    optimizer = handle.optimizer(lr=lr)
    losses = []
    for step in range(steps):
        value = loss(model, batch(step))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return handle, losses


def edit_of(seed: int, method: S2FT | None = None, kv_heads: int = 4) -> Edit:
    handle, _ = trained(method or S2FT(o=0.25, d=0.1), small(kv_heads), seed=seed)
    return handle.detach()


# ---- coupled structures --------------------------------------------------------------------------


def reversed_order(structure) -> Order:
    units = len(structure.second.table)
    return Order(torch.arange(units).flip(0), torch.arange(units // structure.group).flip(0))


@pytest.mark.parametrize("name", MODELS)
def test_exchanging_units_leaves_the_function(name):
    model = built(name)
    structures = find_structures(model)
    *_, group, movable = MODELS[name]
    attention = [s for s in structures if s.kind == "attention"]
    assert {s.group for s in attention} == {group}
    assert {not s.fixed for s in attention} == {movable}
    before, expected = bits(model), result(model, name)
    moving = [s for s in structures if not s.fixed]
    moved = Permuted(model, moving, {s.name: reversed_order(s) for s in moving})
    assert not same(model, before)
    # Heads and channels really moved: every part of a structure.
    parameters = dict(model.named_parameters())
    for structure in moving:
        for part in structure.parts.values():
            was, now = (part.of(t[part.parameter]) for t in (before, parameters))
            assert len(part.table) == 1 or not torch.equal(was, now)
    assert torch.allclose(result(model, name), expected, atol=1e-5 * expected.abs().max().item())
    moved.undo()
    assert same(model, before)


def test_heads_and_channels_of_llama_are_counted_by_its_config():
    structures = find_structures(built("qwen3"))
    attention, ffn = structures[:2]
    assert {role: attention.units(role) for role in "oqvk"} == {"o": 4, "q": 4, "v": 2, "k": 2}
    assert attention.parts["o"].table.shape == (4, 16)
    assert {role: ffn.units(role) for role in ("d", "u", "gate")} == {"d": 48, "u": 48, "gate": 48}


def test_fused_matrices_have_row_ranges():
    attention, ffn = find_structures(built("phi3"))[:2]
    assert attention.parts["k"].table.tolist() == [list(range(32, 40)), list(range(40, 48))]
    assert ffn.parts["u"].table.flatten().tolist() == list(range(48, 96))
    neox = next(s for s in find_structures(built("gpt-neox")) if s.kind == "attention")
    # [q, k, v] of head 0, then of head 1: 3 x 8 rows each.
    assert neox.parts["k"].table[1].tolist() == list(range(32, 40))


def test_wrong_permutations_are_found_out():
    """Without the bias, or with heads of another size, the function changes."""
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.arange(8.0))
    x = torch.randn(5, 6)
    right = Coupling({"u": "0"}, "2", middle=("1",))
    assert verify(model, find_structures(model, [right]), x) < 1e-5
    before = bits(model)
    wrong = Coupling({"u": "0"}, "2")
    with pytest.raises(DataError, match="exchanging units changes the output"):
        verify(model, find_structures(model, [wrong]), x)
    assert same(model, before)
    with pytest.raises(DataError, match="verified by exchanging"):
        S2FT(o=0, d=0.5, couplings=(right,)).attach(model)
    with pytest.raises(DataError, match="exchanging units changes"):
        S2FT(o=0, d=0.5, couplings=(wrong,), example=x).attach(model)
    handle = S2FT(o=0, d=0.5, couplings=(right,), example=x, layout="permute").attach(model)
    assert handle.units == {"2": {"d": handle.units["2"]["d"]}}
    assert len(handle.units["2"]["d"]) == 4


def test_unknown_networks_ask_for_a_map():
    with pytest.raises(DataError, match=r"couplings=\(Coupling"):
        S2FT().attach(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(DataError, match="no module 'first'"):
        find_structures(model, [Coupling({"u": "first"}, "2")])
    with pytest.raises(DataError, match="units of 4 don't divide"):
        find_structures(model, [Coupling({"q": "0"}, "2", unit=4)])


def test_alibi_trains_in_gather_layout_alone():
    with pytest.raises(DataError, match="ALiBi"):
        S2FT(o=0.25, d=0.1, layout="permute").attach(built("bloom"))
    S2FT(o=0.25, d=0.1).attach(built("bloom")).detach()
    S2FT(o=0.0, d=0.1, layout="permute").attach(built("bloom")).detach()


def test_grouped_queries_move_in_groups():
    drawn = random_order(find_structures(built("falcon-new"))[0], torch.Generator().manual_seed(0))
    assert sorted(drawn.units.tolist()) == [0, 1, 2, 3]
    assert (drawn.units.reshape(2, 2) // 2 == drawn.groups[:, None]).all()
    order = chosen_first(8, 2, chosen=[6], also=[])
    assert order.groups.tolist() == [1, 0]
    assert order.units.tolist() == [6, 4, 5, 7, 0, 1, 2, 3]


# ---- selection -----------------------------------------------------------------------------------


def test_budgets_are_those_of_the_paper():
    llama2 = find_structures(meta_model("llama-2-7b"))
    assert budgets(llama2, {"o": 0.052, "d": 0.02}) == {"o": 53, "d": 7045}
    assert S2FT(o=0.052, d=0.02).count(meta_model("llama-2-7b")) == 56_643_584
    llama3 = find_structures(meta_model("llama-3-8b"))
    assert budgets(llama3, {"o": 0.0, "d": 0.03}) == {"d": 13_762}
    assert S2FT(o=0.0, d=0.03).count(meta_model("llama-3-8b")) == 56_369_152


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_small_preset_trains_one_head_and_68_channels(kv_heads):
    model = byte_lm(kv_heads=kv_heads)
    assert S2FT(o=0.0625, d=0.05).count(model) == 12_800
    handle = S2FT(o=0.0625, d=0.05).attach(model)
    chosen = [units for roles in handle.units.values() for units in roles.items()]
    assert sum(len(u) for role, u in chosen if role == "o") == 1
    assert sum(len(u) for role, u in chosen if role == "d") == 68
    assert sum(p.numel() for p in handle.parameters()) == 12_800


def test_a_ratio_of_no_units_says_the_smallest():
    with pytest.raises(ConfigError, match=r"at least 0\.125") as error:
        S2FT(o=0.1, d=0.1).attach(small())
    assert "o = 0.1 of 8 units" in str(error.value)
    with pytest.raises(ConfigError, match=r"at least 0\.0078125"):
        S2FT(o=0.0, d=0.001).attach(small())
    S2FT(o=0.0, d=0.0078125).attach(small())
    with pytest.raises(ConfigError, match="every ratio is 0"):
        S2FT(o=0.0, d=0.0).attach(small())
    # floor(0.29 * 100) is 29: exact in decimals, where binary gives 28.
    hundred = [s for s in find_structures(byte_lm(32, 50, 2, 4)) if s.kind == "ffn"]
    assert budgets(hundred, {"d": 0.29}) == {"d": 29}


def test_random_units_are_drawn_over_all_layers():
    structures = find_structures(byte_lm(32, 100, 4, 4))
    found = [draw(structures, {"d": 0.1}, seed=seed) for seed in range(40)]
    counts = torch.tensor([
        [len(f.get(s.name, {}).get("d", ())) for s in structures if s.kind == "ffn"] for f in found
    ])
    assert (counts.sum(1) == 40).all()
    # Hypergeometric: mean 10, standard deviation sqrt(40 (1/4) (3/4) (360/399)) = 2.6.
    assert abs(counts.double().mean().item() - 10) < 1e-9
    assert 2.1 < counts.double().std().item() < 3.1
    assert found[0] != found[1]
    assert found[0] == draw(structures, {"d": 0.1}, seed=0)
    # Roles are drawn apart: what d draws does not depend on the others.
    both = draw(structures, {"o": 0.5, "u": 0.1, "d": 0.1}, seed=0)
    for name, roles in found[0].items():
        assert both[name]["d"] == roles["d"]
    assert any(both[n].get("u") != both[n].get("d") for n in both)


@pytest.mark.parametrize("order", ["largest", "smallest"])
def test_ranked_units_are_those_of_hand_computed_scores(order):
    model = small()
    task = [{"input_ids": batch(i), "labels": batch(i)} for i in range(2)]
    structures = find_structures(model)
    hidden: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda m, x, n=name: hidden.__setitem__(
                n, hidden.get(n, 0) + x[0].detach().abs().flatten(0, 1).sum(0)
            )
        )
        for name, module in model.named_modules() if name.endswith("down_proj")
    ]
    for one in task:
        loss(model, one["input_ids"]).backward()
    for hook in hooks:
        hook.remove()
    downs = {n: dict(model.named_modules())[n] for n in hidden}
    expected = {
        "weight": {n: m.weight.detach().norm(dim=0) for n, m in downs.items()},
        "gradient": {n: m.weight.grad.norm(dim=0) for n, m in downs.items()},
        "activation": {n: h / (2 * 36) for n, h in hidden.items()},
    }
    expected["product"] = {
        n: expected["weight"][n] * expected["activation"][n] for n in downs
    }
    for strategy, scores in expected.items():
        got = score(model, structures, ["d"], strategy, {"task": task})
        for name, wanted in scores.items():
            assert torch.allclose(got[name, "d"], wanted, rtol=1e-4, atol=1e-7), strategy
        model.zero_grad()
        handle = S2FT(o=0, d=0.1, strategy=strategy, order=order).attach(model, {"task": task})
        flat = torch.cat([scores[n] for n in downs]).sort(descending=order == "largest").values
        chosen = torch.cat([
            scores[n][list(handle.units[n]["d"])] for n in downs if n in handle.units
        ])
        assert len(chosen) == 12
        assert torch.allclose(chosen.sort(descending=order == "largest").values, flat[:12],
                              rtol=1e-4)
        handle.detach()


def test_padding_has_no_activation():
    model = small()
    ids = batch()
    mask = torch.ones_like(ids)
    mask[:, 8:] = 0
    padded = ids.clone()
    padded[:, 8:] = 7
    structures = find_structures(model)
    one = score(model, structures, ["d"], "activation", {
        "task": [{"input_ids": padded, "attention_mask": mask}]
    })
    two = score(model, structures, ["d"], "activation", {"task": [{"input_ids": ids[:, :8]}]})
    for key, values in one.items():
        assert torch.allclose(values, two[key], atol=1e-6)


def test_ranking_needs_what_it_ranks_by():
    with pytest.raises(DataError, match="no calibration batches"):
        S2FT(o=0.25, d=0.1, strategy="activation").attach(small())
    batches = {"task": [{"input_ids": batch()}]}
    with pytest.raises(DataError, match="without labels"):
        S2FT(o=0.25, d=0.1, strategy="gradient").attach(small(), batches)
    with pytest.raises(ConfigError, match="share one tensor"):
        S2FT(o=0.25, d=0.1, strategy="activation").attach(
            built("mixtral"), {"task": [{"input_ids": IDS}]}
        )


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "phi3", "falcon", "mixtral"])
@pytest.mark.parametrize("layout", ["gather", "permute"])
def test_the_first_update_is_that_of_dense_sgd_at_the_chosen_places(name, layout):
    dense, model = built(name), built(name)
    ratios = ALL_ROLES if name in ("llama", "phi3", "mixtral") else {**ALL_ROLES, "gate": 0.0}
    loss(dense, IDS).backward()
    before = bits(model)
    method = S2FT(**ratios, layout=layout, parametrisation="delta")
    handle = method.attach(model)
    optimizer = handle.bind(torch.optim.SGD(handle.parameters(), lr=1.0))
    loss(model, IDS).backward()
    optimizer.step()
    masks = {n: torch.zeros(p.shape, dtype=torch.bool) for n, p in dense.named_parameters()}
    for structure in find_structures(dense):
        for role, units in handle.units.get(structure.name, {}).items():
            part = structure.parts[role]
            rows = part.table[list(units)].flatten()
            part.of(masks[part.parameter]).index_fill_(part.dim, rows, True)
    edit = handle.edit()
    assert {n for n, m in masks.items() if m.any()} == set(edit.changes)
    for parameter, change in edit.changes.items():
        gradient = dict(dense.named_parameters())[parameter].grad
        expected = -gradient * masks[parameter]
        assert torch.allclose(change.delta(), expected, atol=1e-5), parameter
    with handle.off():
        assert same(model, before)
    handle.detach()
    assert same(model, before)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_layouts_and_parametrisations_train_alike(kv_heads):
    curves, edits = {}, {}
    for layout in ("gather", "permute"):
        for parametrisation in ("value", "delta"):
            model = small(kv_heads)
            before = bits(model)
            method = S2FT(**ALL_ROLES, layout=layout, parametrisation=parametrisation)
            handle, losses = trained(method, model, lr=3e-3)
            ids = batch(99)
            attached = model(input_ids=ids).logits
            curves[layout, parametrisation] = torch.tensor(losses)
            edits[layout, parametrisation] = edit = handle.detach()
            assert same(model, before)
            edit.apply(model)
            assert torch.allclose(model(input_ids=ids).logits, attached, atol=1e-5)
    reference = curves["gather", "value"]
    assert reference[-1] != reference[0]
    for key, curve in curves.items():
        assert torch.allclose(curve, reference, atol=1e-5), key
        for name, change in edits[key].changes.items():
            other = edits["gather", "value"].changes[name]
            assert torch.equal(change.index, other.index)
            assert (change.values - other.values).norm() < 1e-2 * other.values.norm()


def test_permuted_blocks_are_slices():
    handle = S2FT(o=0.25, d=0.3, v=0.25, u=0.3, layout="permute").attach(small())
    assert handle.slices
    assert all(handle.slices.values())
    gathered = S2FT(o=0.25, d=0.3, v=0.25, u=0.3).attach(small())
    assert not all(gathered.slices.values())


def test_it_is_dense_adamw_masked():
    """Twenty steps with weight decay off, clipping and accumulation: AdamW on masked gradients."""
    dense, model = small(), small()
    handle = S2FT(o=0.25, d=0.2, v=0.25).attach(model)
    optimizer = handle.optimizer(lr=1e-2)
    parameters = dict(dense.named_parameters())
    masks = {
        n: c.place() and torch.zeros(c.shape).index_fill_(c.dim, c.index, 1.0)
        for n, c in handle.edit().changes.items()
    }
    reference = torch.optim.AdamW([parameters[n] for n in masks], lr=1e-2, weight_decay=0.0)
    for step in range(20):
        for micro in range(2):
            loss(model, batch(2 * step + micro)).backward()
            loss(dense, batch(2 * step + micro)).backward()
        for name, mask in masks.items():
            parameters[name].grad *= mask
        torch.nn.utils.clip_grad_norm_([parameters[n] for n in masks], 0.5)
        torch.nn.utils.clip_grad_norm_(handle.parameters(), 0.5)
        reference.step()
        optimizer.step()
        dense.zero_grad()
        optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, parameters[name], atol=2e-5), name


def test_nothing_runs_backward_below_the_lowest_selected_block():
    model = small()
    structures = find_structures(model)
    low = {s.name: {"d": range(64), "o": range(4)} for s in structures if ".0." in s.name}
    handle = S2FT(o=0.25, d=0.1, avoid=low).attach(model)
    assert all(".1." in name for name in handle.units)
    seen: dict[str, bool] = {}
    for number, layer in enumerate(model.model.layers):
        layer.register_forward_hook(
            lambda m, x, y, n=number: seen.__setitem__(
                n, (y[0] if isinstance(y, tuple) else y).requires_grad
            )
        )
    loss(model, batch()).backward()
    assert seen == {0: False, 1: True}
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in handle.parameters())


def test_a_selected_input_is_all_that_is_kept():
    linear = S2FT(o=0.0, d=0.25).attach(model := small())
    (name, block), *_ = linear.blocks.items()
    kept: list[tuple[int, ...]] = []

    def pack(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    x = torch.randn(3, 12, 64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        dict(model.named_modules())[name.removesuffix(".weight")](x)
    assert (3, 12, len(block.index)) in kept
    assert (3, 12, 64) not in kept


def test_resume_is_exact():
    straight, _ = trained(S2FT(o=0.25, d=0.1), model := small(), steps=6)
    half, _ = trained(S2FT(o=0.25, d=0.1), small(), steps=3)
    optimizer = half.optimizers[0]
    saved = {
        "values": {n: p.detach().clone() for n, p in half.trained().items()},
        "optimizer": optimizer.state_dict(), "handle": half.state_dict(),
    }
    again = S2FT(o=0.25, d=0.1).attach(resumed := small())
    going = again.optimizer(lr=1e-2)
    with torch.no_grad():
        for name, values in again.trained().items():
            values.copy_(saved["values"][name])
    going.load_state_dict(saved["optimizer"])
    again.load_state_dict(saved["handle"])
    for step in range(3, 6):
        loss(resumed, batch(step)).backward()
        going.step()
        going.zero_grad()
    for name, change in straight.edit().changes.items():
        assert torch.equal(change.values, again.edit().changes[name].values)
    other = S2FT(o=0.25, d=0.1).attach(small(), seed=5)
    with pytest.raises(CheckpointError, match="other units"):
        other.load_state_dict(saved["handle"])
    assert model is straight.model


@pytest.mark.parametrize("layout", ["gather", "permute"])
def test_off_and_disable_give_the_pretrained_model(layout):
    model = small(2)
    before, ids = bits(model), batch(7)
    expected = model(input_ids=ids).logits
    handle, _ = trained(S2FT(**ALL_ROLES, layout=layout), model)
    adapted = model(input_ids=ids).logits
    assert not torch.allclose(adapted, expected, atol=1e-3)
    with handle.off():
        assert same(model, before)
        assert torch.equal(model(input_ids=ids).logits, expected)
    assert torch.equal(model(input_ids=ids).logits, adapted)
    handle.disable()
    loss(model, ids).backward()  # an ordinary model: whole gradients for whoever comes
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    handle.enable()
    assert torch.equal(model(input_ids=ids).logits, adapted)
    edit = handle.detach(merge=True)
    assert torch.allclose(model(input_ids=ids).logits, adapted, atol=1e-5)
    assert edit.about["units"]


def test_decay_goes_to_what_the_parametrisation_says():
    """lr 0.1, decay 0.5, no gradient: values shrink by 0.95, deltas stay at 0."""
    for parametrisation, factor in (("value", 0.95), ("delta", 1.0)):
        model = small()
        handle = S2FT(o=0.25, d=0.1, parametrisation=parametrisation).attach(model)
        before = bits(model)
        optimizer = handle.optimizer(lr=0.1, weight_decay=0.5)
        for parameter in handle.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        name, block = next(iter(handle.blocks.items()))
        now = dict(model.named_parameters())[name][:, block.index]
        assert torch.allclose(now, factor * before[name][:, block.index])


def test_half_precision_weights_keep_exact_values():
    model = small().to(torch.bfloat16)
    handle, losses = trained(S2FT(o=0.25, d=0.3), model, steps=12, lr=3e-4)
    assert all(p.dtype == torch.float32 for p in handle.parameters())
    assert losses[-1] != losses[0]
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def test_an_encoder_with_biases_and_a_head_trains():
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        image_size=8, patch_size=2, num_channels=1, num_labels=10,
    )
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config)
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    for layout in ("gather", "permute"):
        before = bits(model)
        handle = S2FT(o=0.25, d=0.25, layout=layout).attach(model, head=["classifier"])
        optimizer = handle.optimizer(lr=1e-2)
        losses = []
        for _ in range(20):
            value = torch.nn.functional.cross_entropy(model(pixel_values=x).logits, y)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(value.item())
        assert losses[-1] < 0.7 * losses[0]
        handle.detach()
        assert same(model, before)


# ---- quantised layers ----------------------------------------------------------------------------


class Int8Linear(nn.Module):
    """A layer whose weight is integers and a scale, as quantisation libraries have them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.scale = float(linear.weight.detach().abs().max() / 127)
        integers = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(integers, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight.to(x.dtype) * self.scale).T


def quantised() -> nn.Module:
    model = small()
    for layer in model.model.layers:
        for holder in (layer.self_attn, layer.mlp):
            for name, child in list(holder.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(holder, name, Int8Linear(child))
    return model.requires_grad_(False)


def test_quantised_layers_train_a_change_beside_them():
    model, plain = quantised(), small()
    with torch.no_grad():  # the same numbers, dequantised
        for name, module in plain.named_modules():
            twin = dict(model.named_modules())[name]
            if isinstance(twin, Int8Linear):
                module.weight.copy_(twin.weight.float() * twin.scale)
    ratios = {**ALL_ROLES}
    one, first = trained(S2FT(**ratios), model)
    two, second = trained(S2FT(**ratios), plain)
    assert first == pytest.approx(second, abs=1e-5)
    assert set(one.edit().changes) == set(two.edit().changes)
    # Adam's first steps are signs: rounding of gradients near 0 shows.
    for name, change in one.edit().changes.items():
        gap = change.delta() - two.edit().changes[name].delta()
        assert gap.norm() < 0.02 * change.norm(), name
    ids = batch(50)
    adapted = model(input_ids=ids).logits
    with one.off():
        assert not torch.allclose(model(input_ids=ids).logits, adapted)
    with pytest.raises(DataError, match="quantised"):
        S2FT(o=0.25, d=0.1, layout="permute").attach(quantised())
    with pytest.raises(ConfigError, match="quantised"):
        S2FT(o=0.25, d=0.1, strategy="weight").attach(quantised())


def test_nan_and_tied_weights_are_refused():
    model = small()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = math.nan
        model.model.layers[1].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(DataError, match="down_proj"):
        S2FT(o=0, d=0.9).attach(model)
    model = small()
    model.model.layers[1].mlp.down_proj.weight = model.model.layers[0].mlp.down_proj.weight
    with pytest.raises(DataError, match="one tensor"):
        S2FT(o=0, d=0.9).attach(model)


# ---- adapters ------------------------------------------------------------------------------------


def test_peft_serves_the_exact_form(tmp_path: Path):
    pytest.importorskip("peft")
    from passband.tuning.peft_bridge import to_peft

    for name in ("llama", "gpt2"):
        model = built(name)
        ratios = {**ALL_ROLES, "gate": 0.05 if name == "llama" else 0.0}
        handle, _ = trained(S2FT(**ratios), model)
        adapted = model(input_ids=IDS).logits
        edit = handle.detach()
        wrapped = to_peft(model, edit, tmp_path / name)
        assert torch.allclose(wrapped(input_ids=IDS).logits, adapted, atol=1e-4)
        plain = wrapped.unload()(input_ids=IDS).logits
        assert not torch.allclose(plain, adapted, atol=1e-3)


def test_saved_edits_come_back(tmp_path: Path):
    edit = edit_of(0)
    again = Edit.load(edit.save(tmp_path / "adapter.safetensors"))
    model = small()
    again.apply(model)
    for name, change in edit.changes.items():
        assert isinstance(again.changes[name], Block)
        assert torch.equal(again.changes[name].values, change.values)
    assert again.about["units"] == edit.about["units"]


def test_disjoint_adapters_fuse_exactly():
    one = edit_of(0)
    two = edit_of(1, S2FT(o=0.25, d=0.1, avoid=one.about["units"]))
    overlapping = edit_of(0, S2FT(o=0.5, d=0.5))
    assert disjoint(one, two)
    assert not disjoint(one, overlapping)
    model = small()
    before = bits(model)
    with composed(model, [one, two]):
        both = bits(model)
    for name in before:
        expected = before[name].clone()
        for edit in (one, two):
            if name in edit.changes:
                change = edit.changes[name]
                part = expected.index_select(change.dim, change.index) + change.values
                expected.index_copy_(change.dim, change.index, part)
        assert torch.equal(both[name], expected), name
    summed = compose([one, overlapping])
    for name, change in summed.changes.items():
        parts = [e.changes[name].delta() for e in (one, overlapping) if name in e.changes]
        assert torch.allclose(change.delta(), sum(parts))


def test_adapters_switch_to_the_bit():
    edits = {"one": edit_of(0), "two": edit_of(1)}
    model = small().to(torch.float32)
    before, ids = bits(model), batch(3)
    expected = {}
    for name, edit in edits.items():
        with composed(model, [edit]):
            expected[name] = model(input_ids=ids).logits
    with Switcher(model, edits) as switcher:
        for name in ("one", "two", "one"):
            switcher.to(name)
            assert torch.equal(model(input_ids=ids).logits, expected[name])
        with pytest.raises(UnknownNameError):
            switcher.to("three")
    assert same(model, before)


def test_a_block_is_added_in_place():
    change = edit_of(0).changes["model.layers.1.mlp.down_proj.weight"]
    weight = torch.randn(change.shape)
    expected = weight + change.delta()
    add_block(weight, change)
    assert torch.allclose(weight, expected)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_each_request_has_its_own_adapter(kv_heads):
    """Columns and rows, adapters of different sizes, and none."""
    edits = [
        edit_of(0, kv_heads=kv_heads),
        edit_of(1, S2FT(**ALL_ROLES), kv_heads),
        edit_of(2, S2FT(o=0.0, d=0.4), kv_heads),
    ]
    model = small(kv_heads)
    before, ids = bits(model), torch.cat([batch(3), batch(4)])[:5]
    chosen = [1, None, 0, 2, 1]
    rows = []
    for row, adapter in zip(ids, chosen, strict=True):
        with composed(model, [edits[adapter]] if adapter is not None else [edits[0].scaled(0.0)]):
            rows.append(model(input_ids=row[None]).logits)
    with Parallel(model, edits) as served:
        served.requests(chosen)
        assert torch.allclose(model(input_ids=ids).logits, torch.cat(rows), atol=1e-4)
        served.requests([None] * 4)
        with pytest.raises(DataError, match="for 4 requests"):
            model(input_ids=ids)
    assert torch.allclose(model(input_ids=ids[1:2]).logits, rows[1], atol=1e-5)
    assert same(model, before)
    dense = Edit({"model.layers.0.mlp.down_proj.weight": Dense(torch.zeros(32, 64))})
    with pytest.raises(DataError, match="changed by dense"):
        Parallel(model, [dense])


def test_requests_through_gpt2_layers():
    handle, _ = trained(S2FT(o=0.25, d=0.1, v=0.25, u=0.1), model := built("gpt2"))
    adapted = model(input_ids=IDS).logits
    edit = handle.detach()
    plain = model(input_ids=IDS).logits
    with Parallel(model, [edit]) as served:
        served.requests([0, None])
        mixed = model(input_ids=IDS).logits
    assert torch.allclose(mixed[0], adapted[0], atol=1e-4)
    assert torch.allclose(mixed[1], plain[1], atol=1e-4)


# ---- system --------------------------------------------------------------------------------------


def test_presets_have_the_sheets_ratios():
    made = {name: S2FTTuner.from_preset(name).config for name in S2FTTuner.presets}
    for name in ("paper", "paper-llama2-math", "paper-llama2-commonsense"):
        assert (made[name].o, made[name].d, made[name].v, made[name].u) == (0.052, 0.02, 0, 0)
    for name in ("paper-llama3-math", "paper-llama3-cs"):
        assert (made[name].o, made[name].d) == (0.0, 0.03)
    assert made["paper-llama2-commonsense"].lr == made["paper-llama3-cs"].lr == 2e-4
    assert made["paper-llama2-math"].lr == 1e-3
    assert (made["small"].o, made["small"].d, made["small"].lr) == (0.0625, 0.05, 2e-3)
    assert all(config.weight_decay == 0 for config in made.values())
