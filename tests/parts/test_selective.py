"""Selected entries against dense torch optimisers whose gradients and updates are masked."""

import copy

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.utils.checkpoint import checkpoint

from passband.errors import CheckpointError, ConfigError, DataError, UnknownNameError
from passband.parts.edits import Sparse
from passband.parts.selective import Selected
from passband.parts.slots import gather_state


class Net(nn.Module):
    """Every kind of weight that the selection promises: [8, T] tokens -> [8, 5]."""

    def __init__(self, sparse=False):
        super().__init__()
        self.embed = nn.Embedding(11, 8, sparse=sparse)
        self.conv = nn.Conv2d(1, 4, (3, 8), padding=(1, 0))
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 5)

    def forward(self, tokens):
        x = self.conv(self.embed(tokens)[:, None]).squeeze(-1).transpose(1, 2)
        return self.out(torch.relu(self.norm(x)).mean(1))


def net(seed=0, **options):
    torch.manual_seed(seed)
    model = Net(**options)
    with torch.no_grad():
        model.norm.bias.normal_()
        model.norm.weight.normal_(1.0, 0.3)
    return model


def chosen(model, fraction=0.4, seed=1, only=None):
    g = torch.Generator().manual_seed(seed)
    found = {}
    for name, p in model.named_parameters():
        if only is None or name in only:
            k = max(1, int(fraction * p.numel()))
            found[name] = torch.randperm(p.numel(), generator=g)[:k]
    return found


def batch(step, part=0):
    g = torch.Generator().manual_seed(1000 * step + part)
    return torch.randint(11, (8, 6), generator=g), torch.randint(5, (8,), generator=g)


def loss_of(model, step, part=0):
    x, y = batch(step, part)
    return nn.functional.cross_entropy(model(x).float(), y)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a[name].element_size()]
        assert torch.equal(a[name].contiguous().view(bits), b[name].contiguous().view(bits)), name


class Dense:
    """AdamW over whole tensors; gradients and updates masked; clipped by the entries' norm."""

    def __init__(self, model, indices, **options):
        self.model = model
        self.mask = {}
        for name, p in model.named_parameters():
            mask = torch.zeros(p.numel(), dtype=torch.bool)
            mask[indices.get(name, torch.zeros(0, dtype=torch.long))] = True
            self.mask[name] = mask.view(p.shape)
        self.optimizer = torch.optim.AdamW(model.parameters(), foreach=False, **options)

    def step(self, clip=None):
        before = weights(self.model)
        entries = []
        for name, p in self.model.named_parameters():
            entry = nn.Parameter(torch.zeros(int(self.mask[name].sum())))
            if len(entry):
                entry.grad = p.grad[self.mask[name]]
                entries.append((p, self.mask[name], entry))
            p.grad = torch.zeros_like(p)
        if clip:
            nn.utils.clip_grad_norm_([entry for _, _, entry in entries], clip)
        for p, mask, entry in entries:
            p.grad[mask] = entry.grad
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(torch.where(self.mask[name], p, before[name]))


def schedule(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1, t / 5) * 0.97**t)


def test_trajectory_is_dense_masked_adamw_to_the_last_bit():
    options = {"lr": 0.02, "weight_decay": 0.1}
    ours, reference = net(), net()
    indices = chosen(ours)
    selected = Selected(ours, indices)
    optimizer = torch.optim.AdamW(selected.parameters(), foreach=False, **options)
    dense = Dense(reference, indices, **options)
    rates, dense_rates = schedule(optimizer), schedule(dense.optimizer)
    start = weights(ours)
    for step in range(60):
        for part in range(3):
            (loss_of(ours, step, part) / 3).backward()
            (loss_of(reference, step, part) / 3).backward()
            assert all(p.grad is None for p in ours.parameters())  # nothing dense stays
        nn.utils.clip_grad_norm_(selected.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        dense.step(clip=0.5)
        rates.step()
        dense_rates.step()
        assert_same_bits(ours.state_dict(), reference.state_dict())
    changed = {name: (w != start[name]).sum() for name, w in weights(ours).items()}
    assert all(changed[name] > 0.9 * len(at) for name, at in indices.items())
    moments = sum(
        t.numel() for state in optimizer.state.values() for t in state.values() if t.dim()
    )
    assert moments == 2 * sum(map(len, indices.values()))


@pytest.mark.parametrize(
    "options", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str
)
def test_every_implementation_of_an_optimiser_is_noticed(options):
    ours, reference = net(), net()
    selected = Selected(ours, {"out.weight": torch.arange(20)})
    for p in set(reference.parameters()) - {reference.out.weight}:
        p.requires_grad_(False)
    optimizer = torch.optim.AdamW(selected.parameters(), lr=0.05, **options)
    dense = torch.optim.AdamW([reference.out.weight], lr=0.05, **options)
    for step in range(3):
        loss_of(ours, step).backward()
        loss_of(reference, step).backward()
        optimizer.step()
        dense.step()
        optimizer.zero_grad()
        dense.zero_grad()
    ours(batch(0)[0])
    assert_same_bits(weights(ours), weights(reference))


def test_writing_through_data_needs_sync():
    model = net()
    selected = Selected(model, {"out.bias": torch.tensor([1])})
    selected.values["out.bias"].data.add_(1.0)
    before = model.out.bias[1].item()
    selected.sync()
    assert model.out.bias[1].item() == pytest.approx(before + 1)


def test_delta_is_adamw_on_the_change():
    """phi decays towards the pretrained weight: dense AdamW on phi with W = W0 + phi."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    start = model.weight.detach().clone()
    everything = torch.arange(18)
    selected = Selected(model, {"weight": everything}, parametrisation="delta")
    assert torch.equal(selected.values["weight"], torch.zeros(18))
    phi = nn.Parameter(torch.zeros(18))
    ours = torch.optim.AdamW(selected.parameters(), lr=0.1, weight_decay=0.5, foreach=False)
    reference = torch.optim.AdamW([phi], lr=0.1, weight_decay=0.5, foreach=False)
    for step in range(30):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        w = (start + phi.view(3, 6)).detach().requires_grad_()
        nn.functional.linear(x, w, model.bias).square().mean().backward()
        phi.grad = w.grad.flatten()
        for optimizer in (ours, reference):
            optimizer.step()
            optimizer.zero_grad()
    selected.sync()
    assert torch.equal(selected.values["weight"], phi)
    assert torch.equal(model.weight, (start + phi.view(3, 6)))
    assert not torch.equal(model.weight, start)


@pytest.mark.parametrize("parametrisation", ["value", "delta"])
def test_bf16_weights_have_float32_values(parametrisation):
    """A float32 master copy of every entry, rounded once into the weight, is the same."""
    model = net().bfloat16()
    start = weights(model)
    selected = Selected(
        model, {n: torch.arange(p.numel()) for n, p in model.named_parameters()},
        parametrisation=parametrisation,
    )
    reference = copy.deepcopy(net().bfloat16())
    change = {n: nn.Parameter(p.float() * 0) for n, p in weights(reference).items()}
    value = {n: nn.Parameter(p.float()) for n, p in weights(reference).items()}
    master = value if parametrisation == "value" else change
    ours = torch.optim.AdamW(selected.parameters(), lr=1e-3, foreach=False)
    theirs = torch.optim.AdamW(list(master.values()), lr=1e-3, foreach=False)
    for step in range(20):
        for part in range(2):
            loss_of(model, step, part).backward()
            loss_of(reference, step, part).backward()
            for name, p in reference.named_parameters():
                g, p.grad = p.grad.float(), None
                master[name].grad = g if master[name].grad is None else master[name].grad + g
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for name, p in reference.named_parameters():
                base = start[name].float() if parametrisation == "delta" else 0
                p.copy_(base + master[name])
    selected.sync()
    assert_same_bits(weights(model), weights(reference))
    for name, (at, difference) in entries_of(selected).items():
        exact = master[name].detach().flatten()
        if parametrisation == "value":
            exact = exact - start[name].float().flatten()
        assert torch.equal(difference, exact[at])
        assert difference.abs().max() > 0


def entries_of(selected):
    return {name: entry.change() for name, entry in selected._entries.items()}


def train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()


def sgd(selected, lr=0.3):
    return torch.optim.SGD(selected.parameters(), lr=lr)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_off_is_the_pretrained_model_to_the_bit(dtype):
    model = net().to(dtype)
    start = weights(model)
    selected = Selected(model, chosen(model), parametrisation="value")
    train(model, sgd(selected), 5)
    selected.keep("conv.weight", torch.arange(len(selected.indices["conv.weight"])) % 2 == 0)
    train(model, sgd(selected), 2)
    selected.sync()
    trained = weights(model)
    assert any(not torch.equal(trained[name], start[name]) for name in start)
    with pytest.raises(KeyError), selected.off():
        assert_same_bits(weights(model), start)
        with selected.off():
            model(batch(0)[0])  # the forward hook must not write here
            assert_same_bits(weights(model), start)
        assert_same_bits(weights(model), start)
        raise KeyError
    assert_same_bits(weights(model), trained)


def test_off_between_forward_and_backward():
    """A teacher's pass in the middle of a step changes no gradient."""
    model = net()
    selected = Selected(model, chosen(model))
    train(model, sgd(selected), 2)
    loss_of(model, 7).backward()
    expected = {name: v.grad.clone() for name, v in selected.values.items()}
    for v in selected.parameters():
        v.grad = None
    loss = loss_of(model, 7)
    with selected.off(), torch.no_grad():
        model(batch(7)[0])
    loss.backward()
    assert_same_bits({n: v.grad for n, v in selected.values.items()}, expected)


def test_a_step_between_forward_and_backward_is_an_error():
    model = net()
    selected = Selected(model, chosen(model))
    loss = loss_of(model, 0)
    with torch.no_grad():
        selected.values["out.weight"].add_(1)
    selected.sync()
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


@pytest.mark.parametrize("parametrisation", ["value", "delta"])
def test_moved_slots_leave_nothing_behind(parametrisation):
    model = net()
    start = weights(model)["out.weight"].flatten()
    at = torch.tensor([0, 3, 7, 11])
    selected = Selected(model, {"out.weight": at}, parametrisation=parametrisation)
    train(model, sgd(selected), 3)
    selected.sync()
    trained = weights(model)["out.weight"].flatten()
    loss_of(model, 5).backward()
    kept_gradient = selected.values["out.weight"].grad[2].item()
    values = selected.values["out.weight"]
    # Slots 1 and 3 go to a fresh entry and to the one that slot 1 leaves.
    selected.change_slots("out.weight", torch.tensor([1, 3]), torch.tensor([19, 3]))
    assert selected.values["out.weight"] is values
    expected = start.clone()
    expected[[0, 7]] = trained[[0, 7]]
    assert torch.equal(model.out.weight.detach().flatten(), expected)
    assert selected.indices["out.weight"].tolist() == [0, 19, 7, 3]
    assert selected.support["out.weight"].tolist() == [0, 3, 7, 19]
    assert torch.equal(selected.originals()["out.weight"], start[[0, 19, 7, 3]])
    assert values.grad[[1, 3]].tolist() == [0, 0] and values.grad[2].item() == kept_gradient
    selected.change_slots("out.weight", torch.tensor([0]), torch.tensor([1]), 0.25)
    assert model.out.weight.detach().flatten()[1] == start[1] + 0.25
    train(model, sgd(selected), 3)
    selected.detach()
    assert torch.equal(model.out.weight.detach().flatten(), start)


def test_moved_slots_go_on_like_new_ones():
    """After a move the gradients are those of the new entries."""
    model = net()
    selected = Selected(model, {"out.weight": torch.tensor([4, 5])})
    selected.change_slots("out.weight", torch.tensor([0]), torch.tensor([17]))
    loss_of(model, 0).backward()
    reference = net()
    loss_of(reference, 0).backward()
    expected = reference.out.weight.grad.flatten()[[17, 5]]
    assert torch.equal(selected.values["out.weight"].grad, expected)


def test_kept_entries_go_on_and_dropped_ones_freeze():
    """SaRA's progressive adjustment is dense AdamW whose mask shrinks, moments kept."""
    options = {"lr": 0.02, "weight_decay": 0.1}
    ours, reference = net(), net()
    start = weights(ours)
    indices = chosen(ours)
    selected = Selected(ours, indices)
    optimizer = torch.optim.AdamW(selected.parameters(), foreach=False, **options)
    dense = Dense(reference, indices, **options)
    for step in range(30):
        loss_of(ours, step).backward()
        loss_of(reference, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        dense.step()
        if step in (10, 20):
            for name in indices:
                now = selected.indices[name]
                keep = torch.rand(len(now), generator=torch.Generator().manual_seed(step)) < 0.5
                keep[0] = True
                value = selected.values[name]
                selected.keep(name, keep)
                gather_state(optimizer, value, keep)
                assert selected.values[name] is value and len(value) == int(keep.sum())
                dense.mask[name].view(-1)[now[~keep]] = False
    selected.sync()
    assert_same_bits(weights(ours), weights(reference))
    for name, at in indices.items():
        assert torch.equal(selected.support[name], at.sort().values)
        support, difference = entries_of(selected)[name]
        assert torch.equal(support, at.sort().values)
        assert torch.equal(difference, (weights(reference)[name] - start[name]).flatten()[support])
    selected.detach()
    assert_same_bits(weights(ours), start)


def test_a_weight_without_entries_left_has_no_gradient():
    model = net()
    selected = Selected(model, {"out.weight": torch.arange(3), "out.bias": torch.arange(2)})
    selected.keep("out.weight", torch.zeros(3, dtype=torch.bool))
    assert not model.out.weight.requires_grad
    loss_of(model, 0).backward()
    assert selected.values["out.weight"].grad is None
    with pytest.raises(DataError, match="last weight"):
        selected.keep("out.bias", torch.zeros(2, dtype=torch.bool))
    assert len(selected.values["out.bias"]) == 2
    selected.detach()
    assert model.out.weight.requires_grad


@pytest.mark.parametrize("parametrisation", ["value", "delta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_exact(parametrisation, dtype):
    def start():
        model = net().to(dtype)
        selected = Selected(model, chosen(model), parametrisation=parametrisation)
        return model, selected, torch.optim.AdamW(selected.parameters(), lr=0.01)

    model, selected, optimizer = start()
    train(model, optimizer, 4)
    keep = torch.arange(len(selected.indices["conv.weight"])) % 3 > 0
    gather_state(optimizer, selected.values["conv.weight"], keep)
    selected.keep("conv.weight", keep)
    free = torch.ones(88, dtype=torch.bool)
    free[selected.support["embed.weight"]] = False
    selected.change_slots("embed.weight", torch.tensor([5, 2]), free.nonzero().flatten()[:2])
    train(model, optimizer, 2, first=4)

    again, resumed, other = start()
    train(again, other, 1, first=50)  # whatever happened there is forgotten
    resumed.load_state_dict(load(save(selected.state_dict())))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    selected.sync()
    assert_same_bits(weights(again), weights(model))
    for m, o in ((model, optimizer), (again, other)):
        train(m, o, 4, first=6)
    selected.sync()
    resumed.sync()
    assert_same_bits(weights(again), weights(model))
    assert_same_bits(selected.state_dict(), resumed.state_dict())
    resumed.detach()
    assert_same_bits(weights(again), weights(net().to(dtype)))


def test_a_foreign_state_is_refused_whole():
    model = net()
    selected = Selected(model, chosen(model))
    train(model, sgd(selected), 2)
    state = selected.state_dict()
    other = Selected(net(seed=1), chosen(model))
    before = other.state_dict()
    with pytest.raises(CheckpointError, match="not the weight"):
        other.load_state_dict(state)
    assert_same_bits(before, other.state_dict())
    fewer = Selected(net(), chosen(model, only=["out.weight"]))
    with pytest.raises(CheckpointError, match=r"conv\.weight"):
        fewer.load_state_dict(state)
    deltas = Selected(net(), chosen(model), parametrisation="delta")
    with pytest.raises(CheckpointError, match="expected"):
        deltas.load_state_dict(state)
    cut = dict(state)
    cut["out.weight.value"] = cut["out.weight.value"][:-1]
    with pytest.raises(CheckpointError, match="unequal"):
        Selected(net(), chosen(model)).load_state_dict(cut)


def test_detach_leaves_the_model_as_it_was():
    model = net()
    model.out.weight.requires_grad_(False)
    start, flags = weights(model), [p.requires_grad for p in model.parameters()]
    selected = Selected(model, chosen(model, only=["out.weight", "conv.bias"]), also=["norm"])
    on = {name for name, p in model.named_parameters() if p.requires_grad}
    assert on == {"out.weight", "conv.bias", "norm.weight", "norm.bias"}
    assert {n for n, _ in selected.named_parameters()} == on
    optimizer = sgd(selected)
    loss_of(model, 0).backward()
    assert model.norm.weight.grad is not None and model.embed.weight.grad is None
    optimizer.step()
    selected.detach()
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(not m._forward_pre_hooks for m in model.modules())
    now = weights(model)
    assert not torch.equal(now.pop("norm.weight"), start.pop("norm.weight"))  # the head stays
    assert not torch.equal(now.pop("norm.bias"), start.pop("norm.bias"))
    assert_same_bits(now, start)
    loss_of(model.requires_grad_(), 0).backward()
    assert all(p.grad is not None for p in model.parameters())
    selected.detach()  # twice is once
    with pytest.raises(DataError, match="after detach"):
        selected.sync()
    with pytest.raises(DataError, match="detached"), selected.off():
        pass


def test_detach_may_leave_the_trained_weights():
    model = net()
    selected = Selected(model, chosen(model))
    train(model, sgd(selected), 3)
    trained = dict(model.state_dict())  # pending values are written for it
    selected.detach(restore=False)
    assert_same_bits(model.state_dict(), trained)
    assert not torch.equal(trained["out.weight"], net().out.weight)


def test_older_gradients_are_dropped():
    model = net()
    loss_of(model, 3).backward()
    selected = Selected(model, {"out.weight": torch.arange(20)})
    loss_of(model, 0).backward()
    reference = net()
    loss_of(reference, 0).backward()
    assert torch.equal(selected.values["out.weight"].grad, reference.out.weight.grad.flatten())


def test_dense_gradients_of_each_micro_batch_can_be_seen():
    model, reference = net(), net()
    seen = []
    selected = Selected(
        model, chosen(model, only=["out.weight", "embed.weight"]),
        on_gradient=lambda name, gradient: seen.append((name, gradient.clone())),
    )
    for part in range(2):
        loss_of(model, 0, part).backward()
        loss_of(reference, 0, part).backward()
        got = dict(seen)
        assert got.keys() == {"out.weight", "embed.weight"} and len(seen) == 2
        for name, gradient in got.items():
            assert torch.equal(gradient, reference.get_parameter(name).grad)
        seen.clear()
        reference.zero_grad()
    assert selected.values["out.weight"].grad is not None


def test_sparse_embeddings():
    model, reference = net(sparse=True), net()
    at = torch.arange(0, 88, 3)
    seen = []
    selected = Selected(model, {"embed.weight": at}, on_gradient=lambda n, g: seen.append(g.shape))
    loss_of(model, 0).backward()
    loss_of(reference, 0).backward()
    assert torch.allclose(
        selected.values["embed.weight"].grad, reference.embed.weight.grad.flatten()[at]
    )
    assert seen == [(11, 8)] and model.embed.weight.grad is None


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.embed(tokens).mean(1))


def test_tied_weights_are_one():
    torch.manual_seed(0)
    model = Tied()
    reference = copy.deepcopy(model)
    selected = Selected(model, {"embed.weight": torch.arange(0, 88, 5)})
    optimizer = sgd(selected)
    x, _ = batch(0)
    model(x).square().sum().backward()
    reference(x).square().sum().backward()
    expected = reference.embed.weight.grad.flatten()[::5]
    assert torch.equal(selected.values["embed.weight"].grad, expected)
    optimizer.step()
    model(x)
    assert model.head.weight is model.embed.weight
    assert_same_bits(weights(model), {"embed.weight": model.head.weight.detach()})
    with pytest.raises(DataError, match=r"tied to embed\.weight"):
        Selected(model, {"head.weight": torch.arange(3)})


def test_gpt2_with_transposed_layers():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=31, n_positions=8, n_embd=16, n_layer=2, n_head=2,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    reference = copy.deepcopy(model)
    selected = Selected(model, chosen(model, 0.1))
    tokens = torch.randint(31, (2, 8))
    for m in (model, reference):
        m(tokens, labels=tokens).loss.backward()
    for name, p in reference.named_parameters():
        expected = p.grad.flatten()[selected.indices[name]]
        assert torch.equal(selected.values[name].grad, expected), name
    assert "transformer.h.0.attn.c_attn.weight" in selected.values
    assert "lm_head.weight" not in selected.values


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
    reference = copy.deepcopy(model)
    selected = Selected(model, chosen(model))
    optimizer = sgd(selected)
    for step in range(3):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        h = x.clone().requires_grad_()
        selected.sync()
        for layer in model:
            h = checkpoint(lambda h, layer=layer: torch.tanh(layer(h)), h, use_reentrant=reentrant)
        h.square().sum().backward()
        h = x
        for layer in reference:
            h = torch.tanh(layer(h))
        h.square().sum().backward()
        for name, p in reference.named_parameters():
            at = selected.indices[name]
            assert torch.equal(selected.values[name].grad, p.grad.flatten()[at])
            with torch.no_grad():
                flat = p.detach().view(-1)
                flat[at] = flat[at].add(p.grad.flatten()[at], alpha=-0.3)
            p.grad = None
        optimizer.step()
        optimizer.zero_grad()


def test_weights_in_another_memory_order():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    linear = nn.Linear(5, 6)
    linear.weight = nn.Parameter(torch.randn(5, 6).T)
    for module, x in ((conv, torch.randn(2, 3, 7, 7)), (linear, torch.randn(2, 5))):
        start = module.weight.detach().clone()
        at = torch.arange(0, start.numel(), 4)
        selected = Selected(module, {"weight": at})
        assert torch.equal(selected.values["weight"], start.reshape(-1)[at])
        module(x).square().sum().backward()
        dense = start.clone().requires_grad_()
        torch.func.functional_call(module, {"weight": dense}, x).square().sum().backward()
        assert torch.allclose(selected.values["weight"].grad, dense.grad.reshape(-1)[at])
        with torch.no_grad():
            selected.values["weight"].add_(1.0)
        selected.sync()
        expected = start.reshape(-1).clone()
        expected[at] += 1.0
        assert torch.equal(module.weight.reshape(-1), expected)
        selected.detach()
        assert torch.equal(module.weight, start)


def test_modules_called_alone_see_new_values():
    model = net()
    selected = Selected(model, {"out.bias": torch.arange(5)})
    with torch.no_grad():
        selected.values["out.bias"].zero_()
    zero = model.out(torch.zeros(1, 4))
    assert torch.equal(zero, torch.zeros(1, 5))


def test_a_copy_of_the_model_is_free_of_the_selection():
    model = net()
    selected = Selected(model, chosen(model))
    train(model, sgd(selected), 2)
    selected.sync()
    twin = copy.deepcopy(model)
    trained = weights(model)
    with torch.no_grad():
        for v in selected.values.values():
            v.zero_()
    twin(batch(0)[0])
    assert_same_bits(weights(twin), trained)


def test_place_gives_rows_and_columns():
    model = net()
    selected = Selected(model, {"conv.weight": torch.tensor([30]), "out.bias": torch.tensor([2])})
    indices, rows, columns = selected.place(selected.values["conv.weight"])
    assert (indices.tolist(), rows, columns) == ([30], 4, 24)
    assert selected.place(selected.values["out.bias"])[1:] == (5, 1)
    assert selected.place(model.norm.weight) is None


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (torch.tensor([1, 1]), "repeated"), (torch.tensor([20]), "index 20"),
        (torch.tensor([-1]), "index -1"), (torch.tensor([0.5]), "float32"),
        (torch.zeros(2, 2, dtype=torch.long), "flat"), (torch.tensor([True]), "bool"),
        (torch.zeros(0, dtype=torch.long), "no entry"),
    ],
)
def test_wrong_indices(at, said):
    model = net()
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(DataError, match=said):
        Selected(model, {"embed.weight": torch.arange(3), "out.weight": at})
    assert [p.requires_grad for p in model.parameters()] == flags
    Selected(model, {"out.weight": torch.arange(3)})  # nothing is left of the failed one


def test_wrong_models_and_names():
    at = torch.arange(2)
    model = net()
    with pytest.raises(UnknownNameError, match=r"out\.weight"):
        Selected(model, {"out.weihgt": at})
    with pytest.raises(UnknownNameError, match="prefix"):
        Selected(model, {"out.weight": at}, also=["head"])
    with pytest.raises(DataError, match=r"out\.weight is both"):
        Selected(model, {"out.weight": at}, also=["out"])
    with pytest.raises(DataError, match="no weight"):
        Selected(model, {})
    with pytest.raises(ConfigError, match="absolute"):
        Selected(model, {"out.weight": at}, parametrisation="absolute")
    selected = Selected(model, {"out.weight": at})
    with pytest.raises(DataError, match="selected already"):
        Selected(model, {"out.weight": at})
    with pytest.raises(UnknownNameError, match="selected parameter"):
        selected.keep("out.bias", torch.ones(2, dtype=torch.bool))
    with pytest.raises(DataError, match="mask"):
        selected.keep("out.weight", torch.ones(3, dtype=torch.bool))
    with pytest.raises(DataError, match="other slots"):
        selected.change_slots("out.weight", torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(DataError, match="slots"):
        selected.change_slots("out.weight", torch.tensor([0, 0]), torch.tensor([5, 6]))
    with pytest.raises(DataError, match="inside off"), selected.off():
        selected.sync()


def test_broken_and_quantised_weights_are_named():
    model = net()
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match=r"conv\.weight has 1 NaN"):
        Selected(model, {"conv.weight": torch.arange(2)})
    model = net()
    model.out.weight = nn.Parameter(torch.zeros(5, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(DataError, match=r"out\.weight is int8"):
        Selected(model, {"out.weight": torch.arange(2)})
    Selected(model, {"out.bias": torch.arange(2)})  # others of such a model may train


def test_values_that_diverged_and_types_that_changed():
    model = net()
    selected = Selected(model, {"out.weight": torch.arange(2)})
    with torch.no_grad():
        selected.values["out.weight"][0] = float("inf")
    with pytest.raises(DataError, match=r"out\.weight are NaN"):
        entries_of(selected)
    model.bfloat16()
    with pytest.raises(DataError, match="became bfloat16"):
        selected.sync()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parametrisation", ["value", "delta"])
def test_edit_changes_added_to_the_pretrained_model(parametrisation, dtype):
    model = net().to(dtype)
    selected = Selected(model, chosen(model), parametrisation=parametrisation)
    train(model, sgd(selected), 3)
    selected.keep("out.weight", torch.arange(len(selected.indices["out.weight"])) % 2 == 0)
    train(model, sgd(selected), 2)
    selected.sync()
    fresh = net().to(dtype)
    for name, change in selected.edit_changes().items():
        assert isinstance(change, Sparse)
        assert torch.equal(change.indices, selected.support[name])
        change.add_to(fresh.get_parameter(name))
    if parametrisation == "delta":
        assert_same_bits(weights(fresh), weights(model))
    for name, trained in weights(model).items():  # a value's difference is rounded once more
        rounding = 2 * torch.finfo(dtype).eps
        assert torch.allclose(fresh.get_parameter(name), trained, rtol=rounding, atol=1e-7)
        assert not torch.equal(trained, net().to(dtype).get_parameter(name))
