"""BA-LoRA against NumPy, SciPy, torch's own singular values, peft and finite differences."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from passband import create
from passband.bench.system import NullMonitor
from passband.errors import CheckpointError, ConfigError, DataError, PassbandWarning
from passband.tuning.ba_lora import model as room
from passband.tuning.ba_lora import regularisers
from passband.tuning.ba_lora.model import BALoRA, BALoRAHandle
from passband.tuning.ba_lora.regularisers import (
    consistency,
    covariance,
    negative_entropy,
    normalised_distance,
    spectrum,
    supervised_rows,
)
from passband.tuning.ba_lora.teacher import StoredTeacher
from passband.tuning.models import byte_lm
from passband.tuning.peft_bridge import to_peft

X = torch.randn(16, 12, generator=torch.Generator().manual_seed(1))
Y = torch.arange(16) % 5


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 14), nn.Linear(14, 5))


def moved(handle: BALoRAHandle, size: float = 0.1) -> BALoRAHandle:
    """As after some training."""
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in handle.parameters():
            p += size * torch.randn(p.shape, generator=noise, dtype=p.dtype)
    return handle


def objective(handle: BALoRAHandle, x: Tensor = X, y: Tensor = Y) -> Tensor:
    logits = handle.model(x)
    return handle.objective(F.cross_entropy(logits, y), logits, y, lambda: handle.model(x))


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def probabilities(logits: Tensor, temperature: float = 1.0) -> np.ndarray:
    z = logits.double().numpy() / temperature
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# ---- the terms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_consistency_is_the_divergence_of_the_teacher(temperature: float) -> None:
    p, q = randn(7, 11), 2 * randn(7, 11, seed=1)
    each = [stats.entropy(a, b) for a, b in zip(
        probabilities(p, temperature), probabilities(q, temperature), strict=True
    )]
    want = temperature**2 * np.mean(each)
    assert consistency(p, q, temperature).item() == pytest.approx(want, rel=1e-5)
    assert consistency(q, p, temperature).item() != pytest.approx(want, rel=1e-2)


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    p, whole = randn(7, 11), randn(7, 11, seed=1).requires_grad_()
    consistency(p, whole).backward()
    parts = whole.detach().clone().requires_grad_()
    monkeypatch.setattr(regularisers, "ROWS", 3)
    value = consistency(p, parts)
    value.backward()
    assert value.item() == pytest.approx(consistency(p, whole).item(), rel=1e-6)
    torch.testing.assert_close(parts.grad, whole.grad)


def test_normalised_distance_by_hand() -> None:
    p, q = randn(6, 4).numpy(), randn(6, 4, seed=1).numpy()
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (p, q)]
    found = normalised_distance(torch.from_numpy(p), torch.from_numpy(q))
    assert found.item() == pytest.approx(np.mean((unit[0] - unit[1]) ** 2), rel=1e-5)


def test_covariance_against_numpy() -> None:
    z = randn(9, 4)
    c = np.cov(z.double().numpy(), rowvar=False)
    want = (np.sum(c**2) - np.sum(np.diag(c) ** 2)) / 4
    assert covariance(z).item() == pytest.approx(want, rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert covariance(z).item() == pytest.approx(want, rel=1e-6)


def test_entropy_against_scipy() -> None:
    z = 3 * randn(8, 30)
    whole = -np.mean(stats.entropy(probabilities(z), axis=1))
    assert negative_entropy(z).item() == pytest.approx(whole, rel=1e-5)
    leading = np.sort(probabilities(z), axis=1)[:, -5:]  # SciPy renormalises
    assert negative_entropy(z, 5).item() == pytest.approx(
        -np.mean(stats.entropy(leading, axis=1)), rel=1e-5
    )
    assert negative_entropy(z, 99).item() == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("frobenius", [True, False])
@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (9, 9)])
def test_spectrum_against_torchs_singular_values(shape: tuple[int, int], frobenius: bool) -> None:
    ours = randn(*shape, dtype=torch.float64).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    s = torch.linalg.svdvals(theirs)
    want = -s[:4].sum() / (theirs.norm() if frobenius else s.sum())
    found = spectrum(ours, 4, frobenius=frobenius)
    (3 * found).backward()
    (3 * want).backward()
    assert found.item() == pytest.approx(want.item(), rel=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-10)


def test_spectrum_in_columns_and_other_types(monkeypatch: pytest.MonkeyPatch) -> None:
    z = randn(6, 50).bfloat16().requires_grad_()
    whole = spectrum(z, 3)
    monkeypatch.setattr(regularisers, "COLUMNS", 7)
    parts = spectrum(z, 3)
    assert parts.item() == pytest.approx(whole.item(), rel=1e-6)
    parts.backward()
    assert z.grad is not None and z.grad.dtype == torch.bfloat16
    s = np.linalg.svd(z.detach().double().numpy())[1]
    assert parts.item() == pytest.approx(-s[:3].sum() / s.sum(), rel=1e-6)


def test_spectrum_where_singular_values_are_equal_zero_or_few() -> None:
    equal = torch.eye(5, 8).requires_grad_()
    spectrum(equal, 2).backward()
    assert torch.isfinite(equal.grad).all()
    low = (randn(6, 1) @ randn(1, 8, seed=1)).requires_grad_()
    value = spectrum(low, 2)
    value.backward()
    # One value: the share is 1 whatever is done within this rank.
    assert value.item() == pytest.approx(-1.0) and torch.isfinite(low.grad).all()
    nothing = torch.zeros(3, 4).requires_grad_()
    value = spectrum(nothing, 2, frobenius=True)
    value.backward()
    assert value.item() == 0.0 and not nothing.grad.any()
    z = randn(3, 8)
    assert spectrum(z, 99).item() == pytest.approx(-1.0)  # k is clipped
    assert spectrum(100 * z, 2).item() == pytest.approx(spectrum(z, 2).item(), rel=1e-6)


def test_rows_predict_the_next_token() -> None:
    logits, labels = randn(2, 5, 3), torch.tensor([[-100, -100, 1, 2, -100], [0, -100, 2, 1, 0]])
    rows, wanted = supervised_rows(logits, labels)
    at = [(b, t) for b in range(2) for t in range(1, 5) if labels[b, t] != -100]
    assert torch.equal(rows, torch.stack([logits[b, t - 1] for b, t in at]))
    assert wanted.tolist() == [labels[b, t] for b, t in at]
    legacy, _ = supervised_rows(logits, labels, legacy_mask=True)
    assert torch.equal(
        legacy, torch.stack([logits[b, t] for b in range(2) for t in range(5)
                             if labels[b, t] != -100])
    )


# ---- weights over the run ------------------------------------------------------------------------


def weights(t: float, **method: Any) -> tuple[float, float, float]:
    handle = BALoRA(rank=2, l1=1.0, l2=2.0, l3=4.0, **method).attach(net())
    handle.at(t)
    return handle.weights()


def test_the_papers_schedules() -> None:
    assert weights(0.0) == pytest.approx((1.0, 0.0, 0.0))
    assert weights(0.199)[1:] == (0.0, 0.0)
    assert weights(0.225)[1:] == pytest.approx((1.0, 2.0))
    assert weights(0.5) == pytest.approx((0.55, 2.0, 4.0))
    assert weights(1.0) == pytest.approx((0.1, 2.0, 4.0))
    for constant in ({"kind": "understanding"}, {"variant": "2024"}):
        assert weights(0.1, **constant) == (1.0, 2.0, 4.0)


def test_other_schedules() -> None:
    assert weights(0.05, focus_schedule="linear", hold=0.1)[1:] == pytest.approx((1.0, 2.0))
    assert weights(0.05, focus_schedule="quadratic", hold=0.1)[1:] == pytest.approx((0.5, 1.0))
    assert weights(0.5, focus_schedule="quadratic", hold=0.1)[1:] == (2.0, 4.0)
    assert weights(0.3, focus_schedule="two-phase", hold=0.3, ramp=0.0)[1:] == (2.0, 4.0)
    assert weights(0.0, l1_schedule="constant", focus_schedule="constant") == (1.0, 2.0, 4.0)
    assert weights(1.0, kind="understanding", l1_schedule="cosine", lowest=0.5)[0] == 0.5


def test_constant_weights_need_no_length_of_the_run() -> None:
    handle = BALoRA(rank=2, kind="understanding").attach(net())
    assert torch.isfinite(objective(handle))
    with pytest.raises(ConfigError, match="length of the run"):
        objective(BALoRA(rank=2).attach(net()))


def test_an_adaptive_weight_follows_the_teachers_entropy() -> None:
    handle = moved(BALoRA(
        rank=2, l1=3.0, l2=0, l3=0, l1_schedule="adaptive", focus_schedule="constant",
    ).attach(net()))
    entropy = np.mean(stats.entropy(probabilities(net()(X).detach(), 2.0), axis=1))
    weight = 3.0 * (0.1 + 0.9 * (1 - entropy / math.log(5)))
    task = F.cross_entropy(handle.model(X), Y).detach()
    added = objective(handle).detach() - task
    want = weight * consistency(net()(X), handle.model(X)).detach()
    assert added.item() == pytest.approx(want.item(), rel=1e-4)


# ---- the objective -------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["2026", "2024"])
@pytest.mark.parametrize("kind", ["generation", "understanding"])
def test_the_objective_is_the_sum(variant: Any, kind: Any) -> None:
    handle = moved(BALoRA(
        rank=2, l1=0.3, l2=0.2, l3=0.1, kind=kind, variant=variant, top=3, leading=2,
        l1_schedule="constant", focus_schedule="constant",
    ).attach(net()))
    student, teacher = handle.model(X).detach(), net()(X).detach()
    s = np.linalg.svd(student.double().numpy())[1]
    new, language = variant == "2026", kind == "generation"
    if not new and not language:
        first = normalised_distance(teacher, student)
    else:
        first = consistency(teacher, student, 2.0 if new else 1.0)
    second = negative_entropy(student, 3 if new else None) if language else covariance(student)
    third = -s[:2].sum() / (np.linalg.norm(student) if new and language else s.sum())
    want = F.cross_entropy(student, Y) + 0.3 * first + 0.2 * second + 0.1 * third
    assert objective(handle).item() == pytest.approx(want.item(), rel=1e-5)
    assert handle.terms["rows"] == 16
    assert handle.terms["spectrum"].item() == pytest.approx(third, rel=1e-5)


def test_its_gradient_by_finite_differences() -> None:
    handle = moved(BALoRA(
        rank=2, l1=0.7, l2=0.5, l3=0.6, leading=2, top=3, l1_schedule="constant",
        focus_schedule="constant",
    ).attach(net().double()))
    x, parameters = X.double(), handle.parameters()
    grads = torch.autograd.grad(objective(handle, x), parameters)
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum(float((g * d).sum()) for g, d in zip(grads, direction, strict=True))
    ends = []
    for step in (1e-3, -2e-3):  # the terms are fp32
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += step * d
        ends.append(objective(handle, x).item())
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=5e-3)


def test_only_the_factors_get_gradients() -> None:
    handle = moved(BALoRA(rank=2, kind="understanding").attach(net()))
    objective(handle).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in handle.parameters())
    assert {n.rpartition(".")[2] for n in handle.named_parameters()} == {"A", "B"}
    assert all(p.grad is None for p in handle.model.parameters())


def test_terms_of_no_weight_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> Tensor:
        raise AssertionError("computed")

    for name in ("spectrum", "negative_entropy"):
        monkeypatch.setattr(room, name, never)
    handle = BALoRA(rank=2).attach(net())
    handle.at(0.1)  # of two phases the first
    objective(handle)
    assert set(handle.terms) == {"consistency", "weight_consistency", "rows"}
    none = BALoRA(rank=2, l1=0, l2=0, l3=0).attach(net())
    loss = torch.tensor(1.0)
    assert none.objective(loss) is loss
    handle = BALoRA(rank=2, l1=0, l2=0, l3=0.1, kind="understanding").attach(net())
    monkeypatch.setattr(room, "spectrum", spectrum)
    handle.objective(loss, handle.model(X), Y)  # without l1 no teacher is asked


# ---- start and teacher ---------------------------------------------------------------------------


def test_the_start_is_that_of_pissa_in_peft() -> None:
    from peft import LoraConfig, get_peft_model

    ours, theirs = byte_lm(32, 48, 1, 2), byte_lm(32, 48, 1, 2)
    handle = BALoRA(rank=4, alpha=8.0).attach(ours)
    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights="pissa", target_modules="all-linear")
    peft = get_peft_model(theirs, config)
    for name, layer in ((n, m) for n, m in peft.named_modules() if hasattr(m, "lora_A")):
        f = handle.factors[name.removeprefix("base_model.model.")]
        b, a = (getattr(layer, k)["default"].weight for k in ("lora_B", "lora_A"))
        torch.testing.assert_close(f.B @ f.A, b @ a, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(f.B.abs(), b.abs(), rtol=1e-3, atol=1e-4)
        assert f.B.dtype == torch.float32


def test_lora_start_is_zero_and_drawn_by_the_seed() -> None:
    one, two, other = (BALoRA(rank=2, start="lora").attach(net(), seed=s) for s in (0, 0, 1))
    a = [h.factors["0"].A for h in (one, two, other)]
    assert torch.equal(a[0], a[1]) and not torch.equal(a[0], a[2])
    assert a[0].abs().max() <= 1 / math.sqrt(12) and not one.factors["0"].B.any()


def test_the_teacher_is_the_pretrained_model() -> None:
    """At step 0 nothing divides them; with the residual, peft's adapter off, a lot does."""
    ids = torch.arange(60).reshape(2, 30)
    model, base = byte_lm(32, 48, 2, 2), byte_lm(32, 48, 2, 2)
    handle = BALoRA(rank=8, l2=0, l3=0, l1=1.0, l1_schedule="constant",
                    focus_schedule="constant").attach(model)

    def again() -> Tensor:
        return model(input_ids=ids).logits.flatten(0, 1)

    loss = handle.objective(torch.tensor(0.0), again(), None, again)
    assert abs(float(loss.detach())) < 1e-6
    with torch.no_grad():
        want = base(input_ids=ids).logits.flatten(0, 1)
        for name, f in handle.factors.items():
            base.get_submodule(name).weight -= f.B0 @ f.A0
        residual = base(input_ids=ids).logits.flatten(0, 1)
    moved(handle)
    with handle.off():
        assert torch.equal(again(), want)
    assert float(consistency(want, residual, 1.0)) > 1e-4  # of fresh weights, too


def test_the_teacher_drops_nothing_and_modes_come_back() -> None:
    model = nn.Sequential(nn.Linear(12, 9), nn.Dropout(0.5), nn.Linear(9, 5)).train()
    base = copy.deepcopy(model).eval()
    handle = BALoRA(rank=2, l1=1.0, l2=0, l3=0, kind="understanding").attach(model)
    model[1].eval()
    model[1].train()
    student = model(X)
    value = handle.objective(torch.tensor(0.0), student, Y, lambda: model(X))
    assert value.item() == pytest.approx(consistency(base(X), student).item(), rel=1e-5)
    assert model[1].training and model.training


def test_a_fresh_head_has_a_teacher_too() -> None:
    """The head is put back for the teacher between forward and backward pass."""
    model = net()
    handle = BALoRA(rank=2, kind="understanding", targets=("0", "2")).attach(model, head=["3"])
    optimizer = handle.optimizer(lr=1e-2)
    for _ in range(3):
        objective(handle).backward()
        optimizer.step()
        optimizer.zero_grad()
    head = model[3].weight.detach().clone()
    logits = model(X)
    with handle.off():
        assert torch.equal(model(X), net()(X))
    assert torch.equal(model[3].weight, head) and torch.equal(model(X), logits)


def test_exported_it_is_plain_lora(tmp_path: Any) -> None:
    ids = torch.arange(40).reshape(2, 20)
    model = byte_lm(32, 48, 2, 2).eval()
    handle = moved(BALoRA(rank=4).attach(model), 0.02)
    attached = model(input_ids=ids).logits.detach()
    peft = to_peft(byte_lm(32, 48, 2, 2).eval(), handle.edit(), tmp_path)
    torch.testing.assert_close(peft(input_ids=ids).logits, attached, rtol=1e-4, atol=1e-5)
    handle.detach(merge=True)
    torch.testing.assert_close(model(input_ids=ids).logits, attached, rtol=1e-4, atol=1e-5)


# ---- a stored teacher ----------------------------------------------------------------------------


def test_a_stored_teacher_bounds_the_divergence(tmp_path: Any) -> None:
    p, q = 3 * randn(9, 20), 3 * randn(9, 20, seed=1)
    whole = consistency(p, q, 2.0).item()
    assert StoredTeacher.of(p, 20).divergence(q).item() == pytest.approx(whole, rel=1e-5)
    few = StoredTeacher.of(p, 4)
    # By hand: four classes, and one event for the sixteen others.
    want = []
    for a, b in zip(probabilities(p, 2.0), probabilities(q, 2.0), strict=True):
        top = np.argsort(a)[-4:]
        want.append(stats.entropy([*a[top], 1 - a[top].sum()], [*b[top], 1 - b[top].sum()]))
    assert few.divergence(q).item() == pytest.approx(4 * np.mean(want), rel=1e-4)
    assert few.divergence(q).item() < whole
    path = few.save(tmp_path / "teacher.safetensors")
    again = StoredTeacher.load(path)
    rows = torch.tensor([4, 0])
    assert again[rows].divergence(q[rows]).item() == few[rows].divergence(q[rows]).item()
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="teacher"):
        StoredTeacher.load(path)
    with pytest.raises(DataError, match="other rows"):
        few.divergence(q[:3])
    with pytest.raises(ConfigError, match="top"):
        StoredTeacher.of(p, 0)
    with pytest.raises(DataError, match="NaN"):
        StoredTeacher.of(p * torch.nan)


def test_the_objective_takes_a_stored_teacher() -> None:
    method = {"rank": 2, "l1": 1.0, "l2": 0, "l3": 0, "kind": "understanding"}
    handle = moved(BALoRA(**method).attach(net()))
    logits = handle.model(X)
    stored = StoredTeacher.of(net()(X), 5)
    found = handle.objective(torch.tensor(0.0), logits, Y, lambda: stored)
    assert found.item() == pytest.approx(consistency(net()(X), logits).item(), rel=1e-5)
    warm = StoredTeacher.of(net()(X), 5, temperature=1.0)
    with pytest.raises(ConfigError, match="temperature"):
        handle.objective(torch.tensor(0.0), logits, Y, lambda: warm)
    old = BALoRA(**method, variant="2024").attach(net())
    with pytest.raises(ConfigError, match="2024"):
        old.objective(torch.tensor(0.0), logits, Y, lambda: warm)


# ---- input that is wrong -------------------------------------------------------------------------


def test_a_single_row_leaves_out_what_it_has_not() -> None:
    handle = BALoRA(rank=2, kind="understanding").attach(net())
    with pytest.warns(PassbandWarning, match="one row"):
        objective(handle, X[:1], Y[:1])
    assert {"diversity", "spectrum"}.isdisjoint(handle.terms)
    handle = BALoRA(rank=2, focus_schedule="constant").attach(net())
    handle.at(0.0)
    with pytest.warns(PassbandWarning, match="one row"):
        objective(handle, X[:1], Y[:1])
    assert "diversity" in handle.terms and "spectrum" not in handle.terms


def test_where_nothing_is_supervised_the_loss_is_zero() -> None:
    handle = BALoRA(rank=2, kind="understanding").attach(net())
    loss = objective(handle, X[:0], Y[:0])  # cross-entropy alone would be NaN
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in handle.parameters())


def test_wrong_input_is_named() -> None:
    with pytest.raises(ConfigError, match="dropout"):
        BALoRA(dropout=0.1).attach(net())
    BALoRA(rank=2, dropout=0.1, start="lora").attach(net())
    with pytest.raises(ConfigError, match="l2"):
        BALoRA(l2=-1.0).attach(net())
    with pytest.raises(ConfigError, match="temperature"):
        BALoRA(temperature=0.0).attach(net())
    handle = BALoRA(rank=2, kind="understanding").attach(net())
    logits, loss = handle.model(X), torch.tensor(0.0)
    with pytest.raises(DataError, match="no logits"):
        handle.objective(loss)
    with pytest.raises(DataError, match="teacher"):
        handle.objective(loss, logits, Y)
    with pytest.raises(DataError, match="resized"):
        handle.objective(loss, logits, Y, lambda: logits[:, :4])
    packed = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(DataError, match="quantised"):
        BALoRA(rank=2, targets=("0",)).attach(packed)


def test_logits_that_are_not_finite_name_layer_and_step() -> None:
    handle = BALoRA(rank=2, kind="understanding").attach(net())
    handle.count = 7
    with torch.no_grad():
        handle.factors["2"].B.fill_(torch.inf)
    with pytest.raises(DataError, match="step 7, first in 2"):
        objective(handle)


# ---- the system ----------------------------------------------------------------------------------


class Log(NullMonitor):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log(self, step: int, seconds: float, **values: float) -> None:
        self.rows.append(values)


def test_terms_are_logged_with_the_rows_of_a_micro_batch() -> None:
    from passband.tuning.jobs.digits import biased

    system, log = create("ba-lora", preset="smoke", accumulate=2), Log()
    system.fit(biased(0, "smoke").for_fit(), monitor=log)
    names = {"task_loss", "consistency", "diversity", "spectrum", "weight_diversity", "rows"}
    assert names <= set(log.rows[-1])
    assert log.rows[0]["rows"] == 4  # 8 in two parts
    assert all(math.isfinite(v) for row in log.rows for v in row.values())
    assert all(row["loss"] == pytest.approx(
        row["task_loss"] + 0.025 * row["consistency"] + 0.005 * row["diversity"]
        + 0.005 * row["spectrum"], abs=1e-4) for row in log.rows)


def test_the_sheets_sizes() -> None:
    system = create("ba-lora")
    assert system.count(byte_lm()) == 78_080
    method = system.method(("0",))
    assert (method.l1, method.l2, method.l3) == (0.025, 0.005, 0.005)
    assert (method.leading, method.top, method.temperature) == (10, 20, 2.0)
    old = create("ba-lora", preset="code-2024").method(("0",))
    assert (old.variant, old.l1, old.l2, old.l3, old.leading) == ("2024", 1e-4, 3e-4, 1e-4, 3)
