"""SaRA against dense AdamW with masks, NumPy's SVD and hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from passband.errors import CheckpointError, ConfigError, DataError, PassbandError, PassbandWarning
from passband.parts.edits import Edit, compose
from passband.tuning.sara.analysis import amplification, similarity
from passband.tuning.sara.model import SaRA, learning_rate
from passband.tuning.sara.penalty import NuclearNorm
from passband.tuning.sara.selection import nth_smallest, select


def network(seed: int = 0, width: int = 24) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, width), nn.Tanh(), nn.LayerNorm(width), nn.Linear(width, 5))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(8, 12, generator=generator), torch.randn(8, 5, generator=generator)


def loss(model: nn.Module, step: int) -> torch.Tensor:
    x, y = batch(step)
    return (model(x) - y).square().mean()


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def everything(model: nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().float().abs().flatten().numpy() for p in model.parameters()])


# ---- selection -------------------------------------------------------------------------------


def test_selection_is_strictly_below_the_threshold():
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.25, -0.25, 0.249, -0.1]]))
        model.bias.fill_(1.0)
    chosen = select(model, threshold=0.25)
    assert {n: at.tolist() for n, at in chosen.indices.items()} == {"weight": [2, 3]}
    assert (chosen.count, chosen.total) == (2, 5)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.37])
def test_a_fraction_selects_the_smallest(fraction):
    model = nn.Sequential(nn.Linear(30, 20), nn.Conv2d(3, 4, 3), nn.Embedding(7, 5))
    sizes = np.sort(everything(model))
    wanted = int(fraction * len(sizes))
    chosen = select(model, fraction=fraction)
    assert chosen.count == wanted
    assert chosen.threshold == sizes[wanted]
    weights = dict(model.named_parameters())
    for name, at in chosen.indices.items():
        expected = np.flatnonzero(weights[name].detach().abs().flatten().numpy() < sizes[wanted])
        np.testing.assert_array_equal(at.numpy(), expected)


def test_nth_smallest_is_that_of_a_sort():
    rng = np.random.default_rng(0)
    parts = [torch.from_numpy(rng.normal(size=n).astype(np.float32)) for n in (1000, 1, 313)]
    parts.append(torch.zeros(5))
    order = np.sort(np.abs(np.concatenate([p.numpy() for p in parts])))
    for n in (0, 4, 5, 17, 700, 1318):
        assert nth_smallest(parts, n) == order[n]


def test_largest_and_random_select_as_many():
    model = network()
    count = select(model, fraction=0.2).count
    largest = select(model, fraction=0.2, order="largest")
    edge = np.sort(everything(model))[-count]
    weights = dict(model.named_parameters())
    kept = np.concatenate(
        [weights[n].detach().abs().flatten()[at].numpy() for n, at in largest.indices.items()]
    )
    # Ones of the norm's gain are ties: none of them is left out while a smaller one is in.
    assert kept.min() >= edge
    drawn = [select(model, fraction=0.2, order="random", seed=s) for s in (0, 0, 1)]
    flat = [torch.cat(list(d.indices.values())) for d in drawn]
    assert [d.count for d in drawn] == [count] * 3
    assert torch.equal(flat[0], flat[1])
    assert flat[0].shape != flat[2].shape or not torch.equal(flat[0], flat[2])
    for chosen in drawn:
        for name, at in chosen.indices.items():
            assert len(at.unique()) == len(at)
            assert int(at.min()) >= 0 and int(at.max()) < weights[name].numel()


def test_zeros_are_counted_apart_and_can_be_excluded():
    model = network()
    nn.init.zeros_(model[3].weight)
    chosen = select(model, threshold=1e-3)
    assert set(chosen.zeros) == {"2.bias", "3.weight"}
    assert chosen.fresh == 24  # the bias of the norm, not the matrix
    without = select(model, threshold=1e-3, exclude=("3.*", "2.bias"))
    assert without.zeros == () and "3.weight" not in without.indices


def test_tied_tensors_count_once():
    model = nn.ModuleDict({"a": nn.Linear(6, 6, bias=False), "b": nn.Linear(6, 6, bias=False)})
    model["b"].weight = model["a"].weight
    assert select(model, fraction=0.5).total == 36


def test_integers_are_skipped_with_a_list():
    model = network()
    model.codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    assert select(model, fraction=0.1).skipped == ("codes",)


def test_a_byte_lm_has_79052_entries():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=344, num_hidden_layers=4,
        num_attention_heads=4, tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) == 857_216
    assert select(model, fraction=0.1, targets=("all-linear",)).count == 79_052


def test_half_precision_weights_are_compared_in_fp32_and_warned_of():
    model = nn.Linear(3, 1, bias=False).bfloat16()
    # 2e-3 in bf16 is 0.00200653: an entry between the two would be taken for a smaller one.
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0020065308, 0.0019989, 1.0]]))
    with pytest.warns(PassbandWarning, match="bfloat16"):
        chosen = select(model, threshold=2e-3)
    assert chosen.indices["weight"].tolist() == [1]


@pytest.mark.parametrize(
    "arguments", [{"threshold": 0.0}, {"threshold": -1.0}, {"threshold": 1e-9}, {"fraction": 1e-9}]
)
def test_selecting_nothing_shows_the_quantiles(arguments):
    model = nn.Linear(9, 9)
    sizes = np.sort(everything(model))
    with pytest.raises(PassbandError, match="quantiles") as error:
        select(model, **arguments)
    assert f"0.5: {sizes[45]:.3g}" in str(error.value)


def test_bad_weights_and_arguments_are_refused():
    model = network()
    with pytest.warns(PassbandWarning, match="60%"):
        select(model, fraction=0.6)
    with pytest.raises(ConfigError, match="fraction"):
        select(model, fraction=1.0)
    with pytest.raises(ConfigError):
        select(model)
    with pytest.raises(ConfigError, match="adjustment"):
        SaRA(fraction=0.1, order="largest").attach(model)
    with torch.no_grad():
        model[0].weight[1, 2] = float("nan")
    with pytest.raises(DataError, match=r"0\.weight"):
        select(model, fraction=0.1)
    # Nothing of a failed attempt sticks to the model.
    fresh = network()
    with pytest.raises(DataError):
        SaRA(threshold=1e-12, exclude=("2.bias",)).attach(fresh)
    SaRA(fraction=0.1).attach(fresh)


# ---- training ----------------------------------------------------------------------------------


def dense_adamw(model, masks, theta, steps, lr, wd, adjust=None, micro=1):
    """AdamW written out, on dense tensors with masks that shrink to |P| < theta at `adjust`."""
    weights = dict(model.named_parameters())
    moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in weights.items()}
    for step in range(steps):
        if step == adjust:
            masks = {n: m & (weights[n].detach().abs() < theta) for n, m in masks.items()}
        total = sum(loss(model, step * micro + i) / micro for i in range(micro))
        gradients = torch.autograd.grad(total, list(weights.values()))
        with torch.no_grad():
            for (name, p), g in zip(weights.items(), gradients, strict=True):
                m, v = moments[name]
                g = g * masks[name]
                m.lerp_(g, 0.1)
                v.mul_(0.999).addcmul_(g, g, value=0.001)
                first, second = 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)
                update = (m / first) / ((v / second).sqrt() + 1e-8) + wd * p
                p.sub_(lr * update * masks[name])
    return masks


@pytest.mark.parametrize("adjustment", ["off", "keep"])
def test_it_steps_like_dense_adamw_with_a_mask(adjustment):
    ours, dense = network(), network()
    start = bits(ours)
    method = SaRA(fraction=0.3, lambda_rank=0.0, adjustment=adjustment)
    handle = method.attach(ours, steps=20)
    theta = handle.selection.threshold
    masks = {n: p.abs() < theta for n, p in start.items()}
    optimizer = handle.optimizer(lr=1e-2, weight_decay=0.1)
    for step in range(20):
        for i in range(2):
            (handle.objective(loss(ours, 2 * step + i)) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    handle.selected.sync()
    last = dense_adamw(
        dense, masks, theta, 20, 1e-2, 0.1, adjust=10 if adjustment == "keep" else None, micro=2
    )
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p, dict(dense.named_parameters())[name], rtol=0, atol=2e-6)
        assert torch.equal(p[~masks[name]], start[name][~masks[name]])  # frozen: to the bit
    report = handle.report()
    assert report.entries == sum(int(m.sum()) for m in masks.values())
    assert report.remaining == sum(int(m.sum()) for m in last.values())
    now = bits(ours)
    still = sum(int((now[n][m].abs() < theta).sum()) for n, m in masks.items())
    assert report.ineffective == still / report.entries
    changes = handle.edit().changes
    for name, mask in masks.items():  # the frozen-at-current ones stay part of the edit
        if mask.any():
            assert torch.equal(changes[name].indices, mask.flatten().nonzero().flatten())


def test_gradients_and_adam_cost_the_entries_alone():
    model = network()
    handle = SaRA(fraction=0.1, lambda_rank=0.0, adjustment="off").attach(model)
    optimizer = handle.optimizer(lr=1e-3)
    loss(model, 0).backward()
    assert all(p.grad is None for p in model.parameters())
    optimizer.step()
    held = [t for s in optimizer.state.values() for t in s.values() if t.ndim]
    assert sum(t.numel() for t in held) == 2 * handle.selection.count


def test_step_zero_is_the_base_and_off_and_detach_restore_its_bits():
    model = network()
    start, out = bits(model), model(batch(0)[0])
    handle = SaRA(fraction=0.3).attach(model, steps=10)
    assert torch.equal(model(batch(0)[0]), out)
    optimizer = handle.optimizer(lr=1e-2)
    for step in range(10):
        handle.objective(loss(model, step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(model(batch(0)[0]), out)
    with handle.off():
        assert torch.equal(model(batch(0)[0]), out)
    assert not torch.equal(model(batch(0)[0]), out)
    handle.detach()
    assert all(torch.equal(p, start[n]) for n, p in model.named_parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_the_loss_of_the_objective_is_that_of_the_task():
    handle = SaRA(fraction=0.3, min_dim=4).attach(network(), steps=4)
    value = loss(handle.model, 0)
    assert handle.objective(value) is value


# ---- progressive adjustment --------------------------------------------------------------------


def run(handle, steps, optimizer, first=0):
    for step in range(first, steps):
        handle.objective(loss(handle.model, step)).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_moments_of_those_that_stay_are_kept():
    model = network()
    handle = SaRA(fraction=0.3, lambda_rank=0.0).attach(model, steps=10)
    optimizer = handle.optimizer(lr=1e-2)
    run(handle, 4, optimizer)
    before = {
        n: (v.detach().clone(), optimizer.state[v]["exp_avg"].clone())
        for n, v in handle.trained().items()
    }
    run(handle, 5, optimizer, first=4)  # the fifth of ten steps: half of the run
    assert handle.adjusted
    assert handle.report().remaining < handle.selection.count
    twin = SaRA(fraction=0.3, lambda_rank=0.0, adjustment="off").attach(network(), steps=10)
    plain = twin.optimizer(lr=1e-2)
    run(twin, 5, plain)
    for name, values in handle.trained().items():
        whole = twin.trained()[name]
        stays = whole.detach().abs() < handle.selection.threshold
        assert torch.equal(values, whole[stays])
        assert torch.equal(
            optimizer.state[values]["exp_avg"], plain.state[whole]["exp_avg"][stays]
        )
        assert int(optimizer.state[values]["step"]) == 5
        assert before[name][0].shape == whole.shape


def test_reset_forgets_moments_and_skips_one_update():
    handle = SaRA(fraction=0.3, lambda_rank=0.0, adjustment="reset").attach(network(), steps=10)
    optimizer = handle.optimizer(lr=1e-2)
    run(handle, 5, optimizer)
    stood = {n: v.detach().clone() for n, v in handle.trained().items()}
    run(handle, 6, optimizer, first=5)
    assert all(torch.equal(v, stood[n]) for n, v in handle.trained().items())
    run(handle, 7, optimizer, first=6)
    moved = [v for n, v in handle.trained().items() if not torch.equal(v, stood[n])]
    assert moved and all(int(optimizer.state[v]["step"]) == 1 for v in moved)


def test_an_empty_set_stops_with_a_message():
    handle = SaRA(threshold=0.02, lambda_rank=0.0, exclude=("2.*",)).attach(network(), steps=4)
    optimizer = handle.optimizer(lr=1.0, weight_decay=0.0)  # Adam's first steps are of size lr
    with pytest.raises(DataError, match="nothing is left to train"):
        run(handle, 4, optimizer)


def test_a_plain_loop_without_a_length_is_told_so():
    handle = SaRA(fraction=0.3).attach(network())
    with pytest.raises(ConfigError, match="length of the run"):
        run(handle, 1, handle.optimizer(lr=1e-3))


def test_a_run_resumes_exactly():
    def begin():
        handle = SaRA(fraction=0.3, min_dim=4).attach(network(), steps=12, seed=3)
        return handle, handle.optimizer(lr=1e-2)

    whole, optimizer = begin()
    run(whole, 12, optimizer)
    for stop in (3, 8):  # before and after the adjustment
        half, first = begin()
        run(half, stop, first)
        state, moments = half.state_dict(), first.state_dict()
        again, second = begin()
        again.load_state_dict(state)
        second.load_state_dict(moments)
        run(again, 12, second, first=stop)
        for name, values in whole.trained().items():
            assert torch.equal(again.trained()[name], values), stop
        for name, change in whole.edit().changes.items():
            assert change.same(again.edit().changes[name])


# ---- the penalty -------------------------------------------------------------------------------


def test_the_penalty_is_the_nuclear_norm_and_its_gradient():
    model = network()
    handle = SaRA(fraction=0.4, min_dim=4, lambda_rank=0.5, rank_sampling="all").attach(model)
    assert set(handle.nuclear.shapes) == {"0.weight", "3.weight"}
    value = handle.penalty()
    values = handle.trained()
    gradients = torch.autograd.grad(value, [values[n] for n in handle.nuclear.shapes])
    total = 0.0
    weights = dict(model.named_parameters())
    for name, found in zip(handle.nuclear.shapes, gradients, strict=True):
        w = weights[name].detach().double().numpy()
        mask = np.abs(w) < handle.selection.threshold
        u, s, vt = np.linalg.svd(w * mask, full_matrices=False)
        r = int((s > 1e-10).sum())
        total += s.sum()
        expected = 0.5 / 2 * ((u[:, :r] @ vt[:r]) * mask)[mask]
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert float(value.detach()) == pytest.approx(0.5 * total / 2, rel=1e-5)


def test_the_penalty_is_added_once_a_step_and_after_clipping():
    model = network()
    handle = SaRA(
        fraction=0.4, min_dim=4, lambda_rank=10.0, rank_sampling="all", adjustment="off"
    ).attach(model)
    optimizer = handle.bind(torch.optim.SGD(handle.parameters(), lr=1.0))
    start = {n: v.detach().clone() for n, v in handle.trained().items()}
    push = {n: 10.0 / 2 * handle.nuclear.gradient(n) for n in handle.nuclear.shapes}
    for i in range(2):  # micro-batches
        (handle.objective(loss(model, i)) / 2).backward()
    nn.utils.clip_grad_norm_(handle.parameters(), 1e-3)
    clipped = {n: v.grad.clone() for n, v in handle.trained().items()}
    optimizer.step()
    for name, v in handle.trained().items():
        expected = start[name] - clipped[name] - push.get(name, torch.zeros(()))
        torch.testing.assert_close(v.detach(), expected, rtol=1e-6, atol=1e-6)


def test_one_matrix_is_drawn_a_step_from_all_alike():
    model = nn.Sequential(*[nn.Linear(20, 20) for _ in range(5)])
    handle = SaRA(fraction=0.4, min_dim=16).attach(model)
    drawn = [handle.nuclear.drawn(step) for step in range(500)]
    assert all(len(names) == 1 for names in drawn)
    counts = np.array([sum(n == [name] for n in drawn) for name in handle.nuclear.shapes])
    assert counts.sum() == 500 and (np.abs(counts - 100) < 45).all()  # 5 standard deviations
    again = NuclearNorm(handle.selected, min_dim=16)
    assert [again.drawn(step) for step in range(500)] == drawn
    three = NuclearNorm(handle.selected, sampling=3, min_dim=16)
    assert all(len(set(three.drawn(step))) == 3 for step in range(20))
    assert NuclearNorm(handle.selected, min_dim=20)(0) is None
    with pytest.raises(ConfigError, match="rank_sampling"):
        NuclearNorm(handle.selected, sampling=0)


def test_the_penalty_shrinks_the_nuclear_norm():
    norms = []
    for weight in (0.0, 1.0):
        model = network(width=40)
        handle = SaRA(
            fraction=0.4, min_dim=4, lambda_rank=weight, rank_sampling="all", adjustment="off"
        ).attach(model, steps=60)
        run(handle, 60, handle.optimizer(lr=1e-2, weight_decay=0.0))
        norms.append(sum(float(handle.nuclear.norm(n).detach()) for n in handle.nuclear.shapes))
    assert norms[1] < 0.9 * norms[0]


def test_the_rule_for_the_learning_rate():
    for threshold, lr in ((2e-3, 5e-4), (8e-4, 7.6e-4), (2e-4, 9.3e-4), (1e-2, 3e-5)):
        assert learning_rate(threshold) == pytest.approx(lr, rel=0.01)
    handle = SaRA(threshold=0.01).attach(network())
    assert handle.optimizer().param_groups[0]["lr"] == pytest.approx(learning_rate(0.01))


# ---- the edit ----------------------------------------------------------------------------------


def trained(seed: int, model: nn.Module | None = None) -> Edit:
    handle = SaRA(fraction=0.3, order="random", adjustment="off").attach(
        network() if model is None else model, steps=5, seed=seed
    )
    run(handle, 5, handle.optimizer(lr=1e-2))
    return handle.detach()


def test_edits_scale_and_merge_over_the_union_of_supports():
    first, second = trained(1), trained(2)
    base, model = bits(network()), network()
    compose([first, second], weights=[0.6, 0.6]).apply(model)
    for name, p in model.named_parameters():
        parts = [e.changes[name].delta() for e in (first, second) if name in e.changes]
        expected = base[name] + 0.6 * sum(parts, torch.zeros_like(base[name]))
        torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=1e-7)
    twice = network()
    first.apply(twice, scale=2.0)
    for name, p in twice.named_parameters():
        if name in first.changes:
            torch.testing.assert_close(
                p.detach(), base[name] + 2 * first.changes[name].delta(), rtol=1e-6, atol=1e-7
            )


def test_an_edit_is_saved_and_refuses_another_base(tmp_path):
    edit = trained(1)
    edit.save(tmp_path / "style.safetensors")
    again = Edit.load(tmp_path / "style.safetensors")
    assert again.about["config"]["fraction"] == 0.3
    assert again.about["threshold"] == edit.about["threshold"]
    ours, theirs = network(), network()
    edit.apply(ours)
    again.apply(theirs)
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises((CheckpointError, DataError), match=r"0\.weight"):
        again.apply(network(seed=1))


def test_bf16_weights_are_trained_in_fp32():
    model = network().bfloat16()
    with pytest.warns(PassbandWarning):
        handle = SaRA(fraction=0.3, lambda_rank=0.0, adjustment="off").attach(model)
    assert {v.dtype for v in handle.trained().values()} == {torch.float32}
    optimizer = handle.optimizer(lr=1e-4)
    for step in range(3):
        x, y = batch(step)
        (model(x.bfloat16()).float() - y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = handle.edit().changes["0.weight"]
    assert changed.values.dtype == torch.float32
    assert len(changed.values.unique()) > 10  # finer than the steps of bf16 would allow


# ---- analysis ------------------------------------------------------------------------------------


def test_amplification_and_similarity_against_numpy():
    rng = np.random.default_rng(0)
    p, d, e = (rng.normal(size=(9, 6)) for _ in range(3))
    u, _, vt = np.linalg.svd(d, full_matrices=False)
    expected = np.linalg.norm(d) / np.linalg.norm(u[:, :2].T @ p @ vt[:2].T)
    found = amplification(torch.from_numpy(d), torch.from_numpy(p), 2)
    assert found == pytest.approx(expected, rel=1e-9)
    w, _, _ = np.linalg.svd(e, full_matrices=False)
    phi = np.linalg.norm(u[:, :2].T @ w[:, :3]) ** 2 / 2
    assert similarity(torch.from_numpy(d), torch.from_numpy(e), 2, 3) == pytest.approx(phi)
    assert similarity(torch.from_numpy(d), torch.from_numpy(d), 4) == pytest.approx(1.0)
    with pytest.raises(DataError, match="rank"):
        amplification(torch.from_numpy(d), torch.from_numpy(p), 7)
