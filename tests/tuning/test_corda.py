"""CorDA against dense sums by hand, the paper's inverse, peft's initialisation and LAPACK."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from passband.errors import ConfigError, DataError, PassbandWarning
from passband.parts.edits import Edit, composed
from passband.parts.targets import blocks, find_targets, weight_of
from passband.tuning.corda.analysis import compare, decomposed, perplexity, without
from passband.tuning.corda.calibration import collect, first_samples, stream
from passband.tuning.corda.covariance import Covariance
from passband.tuning.corda.model import CorDA
from passband.tuning.corda.orientation import damped, directions, oriented_factors, smallest
from passband.tuning.models import byte_lm

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*inputs of layers were seen:passband.errors.PassbandWarning"
)
MODES = ("knowledge", "instruction")


def llama(seed: int = 0) -> nn.Module:
    return byte_lm(16, 24, 2, 2, seed=seed).eval()


def ids(batch: int = 3, length: int = 20, seed: int = 0) -> Tensor:
    return torch.randint(1, 256, (batch, length), generator=torch.Generator().manual_seed(seed))


def padded(left: bool = False) -> dict[str, Tensor]:
    mask = torch.ones(3, 20, dtype=torch.long)
    mask[0, 12:], mask[2, 7:] = 0, 0
    mask = mask.flip(1) if left else mask
    return {"input_ids": ids(), "attention_mask": mask}


def batches_of(seed: int = 5, count: int = 4) -> list[dict[str, Tensor]]:
    return [{"input_ids": ids(2, 24, seed + i)} for i in range(count)]


@torch.no_grad()
def inputs_of(model: nn.Module, names: list[str], batch: dict) -> dict[str, Tensor]:
    """What each layer is given in a plain run of the whole model."""
    seen, modules, hooks = {}, dict(model.named_modules()), []
    for name in names:
        def see(_, args, kwargs, name=name):
            seen[name] = args[0] if args else kwargs["input"]

        hooks.append(modules[name].register_forward_pre_hook(see, with_kwargs=True))
    model(**batch)
    for hook in hooks:
        hook.remove()
    return seen


def by_hand(samples: list[np.ndarray], scaled: bool = True) -> np.ndarray:
    """(1/N) sum X^T X / max(X)^2 in float64, sample by sample."""
    total = 0.0
    for x in samples:
        x = x.astype(np.float64)
        x = x / abs(x.max()) if scaled and x.max() != 0 else x
        total = total + sum(np.outer(row, row) for row in x)
    return total / len(samples)


def by_inverse(weight: Tensor, context: Tensor, rank: int, mode: str) -> np.ndarray:
    w, c = weight.detach().double().numpy(), context.double().numpy()
    u, s, vh = np.linalg.svd(w @ c, full_matrices=False)
    at = slice(0, rank) if mode == "instruction" else slice(len(s) - rank, len(s))
    return (u[:, at] * s[at]) @ (vh[at] @ np.linalg.inv(c))


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def product(factors) -> np.ndarray:
    return factors.scale * (factors.B.detach().double() @ factors.A.detach().double()).numpy()


# ---- second moments --------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [True, False])
def test_a_sum_is_that_of_the_tokens_by_hand(scaled):
    x = torch.randn(4, 9, 5, generator=torch.Generator().manual_seed(0)) - 0.5
    x[1] = -x[1].abs() - 0.1  # no entry is positive: the largest is the one nearest to zero
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[0, 4:], mask[3] = False, False  # the last sample is padding only
    x[0, 4:], x[3] = torch.nan, torch.inf  # never looked at
    one = Covariance("layer", scaled)
    one.add(x[:1], mask[:1])
    one.add(x[1:], mask[1:])
    samples = [x[0, :4].numpy(), x[1].numpy(), x[2].numpy()]
    assert relative(one.matrix().numpy(), by_hand(samples, scaled)) < 1e-6
    assert (one.samples, one.tokens) == (3, 22)
    np.testing.assert_allclose(
        one.mean_absolute().numpy(), np.abs(np.concatenate(samples)).mean(0), rtol=1e-5
    )


def test_a_sample_of_zeros_is_not_divided_by_zero():
    one = Covariance("layer")
    one.add(torch.tensor([[[0.0, 0.0]], [[1.0, 2.0]], [[1.0, -2.0]]]))
    torch.testing.assert_close(
        one.matrix(), torch.from_numpy(by_hand(
            [np.zeros((1, 2)), np.array([[1.0, 2.0]]), np.array([[1.0, -2.0]])]
        )).float()
    )


@pytest.mark.parametrize("left", [False, True])
def test_every_layer_of_a_llama_with_padding(left):
    model, batch = llama(), padded(left)
    layers = find_targets(model, "all-linear")
    found = collect(model, layers, [batch, {"input_ids": ids(2, 11, 1)}])
    seen = [inputs_of(model, list(layers), b) for b in (batch, {"input_ids": ids(2, 11, 1)})]
    for name in layers:
        samples = [x[m].numpy() for x, m in zip(
            seen[0][name], batch["attention_mask"].bool(), strict=True
        )]
        samples += [x.numpy() for x in seen[1][name]]
        assert relative(found[name].matrix().numpy(), by_hand(samples)) < 1e-5, name
    block = "model.layers.1."
    attention = [found[f"{block}self_attn.{n}_proj"] for n in "qkv"]
    assert attention[0] is attention[1] is attention[2]
    assert found[f"{block}mlp.gate_proj"] is found[f"{block}mlp.up_proj"]
    assert len({id(c) for c in found.values()}) == 2 * 4


def bert() -> tuple[nn.Module, dict]:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=256, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32,
    )
    return BertModel(config).eval(), padded()


def vit() -> tuple[nn.Module, dict]:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        image_size=8, patch_size=2, num_channels=1, num_labels=3,
    )
    return ViTForImageClassification(config).eval(), {"pixel_values": torch.randn(4, 1, 8, 8)}


def gpt2() -> tuple[nn.Module, dict]:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=256, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config).eval(), padded()


def albert() -> tuple[nn.Module, dict]:
    """One block that is called three times: not to be run block by block."""
    from transformers import AlbertConfig, AlbertModel

    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=256, embedding_size=8, hidden_size=16, num_hidden_layers=3,
        num_attention_heads=2, intermediate_size=24, max_position_embeddings=32,
    )
    return AlbertModel(config).eval(), {"input_ids": ids()}


def plain() -> tuple[nn.Module, dict]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)), {"input": torch.randn(9, 6)}


class Own(nn.Module):
    """Blocks whose company differs: each is told its number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Numbered() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(hidden_states=x, number=torch.tensor(float(number)))
        return x


class Numbered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, hidden_states: Tensor, number: Tensor) -> Tensor:
        return hidden_states + torch.tanh(self.inner(hidden_states + number))


@pytest.mark.parametrize("make", [bert, vit, gpt2, albert, plain, lambda: (
    Own(), {"x": torch.randn(2, 7, 6)}
)])
def test_streaming_sees_what_a_plain_run_sees(make):
    model, batch = make()
    training, layers = model.training, find_targets(model, "all-linear")
    found = dict(stream(model, layers, [batch, batch]))
    assert set(found) == set(layers)
    if model.__class__.__name__ == "AlbertModel":
        # Called three times: the sum over its calls.
        seen, hooks = {n: [] for n in layers}, []
        for name, layer in layers.items():
            hooks.append(layer.register_forward_pre_hook(
                lambda _, args, name=name: seen[name].append(args[0])
            ))
        with torch.no_grad():
            model(**batch)
        [hook.remove() for hook in hooks]
        for name in layers:
            samples = [row.numpy().reshape(-1, row.shape[-1]) for x in seen[name] for row in x]
            assert relative(found[name].matrix().numpy(), by_hand(samples)) < 1e-5, name
        return
    mask = batch.get("attention_mask", None)
    for name, x in inputs_of(model, list(layers), batch).items():
        rows = x[:, None] if x.ndim == 2 else x
        keep = mask.bool() if mask is not None and mask.shape == rows.shape[:2] else None
        samples = [
            row.numpy() if keep is None else row[keep[i]].numpy() for i, row in enumerate(rows)
        ]
        assert relative(found[name].matrix().numpy(), by_hand(samples)) < 1e-5, name
    assert model.training is training
    assert not any(layer._forward_pre_hooks for layer in layers.values())


@pytest.mark.parametrize(
    ("make", "one_by_one"),
    [(lambda: (llama(), padded()), True), (bert, True), (vit, True), (gpt2, True),
     (albert, False), (lambda: (Own(), {"x": torch.randn(2, 7, 6)}), False)],
)
def test_which_models_are_run_block_by_block(make, one_by_one):
    model, batch = make()
    last, calls = blocks(model)[-1], []
    last.register_forward_hook(lambda *_: calls.append(1))
    layers = {n: m for n, m in find_targets(model, "all-linear").items() if "pooler" not in n}
    streamed = stream(model, layers, [batch, batch])
    next(streamed)
    # The probe alone has reached the last block when the first layer's matrix is there.
    assert (len(calls) == 1) is one_by_one


class Experts(nn.Module):
    """The first of three experts gets every token, the second those with a positive sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        chosen = flat[flat.sum(1) > 0]
        return self.experts[0](flat).sum() + self.experts[1](chosen).sum()


def test_experts():
    model, x = Experts(), torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(0))
    layers = find_targets(model, "all-linear")
    mask = torch.ones(3, 8, dtype=torch.long)
    found = collect(model, layers, [{"x": x}])
    chosen = x.flatten(0, 1)[x.flatten(0, 1).sum(1) > 0]
    assert relative(found["experts.1"].matrix().numpy(), by_hand([chosen.numpy()])) < 1e-6
    assert found["experts.2"].total is None
    with pytest.warns(PassbandWarning, match=r"experts.2 was never called"):
        handle = CorDA(rank=2, mode="knowledge").attach(model, {"knowledge": [{"x": x}]})
    wanted = by_inverse(model.experts[2].weight, torch.eye(6), 2, "knowledge")
    assert relative(product(handle.factors["experts.2"]), wanted) < 1e-5
    handle.detach()
    with pytest.raises(DataError, match=r"experts.2 was never called"):
        CorDA(rank=2, on_missing="error").attach(model, {"knowledge": [{"x": x}]})
    mask[0, 4:] = 0
    torch_forward = Experts.forward
    try:
        Experts.forward = lambda self, x, attention_mask: torch_forward(self, x)
        with pytest.warns(PassbandWarning, match="padding can't be told"):
            found = collect(model, layers, [{"x": x, "attention_mask": mask}])
    finally:
        Experts.forward = torch_forward
    samples = [row[m.bool()].numpy() for row, m in zip(x, mask, strict=True)]
    assert relative(found["experts.0"].matrix().numpy(), by_hand(samples)) < 1e-6


def test_a_weight_shared_by_two_layers_sees_the_inputs_of_both():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    x = torch.randn(9, 6)
    layers = find_targets(model, "all-linear")
    assert list(layers) == ["0"]
    found = collect(model, layers, [{"input": x}])
    both = [row[None].detach().numpy() for z in (x, model[:2](x)) for row in z]
    assert relative(found["0"].matrix().numpy(), by_hand(both)) < 1e-5
    before = model(x)
    handle = CorDA(rank=3, mode="instruction").attach(model, {"task": [{"input": x}]})
    assert torch.equal(model(x), before)
    assert list(handle.changes()) == ["0.weight"]


def test_covariances_from_the_cache_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("PASSBAND_CACHE", str(tmp_path))
    model = llama()
    layers = find_targets(model, "all-linear")
    fresh = collect(model, layers, batches_of())
    collect(model, layers, batches_of(), cache=True)
    kept = collect(model, layers, batches_of(), cache=True)
    for name, covariance in fresh.items():
        torch.testing.assert_close(kept[name].matrix(), covariance.matrix(), rtol=0, atol=0)
        assert kept[name].tokens == covariance.tokens
        torch.testing.assert_close(kept[name].mean_absolute(), covariance.mean_absolute())
    assert len({id(c) for c in kept.values()}) == len({id(c) for c in fresh.values()})
    (file,) = tmp_path.rglob("*.safetensors")
    n, ffn = 16, 24
    triangles = 2 * (3 * n * (n + 1) // 2 + ffn * (ffn + 1) // 2)
    assert file.stat().st_size < 4 * triangles + 6000
    collect(model, layers, batches_of(6), cache=True)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_samples_are_counted_one_by_one():
    cut = first_samples([{"input_ids": ids(3), "n": 1}, {"input_ids": ids(3)}], 4)
    assert [len(b["input_ids"]) for b in cut] == [3, 1]
    assert len(first_samples([{"input_ids": ids(3)}], None)) == 1


# ---- the decomposition -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 12), (20, 12), (12, 20)])
@pytest.mark.parametrize("mode", MODES)
def test_the_adapter_without_the_inverse_is_that_with_it(shape, mode):
    rng = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=rng)
    x = torch.randn(300, shape[1], generator=rng) * torch.logspace(0, -2, shape[1])
    context = damped(x.T @ x / 300)
    b, a = oriented_factors(weight, context, 3, mode)
    wanted = by_inverse(weight, context, 3, mode)
    assert relative((b.double() @ a.double()).numpy(), wanted) < 1e-5
    # Sizes as in the paper: B^T B = diag(sigma), A C (A C)^T = diag(sigma).
    ac = a.double() @ context
    torch.testing.assert_close(b.double().T @ b.double(), ac @ ac.T, rtol=1e-4, atol=1e-6)
    half_b, half_a = oriented_factors(weight, context, 3, mode, scale=4.0)
    assert relative((4.0 * half_b.double() @ half_a.double()).numpy(), wanted) < 1e-5


@pytest.mark.parametrize("shape", [(14, 14), (22, 14), (14, 22)])
@pytest.mark.parametrize("last", [1e-3, 1e-6, 1e-9])
def test_the_smallest_directions_against_fifty_digits(shape, last):
    """U of a known spectrum that falls to `last`: a squared one in float64 ends at 1e-8."""
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(2)
    p = min(shape)
    u, v = (np.linalg.qr(rng.normal(size=(n, p)))[0] for n in shape)
    matrix = (u * np.geomspace(1, last, p)) @ v.T
    with mpmath.workdps(50):
        small = matrix if shape[0] <= shape[1] else matrix.T
        gram = mpmath.matrix(small.tolist()) * mpmath.matrix(small.tolist()).T
        values, vectors = mpmath.eigsy(gram)  # rising
        exact = [mpmath.sqrt(values[i]) for i in range(3)]
        columns = vectors[:, 0:3]
        if shape[0] > shape[1]:
            columns = mpmath.matrix(matrix.tolist()) * columns * mpmath.diag(
                [1 / s for s in exact]
            )
        columns = np.array(columns.tolist(), dtype=float)
    found, s = smallest(torch.from_numpy(matrix), 3)
    np.testing.assert_allclose(s.flip(0).numpy(), [float(e) for e in exact], rtol=1e-15 / last * 50)
    projector = found.numpy() @ found.numpy().T
    assert np.linalg.norm(projector - columns @ columns.T) < 1e-14 / last
    np.testing.assert_allclose(found.numpy().T @ found.numpy(), np.eye(3), atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_rank_deficient_weights_and_contexts(mode):
    rng = torch.Generator().manual_seed(3)
    weight = torch.randn(10, 4, generator=rng) @ torch.randn(4, 12, generator=rng)
    context = torch.zeros(12, 12)
    context[:3, :3] = torch.eye(3)  # undamped
    for c in (None, damped(context), context):
        b, a = oriented_factors(weight, c, 3, mode)
        assert bool(torch.isfinite(b).all() and torch.isfinite(a).all())
        assert max(b.abs().max(), a.abs().max()) < 100
    b, a = oriented_factors(torch.zeros(5, 6), None, 2, mode)
    assert bool((b @ a == 0).all() and torch.isfinite(b).all() and torch.isfinite(a).all())


def test_full_rank_gives_the_weight_back():
    weight = torch.randn(9, 7, generator=torch.Generator().manual_seed(4))
    for mode in MODES:
        b, a = oriented_factors(weight, damped(torch.eye(7)), 7, mode)
        torch.testing.assert_close(b @ a, weight, rtol=1e-5, atol=1e-5)


# ---- on a model --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [lambda: (llama(), padded()), gpt2, bert, vit])
def test_before_the_first_step_the_model_is_the_pretrained_one(make, mode):
    model, batch = make()
    before = model(**batch)[0]
    handle = CorDA(rank=4, alpha=8, mode=mode).attach(
        model, {"knowledge": [batch], "task": [batch]}
    )
    assert torch.equal(model(**batch)[0], before)
    layers = find_targets(model, "all-linear")
    for name, factors in handle.factors.items():
        context = damped(collect(model, {name: layers[name]}, [batch])[name].matrix())
        wanted = by_inverse(weight_of(layers[name])[0], context, 4, mode)
        assert relative(product(factors), wanted) < 1e-4, name


def test_balance():
    model, given = llama(), {"knowledge": batches_of()}
    made = {}
    for balance in ("none", "global", "exact"):
        handle = CorDA(rank=3, balance=balance).attach(model, given)
        made[balance] = {n: (f.B.detach(), f.A.detach()) for n, f in handle.factors.items()}
        handle.detach()
    ratios = set()
    for name, (b, a) in made["none"].items():
        for balance in ("global", "exact"):
            other_b, other_a = made[balance][name]
            torch.testing.assert_close(other_b @ other_a, b @ a, rtol=1e-4, atol=1e-7)
        ratios.add(round(float(made["global"][name][0].norm() / b.norm()), 4))
        b, a = made["exact"][name]
        torch.testing.assert_close(b.T @ b, a @ a.T, rtol=1e-4, atol=1e-7)
    assert len(ratios) == 1  # one number for the whole model
    sizes = [sum(float(pair[i].norm()) for pair in made["global"].values()) for i in (0, 1)]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [lambda: (llama(), None), gpt2])
def test_peft_begins_with_the_same_products(make, mode):
    pytest.importorskip("peft")
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    model = make()[0]
    batches = [{"input_ids": ids(1, 40, seed)} for seed in range(12)]
    names = list(find_targets(model, "all-linear"))
    theirs = copy.deepcopy(model)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=names, init_lora_weights="corda",
        fan_in_fan_out=model.__class__.__name__.startswith("GPT2"),
        corda_config=CordaConfig(corda_method="kpm" if mode == "knowledge" else "ipm"),
    )

    def run() -> None:
        with torch.no_grad():
            for batch in batches:
                theirs(**batch)

    preprocess_corda(theirs, config, run_model=run)
    theirs = get_peft_model(theirs, config)
    handle = CorDA(rank=4, alpha=8, mode=mode, balance="none").attach(
        model, {"knowledge": batches, "task": batches}
    )
    modules = dict(theirs.base_model.model.named_modules())
    for name in names:
        layer = modules[name]
        b, a = layer.lora_B["default"].weight, layer.lora_A["default"].weight
        wanted = 2.0 * (b.detach().double() @ a.detach().double()).numpy()
        ours = handle.factors[name]
        # Theirs is float32 throughout, with an inverse.
        assert relative(product(ours), wanted) < 5e-3, name
        assert float((ours.B.norm() / b.norm()).detach()) == pytest.approx(1, rel=1e-2), name
        assert float((ours.A.norm() / a.norm()).detach()) == pytest.approx(1, rel=1e-2), name


@pytest.mark.parametrize("mode", MODES)
def test_training_saving_and_the_way_back(tmp_path, mode):
    model, batch = llama(), {"input_ids": ids(), "labels": ids()}
    bits = {n: p.detach().clone() for n, p in model.named_parameters()}
    handle = CorDA(rank=4, mode=mode).attach(
        model, {"knowledge": batches_of(), "task": batches_of()}
    )
    optimizer, losses = handle.optimizer(lr=3e-2), []
    for _ in range(20):
        loss = handle.objective(model(**batch).loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(p, bits[n]) for n, p in model.named_parameters())
    trained = model(**batch).logits.detach()
    handle.edit().save(tmp_path / "adapter.safetensors")
    handle.detach()
    other = llama()
    edit = Edit.load(tmp_path / "adapter.safetensors")
    edit.apply(other)  # needs neither calibration nor residual weights
    torch.testing.assert_close(other(**batch).logits, trained, rtol=1e-4, atol=1e-5)
    b, a = edit.lora()["model.layers.0.self_attn.q_proj.weight"]
    assert b.shape == (16, 8)
    moved = dict(other.named_parameters())["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(
        b @ a, moved - bits["model.layers.0.self_attn.q_proj.weight"], rtol=1e-3, atol=1e-6
    )


def test_biases_are_frozen_unless_asked_for():
    model, batch = bert()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    given = {"knowledge": [batch]}
    frozen = CorDA(rank=2).attach(model, given)
    assert not any(n.endswith("bias") for n in frozen.named_parameters())
    frozen.detach()
    handle = CorDA(rank=2, train_bias=True).attach(model, given)
    names = {n for n in handle.named_parameters() if n.endswith(".bias")}
    assert names == {f"{n}.bias" for n in find_targets(model, "all-linear")}
    optimizer = handle.optimizer(lr=1e-2)
    model(**batch)[0].square().mean().backward()
    optimizer.step()
    after = model(**batch)[0].detach()
    with handle.off():
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert torch.equal(model(**batch)[0], after)
    edit = handle.edit()
    assert names <= set(edit.changes)
    with handle.off():
        inside = handle.edit()
    for name in names:
        assert torch.equal(inside.changes[name].delta(), edit.changes[name].delta())
    handle.detach()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    edit.apply(model)
    torch.testing.assert_close(model(**batch)[0], after, rtol=1e-4, atol=1e-5)


# ---- leaving components out --------------------------------------------------------------------


def test_dropping_components_against_numpy():
    model, given = llama(), batches_of()
    layers = find_targets(model, "all-linear")
    found = collect(model, layers, given)
    before = {n: weight_of(layer)[0].detach().clone() for n, layer in layers.items()}
    for kind in ("plain", "asvd", "co-svd"):
        edit = without(model, decomposed(layers, found, kind), 5)
        with composed(model, [edit]):
            for name, layer in layers.items():
                w = before[name].double().numpy()
                scale = {
                    "plain": np.eye(w.shape[1]),
                    "asvd": np.diag(found[name].mean_absolute().double().numpy() ** 0.5 + 1e-6),
                    "co-svd": damped(found[name].matrix()).numpy(),
                }[kind]
                u, s, vh = np.linalg.svd(w @ scale, full_matrices=False)
                kept = (u[:, :-5] * s[:-5]) @ vh[:-5] @ np.linalg.inv(scale)
                assert relative(weight_of(layer)[0].detach().double().numpy(), kept) < 1e-4
    assert all(torch.equal(weight_of(layers[n])[0], w) for n, w in before.items())


def test_what_is_dropped_costs_least_along_the_inputs():
    """CO-SVD in the output: || (W - W') C_d || is the least of all W' of that rank."""
    rng = torch.Generator().manual_seed(7)
    weight = torch.randn(12, 12, generator=rng)
    context = damped(torch.diag(torch.logspace(0, -2, 12)))
    errors = {}
    for name, c in (("co", context), ("plain", None)):
        u = directions(weight, c)[:, :6]
        rest = weight.double() - u @ (u.T @ weight.double())
        errors[name] = float(torch.linalg.norm(rest @ context))
    singular = torch.linalg.svdvals(weight.double() @ context)
    assert errors["co"] == pytest.approx(float(torch.linalg.vector_norm(singular[6:])), rel=1e-9)
    assert errors["co"] < 0.9 * errors["plain"]


def test_perplexity_and_the_table_of_kinds():
    model, batch = llama(), padded()
    with torch.no_grad():
        logp = model(**batch).logits.double().log_softmax(-1)
    terms = [
        float(-logp[i, t - 1, batch["input_ids"][i, t]])
        for i in range(3) for t in range(1, 20) if batch["attention_mask"][i, t]
    ]
    assert perplexity(model, [batch]) == pytest.approx(np.exp(np.mean(terms)), rel=1e-5)
    table = compare(model, batches_of(), [batch], [4, 16])
    assert set(table) == {"plain", "asvd", "co-svd"}
    zeroed = llama()
    with torch.no_grad():
        for name, layer in find_targets(zeroed, "all-linear").items():
            layer.weight[:] = 0 if min(layer.weight.shape) == 16 else layer.weight
            assert name
    assert table["plain"][16] == pytest.approx(perplexity(zeroed, [batch]), rel=1e-4)
    with pytest.raises(ConfigError, match="drop = 17"):
        compare(model, batches_of(), [batch], [17])


# ---- wrong input ---------------------------------------------------------------------------------


def test_too_few_tokens_are_warned_of_once():
    model = llama()
    with pytest.warns(PassbandWarning, match="8 inputs of layers were seen") as seen:
        CorDA(rank=2).attach(model, {"knowledge": [{"input_ids": ids(1, 8)}]})
    assert len(seen) == 1
    assert "8 tokens, 24 entries" in str(seen[0].message)
    assert "384 samples" in str(seen[0].message)  # 24 * 128 / 8


@pytest.mark.parametrize("calibration", [None, {}, {"task": batches_of()}, {"knowledge": []}])
def test_no_calibration(calibration):
    with pytest.raises(DataError, match="no calibration under 'knowledge'"):
        CorDA(rank=2).attach(llama(), calibration)


def test_activations_that_tell_nothing():
    model, x = plain()
    for wrong, message in (
        (torch.zeros(9, 6), "inputs of 0 are all zero"),
        (torch.ones(9, 6), "inputs of 0 are constant"),
        (torch.full((9, 6), torch.nan), "inputs of 0 have NaN"),
        (torch.full((9, 6), -torch.inf), "inputs of 0 have NaN or infinity"),
    ):
        with pytest.raises(DataError, match=message):
            CorDA(rank=2).attach(model, {"knowledge": [{"input": wrong}]})
    model[0].weight.data.zero_()
    model[0].bias.data.zero_()
    with pytest.raises(DataError, match="inputs of 2 are all zero"):
        CorDA(rank=2).attach(model, {"knowledge": [x]})


def test_other_wrong_input():
    model, x = plain()
    given = {"knowledge": [x]}
    with pytest.raises(ConfigError, match="rank = 6 for 2"):
        CorDA(rank=6).attach(model, given)
    with pytest.raises(ConfigError, match="rank = 0"):
        oriented_factors(torch.eye(3), None, 0, "knowledge")
    with pytest.raises(DataError, match="keyword arguments"):
        CorDA(rank=2).attach(model, {"knowledge": [torch.randn(2, 6)]})
    with pytest.raises(DataError, match="no covariance of 0"):
        CorDA(rank=2).attach(model, {"knowledge": {"1": Covariance("1")}})
    with pytest.raises(DataError, match="Conv2d"):
        images = nn.Sequential(nn.Conv2d(1, 4, 3))
        CorDA(rank=2, targets=("0",)).attach(
            images, {"knowledge": [{"input": torch.randn(2, 1, 8, 8)}]}
        )
    with pytest.raises(ConfigError, match="train_bias"):
        CorDA(rank=2, train_bias=True).attach(llama(), {"knowledge": batches_of()})
    model[0].weight.data[0, 0] = torch.nan
    with pytest.raises(DataError, match="weight of 0"):
        CorDA(rank=2).attach(model, given)


def test_a_given_covariance_serves_several_ranks():
    model = llama()
    layers = find_targets(model, "all-linear")
    found = collect(model, layers, batches_of())
    for rank in (2, 5):
        given = CorDA(rank=rank).attach(model, {"knowledge": found})
        first = {n: product(f) for n, f in given.factors.items()}
        given.detach()
        fresh = CorDA(rank=rank).attach(model, {"knowledge": batches_of()})
        assert all(relative(product(f), first[n]) < 1e-6 for n, f in fresh.factors.items())
        fresh.detach()
