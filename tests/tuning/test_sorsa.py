"""SORSA against NumPy's decomposition, the formula with dense matrices, peft and differences."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from passband import create
from passband.bench.budget import Budget
from passband.bench.loop import LoopConfig, train
from passband.bench.streams import Streams
from passband.errors import CheckpointError, ConfigError, DataError, PassbandWarning
from passband.tuning import factors as shared_factors
from passband.tuning.models import byte_lm
from passband.tuning.peft_bridge import to_peft
from passband.tuning.sorsa.analysis import condition_number, drift, report
from passband.tuning.sorsa.files import load_factors, save_factors
from passband.tuning.sorsa.model import SORSA, SORSAHandle

X = torch.randn(16, 12, generator=torch.Generator().manual_seed(1))
Y = torch.arange(16) % 5


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 14), nn.Linear(14, 5))


def moved(handle: SORSAHandle, size: float = 0.1, seed: int = 0) -> SORSAHandle:
    """As after some training."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in handle.parameters():
            p += size * torch.randn(p.shape, generator=noise, dtype=p.dtype)
    return handle


def dense(weight: torch.Tensor, f: Any, c: float) -> np.ndarray:
    """W0 - c B0 diag(S0) A0 + c B diag(S) A by NumPy, in float64."""
    U, s, Vh = np.linalg.svd(weight.detach().double().numpy())
    r = f.rank
    residual = weight.detach().double().numpy() - c * U[:, :r] @ np.diag(s[:r]) @ Vh[:r]
    parts = [p.detach().double().numpy() for p in (f.B, f.S, f.A)]
    return residual + c * parts[0] @ np.diag(parts[1]) @ parts[2]


# ---- start and forward pass ----------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_factors_are_the_leading_triples_and_the_output_is_the_formula(alpha: float | None) -> None:
    model, base = net(), net()
    handle = SORSA(rank=3, alpha=alpha).attach(model)
    for name, f in handle.factors.items():
        weight = base.get_submodule(name).weight.detach().numpy()
        U, s, Vh = np.linalg.svd(weight)
        np.testing.assert_allclose(f.S.detach(), s[:3], rtol=1e-5)
        np.testing.assert_allclose(np.abs(f.B.detach().numpy()), np.abs(U[:, :3]), atol=1e-5)
        np.testing.assert_allclose(np.abs(f.A.detach().numpy()), np.abs(Vh[:3]), atol=1e-5)
    assert (model(X) - base(X)).abs().max() < 1e-5 * base(X).abs().max()
    moved(handle)
    h = X.double().numpy()
    for name, layer in base.named_children():
        if isinstance(layer, nn.Linear):
            W = dense(layer.weight, handle.factors[name], handle.method.scale)
            h = h @ W.T + layer.bias.detach().double().numpy()
        else:
            h = np.tanh(h)
    np.testing.assert_allclose(model(X).detach(), h, rtol=2e-4, atol=2e-5)


def test_gradients_are_those_of_the_dense_formula() -> None:
    model = net().double()
    handle = moved(SORSA(rank=2, alpha=4.0, targets=("0",)).attach(model))
    f, layer, x = handle.factors["0"], model[0], X.double()
    layer(x).square().sum().backward()
    B, S, A = (p.detach().clone().requires_grad_() for p in (f.B, f.S, f.A))
    W = layer.weight - 2.0 * (f.B0 @ f.A0) + 2.0 * B @ torch.diag(S) @ A
    (x @ W.T + layer.bias).square().sum().backward()
    for ours, theirs in ((f.B, B), (f.S, S), (f.A, A)):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)


def test_bf16_weights_have_fp32_factors_and_stay_as_they_are() -> None:
    model = net().bfloat16()
    before = copy.deepcopy(model.state_dict())
    handle = SORSA(rank=3).attach(model)
    assert {p.dtype for p in handle.parameters()} == {torch.float32}
    start = net().bfloat16()(X.bfloat16())
    assert torch.equal(model(X.bfloat16()), start)
    weight = before["0.weight"].double().numpy()
    np.testing.assert_allclose(
        handle.factors["0"].S.detach(), np.linalg.svd(weight)[1][:3], rtol=1e-5
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_conv1d_of_gpt2_is_decomposed_as_its_transpose() -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(7, 12))
    base = copy.deepcopy(model)
    handle = moved(SORSA(rank=2, targets=("0",)).attach(model))
    W = dense(base[0].weight.T, handle.factors["0"], 1.0)
    want = X.double().numpy() @ W.T + base[0].bias.detach().numpy()
    np.testing.assert_allclose(model(X).detach(), want, rtol=1e-4, atol=1e-5)
    adapted = model(X).detach()
    handle.detach(merge=True)
    torch.testing.assert_close(model(X), adapted, rtol=1e-5, atol=1e-5)


def test_the_start_is_that_of_pissa_in_peft() -> None:
    from peft import LoraConfig, get_peft_model

    ours, theirs = byte_lm(32, 48, 1, 2), byte_lm(32, 48, 1, 2)
    handle = SORSA(rank=4, gamma=0.0).attach(ours)
    config = LoraConfig(r=4, lora_alpha=4, init_lora_weights="pissa", target_modules="all-linear")
    peft = get_peft_model(theirs, config)
    layers = {n: m for n, m in peft.named_modules() if hasattr(m, "lora_A")}
    assert len(layers) == len(handle.factors) == 7
    for name, layer in layers.items():
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        f = handle.factors[name.removeprefix("base_model.model.")]
        torch.testing.assert_close(f.scaled_left() @ f.A, product, rtol=1e-4, atol=1e-5)


def test_merged_and_exported_it_gives_the_same(tmp_path: Any) -> None:
    ids = torch.arange(40).reshape(2, 20)
    model = byte_lm(32, 48, 2, 2).eval()
    handle = moved(SORSA(rank=4, alpha=8.0).attach(model), 0.02)
    attached = model(input_ids=ids).logits.detach()
    peft = to_peft(byte_lm(32, 48, 2, 2).eval(), handle.edit(), tmp_path)
    torch.testing.assert_close(peft(input_ids=ids).logits, attached, rtol=1e-4, atol=1e-5)
    assert peft.peft_config["default"].r == 8  # B S and B0 S0 beside each other
    handle.detach(merge=True)
    torch.testing.assert_close(model(input_ids=ids).logits, attached, rtol=1e-4, atol=1e-5)
    assert not any("forward" in m.__dict__ for m in model.modules())


# ---- the regulariser -----------------------------------------------------------------------------


def deviations(handle: SORSAHandle) -> list[float]:
    found = []
    for f in handle.factors.values():
        A, B = f.A.detach().double().numpy(), f.B.detach().double().numpy()
        found += [np.linalg.norm(gram - np.eye(f.rank)) for gram in (A @ A.T, B.T @ B)]
    return found


def test_deviation_is_the_mean_over_all_factors() -> None:
    handle = moved(SORSA(rank=3).attach(net()))
    d = np.array(deviations(handle))
    assert len(d) == 6
    for norm, want in (
        ("exact", d.mean()), ("squared", (d**2).mean()), ("guarded", np.sqrt(d**2 + 3e-8).mean()),
    ):
        assert float(handle.deviation(norm).detach()) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("norm", ["guarded", "exact", "squared"])
def test_its_gradient_by_finite_differences(norm: Any) -> None:
    handle = moved(SORSA(rank=2).attach(net().double()))
    parameters = [f.A for f in handle.factors.values()] + [f.B for f in handle.factors.values()]
    grads = torch.autograd.grad(handle.deviation(norm), parameters)
    direction = [torch.randn(p.shape, dtype=p.dtype) for p in parameters]
    slope = sum(float((g * d).sum()) for g, d in zip(grads, direction, strict=True))
    ends = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            for p, d in zip(parameters, direction, strict=True):
                p += step * d
            ends.append(float(handle.deviation(norm)))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)


def test_the_guarded_norm_ignores_rounding_and_nothing_else() -> None:
    handle = SORSA(rank=8).attach(byte_lm(32, 48, 2, 2))
    parameters = [p for f in handle.factors.values() for p in (f.A, f.B)]

    def gradient(norm: Any) -> torch.Tensor:
        found = torch.autograd.grad(handle.deviation(norm), parameters)
        return torch.cat([g.flatten() for g in found])

    assert gradient("guarded").norm() < 0.02 * gradient("exact").norm()
    moved(handle, 0.02)
    assert min(deviations(handle)) > 0.05
    gap = gradient("guarded") - gradient("exact")
    assert gap.norm() < 0.01 * gradient("exact").norm()


def test_exactly_orthonormal_factors_have_no_nan_in_the_exact_norm() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    model[0].weight.data = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    handle = SORSA(rank=2, targets=("0",)).attach(model)
    assert float(handle.deviation("exact").detach()) < 1e-15
    f = handle.factors["0"]
    for g in torch.autograd.grad(handle.deviation("exact"), [f.A, f.B]):
        assert torch.isfinite(g).all()


def test_products_stay_fp32_under_autocast() -> None:
    handle = moved(SORSA(rank=3).attach(net()))
    with torch.autocast("cpu", torch.bfloat16):
        inside = handle.deviation("exact")
    assert torch.equal(inside, handle.deviation("exact"))


def test_it_follows_the_schedule_from_the_peak() -> None:
    """W - eta_t grad L - gamma (eta_t / eta_d) grad L_reg under plain gradient descent."""
    handle = moved(SORSA(rank=3, gamma=0.3).attach(net()))
    model, peak = handle.model, 0.1
    optimizer = handle.bind(torch.optim.SGD(handle.parameters(), lr=peak))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.25)
    parameters, before = handle.parameters(), [p.detach().clone() for p in handle.parameters()]
    task = torch.autograd.grad(F.cross_entropy(model(X), Y), parameters)
    extra = torch.autograd.grad(handle.deviation("guarded"), parameters, allow_unused=True)
    handle.objective(F.cross_entropy(model(X), Y)).backward()
    optimizer.step()
    schedule.step()
    for p, old, g, reg in zip(parameters, before, task, extra, strict=True):
        want = old - 0.25 * peak * g - (0 if reg is None else 0.3 * 0.25 * reg)
        torch.testing.assert_close(p.detach(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_in_the_common_loop_it_comes_once_and_after_clipping(accumulate: int) -> None:
    handle = moved(SORSA(rank=3, gamma=0.2, divisor=accumulate).attach(net()))
    model, lr, clip = handle.model, 0.05, 1e-2
    parameters, before = handle.parameters(), [p.detach().clone() for p in handle.parameters()]
    task = torch.autograd.grad(F.cross_entropy(model(X), Y), parameters)
    total = torch.stack([g.norm() for g in task]).norm()
    assert total > clip
    extra = torch.autograd.grad(handle.deviation("guarded"), parameters, allow_unused=True)
    optimizer = handle.bind(torch.optim.SGD(parameters, lr=lr))
    data = [(x, y) for x, y in zip(X, Y, strict=True)]
    config = LoopConfig(
        steps=1, batch_size=16, accumulate=accumulate, lr=lr, clip=clip, schedule="constant",
        warmup=0,
    )
    beside = nn.ParameterList(parameters)
    train(
        beside, lambda _, batch: handle.objective(F.cross_entropy(model(batch[0]), batch[1])),
        data, Budget(steps=1), config, streams=Streams(0), optimizer=optimizer, state=handle,
    )
    for p, old, g, reg in zip(parameters, before, task, extra, strict=True):
        step = g * clip / total + (0 if reg is None else 0.2 / (lr * accumulate) * reg)
        torch.testing.assert_close(p.detach(), old - lr * step, rtol=1e-4, atol=1e-6)


def test_the_regulariser_keeps_factors_orthonormal() -> None:
    ends = {}
    for gamma in (0.0, 1e-2):
        model = net()
        handle = SORSA(rank=3, gamma=gamma).attach(model)
        optimizer = handle.optimizer(lr=1e-2)
        for _ in range(60):
            handle.objective(F.cross_entropy(model(X), Y)).backward()
            optimizer.step()
            optimizer.zero_grad()
        ends[gamma] = np.mean(deviations(handle))
    assert ends[1e-2] < ends[0.0] / 3


# ---- analysis ------------------------------------------------------------------------------------


def test_drift_against_numpy() -> None:
    torch.manual_seed(0)
    before, after = torch.randn(6, 4), torch.randn(6, 4)
    (u0, s0, v0), (u1, s1, v1) = (
        np.linalg.svd(w.double().numpy(), full_matrices=False) for w in (before, after)
    )
    found = drift(before, after)
    assert found.values == pytest.approx(np.abs(s1 - s0).mean(), rel=1e-9)
    cosines = np.abs((u0 * u1).sum(0)) + np.abs((v0 * v1).sum(1))
    assert found.vectors == pytest.approx(1 - cosines.mean() / 2, rel=1e-9)


def test_condition_number_against_numpy() -> None:
    torch.manual_seed(0)
    B, A = torch.randn(9, 3), torch.randn(3, 7)
    s = np.linalg.svd((B @ A).double().numpy())[1]
    assert condition_number(B, A) == pytest.approx(s[0] / s[2], rel=1e-4)


def test_the_report_covers_every_layer_and_other_methods_edits() -> None:
    handle = moved(SORSA(rank=3).attach(net()))
    found = handle.report()
    assert set(found) == {"0.weight", "2.weight", "3.weight"}
    W, f = net()[0].weight, handle.factors["0"]
    want = drift(W, torch.from_numpy(dense(W, f, 1.0)))
    assert found["0.weight"].values == pytest.approx(want.values, rel=1e-4)
    assert found["0.weight"].condition == pytest.approx(condition_number(f.scaled_left(), f.A))
    from passband.parts.edits import Edit

    between = Edit.between(net(0), net(1))
    other = report(between, dict(net(0).named_parameters()))
    assert other["0.weight"].condition is None and other["0.weight"].values > 0
    assert "0.bias" not in other


# ---- saving --------------------------------------------------------------------------------------


def test_factors_on_disk_go_on_without_a_decomposition(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = moved(SORSA(rank=3, alpha=2.0).attach(net(), head=["3"]))
    path = save_factors(handle, tmp_path / "sorsa.safetensors")
    want = handle.model(X).detach()

    def never(*_: object) -> None:
        raise AssertionError("decomposed at load")

    monkeypatch.setattr(shared_factors, "top_singular", never)
    other = net()
    with torch.no_grad():
        other[3].weight.normal_()  # another fresh head
    again = load_factors(path, other)
    assert again.method == handle.method
    assert torch.equal(other(X), want)
    with pytest.raises(CheckpointError, match=r"0\.weight"):
        load_factors(path, net(seed=1))
    with pytest.raises(CheckpointError, match="can't be read"):
        load_factors(tmp_path / "nothing.safetensors", net())
    edit = handle.edit().save(tmp_path / "edit.safetensors")
    with pytest.raises(CheckpointError, match="no factors"):
        load_factors(edit, net())


def test_large_matrices_are_decomposed_once(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSBAND_CACHE", str(tmp_path))
    monkeypatch.setattr(shared_factors, "LARGE", 9)
    first = SORSA(rank=2, targets=("0",)).attach(net()).factors["0"]
    kept = shared_factors.top_singular
    calls = []
    monkeypatch.setattr(
        shared_factors, "top_singular", lambda *a: calls.append(1) or kept(*a)
    )
    second = SORSA(rank=2, targets=("0",)).attach(net()).factors["0"]
    assert not calls and torch.equal(first.A, second.A) and torch.equal(first.B0, second.B0)
    SORSA(rank=3, targets=("0",)).attach(net())
    SORSA(rank=2, targets=("0",)).attach(net(seed=1))
    assert len(calls) == 2


# ---- input that is wrong -------------------------------------------------------------------------


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.seq_proj = nn.Linear(4, 4), nn.Linear(4, 4)


def test_names_are_matched_by_whole_components() -> None:
    assert list(SORSA(rank=2, targets=("q_proj",)).attach(Named()).factors) == ["q_proj"]
    with pytest.raises(DataError, match="q_proj, seq_proj"):
        SORSA(rank=2, targets=("k_proj",)).attach(Named())


def test_wrong_ranks_weights_and_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="rank = 6 for 3"):
        SORSA(rank=6).attach(net())
    broken = net()
    with torch.no_grad():
        broken[2].weight[0, 0] = torch.nan
    with pytest.raises(DataError, match="weight of 2"):
        SORSA(rank=2).attach(broken)
    packed = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(DataError, match="quantised"):
        SORSA(rank=2, targets=("0",)).attach(packed)
    with pytest.raises(ConfigError, match="norm"):
        SORSA(rank=2, norm="other").attach(net())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="gamma"):
        SORSA(rank=2, gamma=-1.0).attach(net())
    with pytest.raises(ConfigError, match="peak learning rate"):
        SORSA(rank=2).attach(net()).penalty()


def test_a_weight_of_lower_rank_warns_and_stays_exact() -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[:] = torch.outer(torch.arange(9.0), torch.ones(12))
    start = model(X).detach()
    with pytest.warns(PassbandWarning, match="0 has fewer than 3"):
        handle = SORSA(rank=3).attach(model)
    torch.testing.assert_close(model(X), start, rtol=1e-5, atol=1e-5)
    assert max(deviations(handle)) < 1e-5  # arbitrary vectors, but orthonormal ones


def test_shared_weights_are_decomposed_once_and_tables_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12))
    model[2].weight = model[0].weight
    handle = moved(SORSA(rank=3).attach(model))
    assert list(handle.factors) == ["0"]
    adapted = model(X).detach()
    handle.detach(merge=True)
    torch.testing.assert_close(model(X), adapted, rtol=1e-5, atol=1e-5)
    tied = nn.ModuleDict({"table": nn.Embedding(6, 4), "out": nn.Linear(4, 6, bias=False)})
    tied["out"].weight = tied["table"].weight
    with pytest.raises(DataError, match="embedding table"):
        SORSA(rank=2, targets=("out",)).attach(tied)
    assert tied["out"].weight.requires_grad and "forward" not in tied["out"].__dict__


# ---- the system ----------------------------------------------------------------------------------


def test_the_sheets_sizes() -> None:
    system = create("sorsa")
    assert system.count(byte_lm()) == 78_304
    assert system.config.gamma == 1e-3 and system.config.lr == 1e-3
    method = create("sorsa", accumulate=4, legacy_div_accum=True).method(("0",))
    assert (method.divisor, method.peak_lr) == (4, None)
    rwkv = nn.ModuleDict({
        "attention": nn.ModuleDict({n: nn.Linear(4, 4) for n in
                                    ("receptance", "key", "value", "gate", "output")}),
        "feed_forward": nn.ModuleDict({n: nn.Linear(4, 4) for n in
                                       ("key", "receptance", "value")}),
        "head": nn.Linear(4, 4),
    })
    targets = type(system).configure("paper-rwkv6").targets
    assert len(SORSA(rank=2, targets=targets).attach(rwkv).factors) == 8
