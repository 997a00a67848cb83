"""LT-SFT: selection, phases, composition, against dense arithmetic done by hand."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from passband.bench.budget import Budget
from passband.bench.task import Data
from passband.errors import ConfigError, DataError, PassbandWarning, UnknownNameError
from passband.parts.edits import Dense, Edit, Sparse, compose, composed, fingerprint
from passband.tuning.lt_sft.maskable import find_parts
from passband.tuning.lt_sft.model import LTSFT
from passband.tuning.lt_sft.multi_source import SourceBatches, Sources
from passband.tuning.lt_sft.system import LotteryTicketSFT
from passband.tuning.number_words import RECIPES, number_words

LR, STEPS = 0.05, 6


def network(seed: int = 0) -> nn.Module:
    """A body that can be masked and a head."""
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.ReLU(), nn.Linear(7, 4))
    return nn.ModuleDict({"body": body, "head": nn.Linear(4, 3)})


def batches(count: int = STEPS, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 5, generator=generator), torch.randint(3, (8,), generator=generator))
        for _ in range(count)
    ]


def loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    x, y = batch
    return nn.functional.cross_entropy(model["head"](model["body"](x)), y)


def run(handle, data, lr: float = LR) -> None:
    """One phase in a plain loop."""
    optimizer = handle.optimizer(lr=lr)
    for batch in data:
        handle.objective(loss_of(handle.model, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()


def trained(method: LTSFT, model: nn.Module | None = None, **options):
    handle = method.attach(model if model is not None else network(), head=["head"], **options)
    for _ in handle.phases():
        run(handle, batches())
    return handle


def by_hand(count: int, rounds: int = 1) -> dict[str, torch.Tensor]:
    """Dense phases with masked gradients; returns the weights, `mask` of each tensor beside."""
    model = network()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    frozen = ("body.1.",)
    free = [n for n in start if n.startswith("body.") and not n.startswith(frozen)]
    mask = {n: torch.zeros_like(start[n], dtype=torch.bool) for n in free}
    for number in range(rounds):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        _dense(model, [n for n in start if not n.startswith(frozen)], None)
        named = dict(model.named_parameters())
        scores = np.concatenate([
            np.where(mask[n], -1, (named[n].detach() - start[n]).abs()).reshape(-1) for n in free
        ])
        goal = count * (number + 1) // rounds - sum(int(m.sum()) for m in mask.values())
        chosen = np.zeros(len(scores), bool)
        chosen[np.argsort(-scores, kind="stable")[:goal]] = True
        offset = 0
        for n in free:
            size = mask[n].numel()
            mask[n] |= torch.from_numpy(chosen[offset : offset + size]).reshape(mask[n].shape)
            offset += size
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(before[n])
        _dense(model, [*free, "head.weight", "head.bias"], mask)
    return {"start": start, "mask": mask, "end": dict(model.named_parameters())}


def _dense(model: nn.Module, names: list[str], mask) -> None:
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW([named[n] for n in names], lr=LR, weight_decay=0.0)
    for batch in batches():
        model.zero_grad()
        loss_of(model, batch).backward()
        for n in names:
            if mask is not None and n in mask:
                named[n].grad *= mask[n]
        optimizer.step()


# ---- the two phases ------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 3])
def test_both_phases_are_those_of_dense_arithmetic(rounds: int) -> None:
    expected = by_hand(13, rounds)
    handle = trained(LTSFT(count=13, iterations=rounds))
    assert sum(len(at) for at in handle.support.values()) == 13
    for name, mask in expected["mask"].items():
        found = torch.zeros(mask.numel(), dtype=torch.bool)
        found[handle.support.get(name, torch.empty(0, dtype=torch.long))] = True
        assert torch.equal(found.reshape(mask.shape), mask), name
    handle.selected.sync()
    for name, parameter in handle.model.named_parameters():
        torch.testing.assert_close(
            parameter, expected["end"][name], rtol=0, atol=0 if rounds == 1 else 1e-6
        )
    edit, start = handle.edit(), expected["start"]
    for name, mask in expected["mask"].items():
        if mask.any():
            difference = (expected["end"][name] - start[name]).detach()
            torch.testing.assert_close(edit.changes[name].delta(), difference, rtol=0, atol=1e-6)


def test_everything_is_rewound_heads_too_and_moments_are_new() -> None:
    model = network()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    handle = LTSFT(count=9).attach(model, head=["head"])
    phases = handle.phases()
    next(phases)
    run(handle, batches())
    assert not torch.equal(model["head"].weight, start["head.weight"])
    next(phases)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, start[name]), name
        assert parameter.grad is None
    assert handle.optimizers == []
    optimizer = handle.optimizer(lr=LR)
    assert not optimizer.state
    assert sum(p.numel() for p in handle.parameters()) == 9 + 15


def test_weight_decay_moves_no_other_entry() -> None:
    model = network()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    handle = LTSFT(count=9).attach(model, head=["head"])
    for _ in handle.phases():
        optimizer = torch.optim.AdamW(handle.parameters(), lr=LR, weight_decay=0.5)
        handle.bind(optimizer)
        for batch in batches():
            handle.objective(loss_of(model, batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
    handle.selected.sync()
    moved = {n: (p != start[n]).reshape(-1).nonzero().reshape(-1)
             for n, p in model.named_parameters() if n.startswith("body")}
    for name, at in moved.items():
        assert set(at.tolist()) <= set(handle.support.get(name, torch.empty(0)).tolist())


@pytest.mark.parametrize("rounds", [1, 2])
def test_off_and_detach_give_the_pretrained_bits(rounds: int) -> None:
    model = network()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    handle = LTSFT(count=9, iterations=rounds).attach(model, head=["head"])
    for _ in handle.phases():
        run(handle, batches())
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        inside = handle.edit().norm()
        with handle.off():
            assert all(torch.equal(p, start[n]) for n, p in model.named_parameters())
            assert handle.edit().norm() == inside
            loss_of(model, batches()[0])
            assert all(torch.equal(p, start[n]) for n, p in model.named_parameters())
        if handle.selected is not None:
            handle.selected.sync()
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
        loss_of(model, batches()[0])
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    edit = handle.detach()
    assert all(torch.equal(p, start[n]) for n, p in model.named_parameters())
    assert all(p.requires_grad for p in model.parameters())
    edit.apply(model)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=1e-6)


def test_bf16_weights_keep_fp32_differences() -> None:
    model = network().bfloat16()
    handle = LTSFT(count=9).attach(model, head=["head"])
    for _ in handle.phases():
        optimizer = handle.optimizer(lr=1e-3)
        for x, y in batches():
            out = model["head"](model["body"](x.bfloat16())).float()
            nn.functional.cross_entropy(out, y).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(v.dtype == torch.float32 for v in handle.trained().values())
    applied = handle.detach().apply(model)
    assert 0 <= applied.lost <= 1


# ---- which entries -------------------------------------------------------------------------------


def test_random_takes_exactly_k_and_has_no_first_phase() -> None:
    handle = LTSFT(count=30, criterion="random").attach(network(), head=["head"], seed=3)
    assert [phase.name for phase in handle.phases()] == ["train"]
    assert sum(map(len, handle.support.values())) == 30
    again = LTSFT(count=30, criterion="random").attach(network(), head=["head"], seed=3)
    assert all(torch.equal(at, again.support[n]) for n, at in handle.support.items())


def test_bitfit_takes_all_biases() -> None:
    handle = LTSFT(criterion="bitfit").attach(network(), head=["head"])
    assert {n: len(at) for n, at in handle.support.items()} == {"body.0.bias": 7, "body.3.bias": 4}


class Scored(nn.Module):
    """A model whose call gives a loss, as transformers' do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor):
        return type("Out", (), {"loss": self.layer(x).square().sum()})


def test_first_order_takes_the_largest_squared_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(4, 3, generator=generator) for _ in range(2)]
    model = Scored()
    expected = torch.zeros(8)
    for x in rows:
        y = model.layer(x).detach()
        expected += torch.cat([(2 * y.T @ x).reshape(-1), 2 * y.sum(0)]).square()
    handle = LTSFT(count=3, criterion="first_order").attach(
        model, {"task": [{"x": x} for x in rows]}
    )
    found = [int(i) + offset for name, offset in (("layer.weight", 0), ("layer.bias", 6))
             for i in handle.support.get(name, ())]
    assert found == sorted(expected.topk(3).indices.tolist())
    with pytest.raises(DataError, match="without batches"):
        LTSFT(count=3, criterion="first_order").attach(Scored())


def test_all_is_full_fine_tuning() -> None:
    handle = trained(LTSFT(criterion="all"))
    model = network()
    _dense(model, [n for n, _ in model.named_parameters() if not n.startswith("body.1.")], None)
    for name, parameter in model.named_parameters():
        assert torch.equal(dict(handle.model.named_parameters())[name], parameter)
    assert {c.kind for c in handle.edit().changes.values()} == {"dense", "replace"}


# ---- the distance --------------------------------------------------------------------------------


@pytest.mark.parametrize(("normaliser", "divisor"), [("total", 103), ("maskable", 74), ("none", 1)])
def test_l1_is_the_distance_over_n(normaliser: str, divisor: int) -> None:
    model = network()
    assert sum(p.numel() for p in model.parameters()) == 103
    method = LTSFT(count=9, l1_full=0.5, l1_sparse=0.25, l1_normaliser=normaliser)
    handle = method.attach(model, head=["head"])
    phases = handle.phases()
    next(phases)
    with torch.no_grad():
        model["body"][0].weight[0, 0] += 2.0
        model["head"].bias[1] -= 1.0
    torch.testing.assert_close(handle.penalty(), torch.tensor(0.5 * 3.0 / divisor))
    run(handle, batches())
    next(phases)
    with torch.no_grad():
        next(iter(handle.selected.values.values()))[0] += 3.0
        model["head"].bias[1] -= 1.0
    torch.testing.assert_close(handle.penalty(), torch.tensor(0.25 * 4.0 / divisor))
    only = LTSFT(count=9, l1_full=0.5, l1_normaliser=normaliser, l1_maskable_only=True)
    other = only.attach(network(), head=["head"])
    with torch.no_grad():
        other.model["head"].bias[1] -= 1.0
    assert float(other.penalty()) == 0.0


# ---- transformers --------------------------------------------------------------------------------


def bert(kind: str = "BertForMaskedLM", seed: int = 0, **options):
    import transformers

    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=12, num_labels=3, **options,
    )
    return getattr(transformers, kind)(config)


def test_what_is_masked_in_a_masked_lm() -> None:
    model = bert()
    parts = find_parts(model, layer_norm=False)
    assert all(n.startswith("bert.") and "LayerNorm" not in n for n in parts.maskable)
    assert all(n.startswith("cls.") for n in parts.dense)
    assert not any("LayerNorm" in n for n in parts.dense)
    frozen = find_parts(model, embeddings=False, heads=False)
    assert not any("embeddings." in n and "LayerNorm" not in n for n in frozen.maskable)
    assert frozen.dense == ()
    assert find_parts(model, ["cls.predictions.bias"]).dense == ("cls.predictions.bias",)


def test_what_was_frozen_before_stays_so() -> None:
    model = network()
    model["body"][0].requires_grad_(False)
    handle = LTSFT(count=5).attach(model, head=["head"])
    assert set(handle.maskable) == {"body.3.weight", "body.3.bias"}
    handle.detach()
    assert not model["body"][0].weight.requires_grad


def test_a_tied_decoder_is_warned_of_and_can_be_untied() -> None:
    model = bert()
    with pytest.warns(PassbandWarning, match="tied to bert.embeddings.word_embeddings.weight"):
        find_parts(model, decoder=False)
    table = model.get_input_embeddings().weight
    handle = LTSFT(freeze_decoder=True, untie_embeddings=True).attach(model)
    decoder = model.get_output_embeddings()
    assert decoder.weight is not table
    before = decoder.weight.detach().clone()
    ids = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(0))
    for _ in handle.phases():
        optimizer = handle.optimizer(lr=1e-2)
        for _ in range(3):
            handle.objective(model(input_ids=ids, labels=ids).loss).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(decoder.weight, before)
    assert not torch.equal(table, before)
    edit = handle.detach()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    edit.apply(bert())  # the base is the tied model that came


def test_a_language_goes_onto_another_head_and_a_task_never_contains_it() -> None:
    ids = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(0))
    labels = torch.randint(3, (4, 6), generator=torch.Generator().manual_seed(1))
    lm = bert()
    language = LTSFT(count=40).attach(lm)
    for _ in language.phases():
        optimizer = language.optimizer(lr=1e-2)
        for _ in range(4):
            lm(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    phi = language.detach()
    tagger = bert("BertForTokenClassification", seed=5)
    tagger.bert.load_state_dict(
        lm.bert.state_dict()
    )
    with pytest.raises(DataError, match="lacks"):
        phi.apply(tagger)
    encoder = phi.only(lambda name: name.startswith("bert."))
    start = {n: p.detach().clone() for n, p in tagger.named_parameters()}
    encoder.apply(tagger)
    shifted = {n: p.detach().clone() for n, p in tagger.named_parameters()}
    handle = LTSFT(count=25).attach(tagger, head=["classifier"])
    for _ in handle.phases():
        optimizer = handle.optimizer(lr=1e-2)
        for _ in range(4):
            tagger(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    handle.selected.sync()
    task = handle.edit()
    for name, change in task.changes.items():
        if change.kind == "sparse":
            now = dict(tagger.named_parameters())[name].detach()
            torch.testing.assert_close(change.delta(), now - shifted[name], rtol=0, atol=1e-7)
    # The base is the pristine one, without the language; a fresh model takes both.
    fresh = bert("BertForTokenClassification", seed=5)
    fresh.load_state_dict(start, strict=False)
    compose([task, encoder]).apply(fresh)
    for name, parameter in fresh.named_parameters():
        torch.testing.assert_close(
            parameter, dict(tagger.named_parameters())[name], rtol=0, atol=1e-6
        )
    with composed(bert("BertForTokenClassification", seed=5), [task.only(_encoder)], check=False):
        pass


def _encoder(name: str) -> bool:
    return name.startswith("bert.")


def test_prefixes_are_renamed() -> None:
    change = Sparse(torch.tensor([1]), torch.tensor([0.5]), (4, 3))
    edit = Edit({"roberta.layer.weight": change}).renamed({"roberta.": "bert."})
    assert list(edit.changes) == ["bert.layer.weight"]


# ---- several sources -----------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["lottery", "random"])
def test_several_sources_are_added_for_their_batch_alone(criterion: str) -> None:
    generator = torch.Generator().manual_seed(4)
    base = network()
    shift = {
        language: Edit(
            {"body.0.weight": Dense(torch.randn(7, 5, generator=generator) * 0.3)},
            fingerprint(base, without=["head.weight", "head.bias"]),
        ) for language in ("a", "b")
    }
    plan = list(zip("abab", batches(4), strict=True))
    handle = LTSFT(count=12, criterion=criterion).attach(network(), head=["head"])
    twin = network()
    names = dict(twin.named_parameters())
    mask = None
    for phase in handle.phases():
        sparse = handle.selected is not None
        if sparse:
            twin = network()
            names = dict(twin.named_parameters())
            mask = {n: torch.zeros(names[n].numel()) for n in handle.maskable}
            for n, at in handle.support.items():
                mask[n][at] = 1.0
        optimizer = handle.optimizer(lr=LR)
        sources = Sources(handle, shift)
        rest = [n for n in names if not n.startswith("body.1.")]
        dense = torch.optim.AdamW([names[n] for n in rest], lr=LR, weight_decay=0.0)
        for language, batch in plan:
            sources.use(language)
            handle.objective(loss_of(handle.model, batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
            delta = shift[language].changes["body.0.weight"].delta()
            moved = copy.deepcopy(twin)
            with torch.no_grad():
                moved["body"][0].weight += delta
            moved.zero_grad()
            loss_of(moved, batch).backward()
            for n in rest:
                gradient = dict(moved.named_parameters())[n].grad
                if mask is not None and n in mask:
                    gradient = gradient * mask[n].reshape(gradient.shape)
                names[n].grad = gradient
            dense.step()
        assert phase.name in ("full", "sparse", "train")
        if sparse:
            handle.selected.sync()
        for n, p in handle.model.named_parameters():
            torch.testing.assert_close(p, names[n], rtol=0, atol=1e-6)


def test_batches_of_sources_are_homogeneous_and_upsampled() -> None:
    data = {"a": list(range(10)), "b": list(range(100, 104))}
    source = SourceBatches(data, 4, upsampling={"b": 3}, seed=1)
    epoch = [next(batch) for batch in [iter(source)] for _ in range(6)]
    assert [len(rows) for language, rows in epoch if language == "b"] == [4, 4, 4]
    assert sorted(r for language, rows in epoch if language == "a" for r in rows) == data["a"]
    assert all(set(rows) <= set(data[language]) for language, rows in epoch)
    assert epoch == [next(batch) for batch in [iter(source)] for _ in range(6)]
    with pytest.raises(UnknownNameError):
        SourceBatches(data, 4, upsampling={"c": 2})


# ---- bad input -----------------------------------------------------------------------------------


def test_more_entries_than_moved() -> None:
    model = network()
    handle = LTSFT(count=60).attach(model, head=["head"])
    phases = handle.phases()
    next(phases)
    with torch.no_grad():
        model["body"][0].weight.view(-1)[:20] += 1.0
    with pytest.raises(DataError, match=r"60 entries are wanted, but 20 of 74"):
        next(phases)


def test_more_entries_than_there_are() -> None:
    with pytest.raises(DataError, match="K = 100"):
        LTSFT(count=100).attach(network(), head=["head"])


def test_nan_after_phase_one_is_named() -> None:
    model = network()
    handle = LTSFT(count=5).attach(model, head=["head"])
    phases = handle.phases()
    next(phases)
    with torch.no_grad():
        model["body"][3].weight[1, 1] = float("nan")
    with pytest.raises(DataError, match=r"body\.3\.weight has NaN"):
        next(phases)


def test_the_same_twice_or_another_model() -> None:
    edit = trained(LTSFT(count=9)).detach()
    model = network()
    edit.apply(model)
    with pytest.raises(DataError):
        edit.apply(model)
    with pytest.raises(DataError, match="lacks"):
        edit.apply(nn.ModuleDict({"other": nn.Linear(2, 2)}))


@pytest.mark.parametrize("wrong", [
    {"density": 0.0}, {"count": 0}, {"full_share": 1.0}, {"iterations": 0},
    {"iterations": 2, "criterion": "random"},
])
def test_configurations_out_of_range(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        LTSFT(**wrong)


def test_a_prefix_without_parameters() -> None:
    with pytest.raises(DataError, match="under the prefix"):
        LTSFT(prefix="roberta").attach(network(), head=["head"])


# ---- the system with several sources ------------------------------------------------------------


def _two_sources() -> Data[Any]:
    """The smoke job, with the task's examples in the language to transfer to as well."""
    data = number_words(0, "smoke")
    words = RECIPES["smoke"].data()
    more = [(words.prompt(n, "kz"), n % 10) for n in words.draws(60, 1)]
    job = replace(data.train, sources={**data.train.sources, "kz": more})
    return replace(data, train=job)


def test_the_system_learns_from_several_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    use = Sources.use
    monkeypatch.setattr(Sources, "use", lambda self, name: (used.append(name), use(self, name))[1])
    data = _two_sources()
    system = LotteryTicketSFT.from_preset("smoke", multi_source=True, upsampling={"kz": 3})
    report = system.fit(data.for_fit(), Budget(steps=60))
    # 20 steps for each of two languages and the task, which looks at one more batch a phase. Of
    # its epochs of 25 + 3 x 8 batches about half are in each.
    assert report["steps"] == 60 and len(used) == 22
    assert 5 <= used.count("kz") <= 17
    pristine = {n: p.detach().clone() for n, p in data.train.model().named_parameters()}
    model = data.train.model()
    applied = system.fitted().apply(model)
    moved = sum(int((p != pristine[n]).sum()) for n, p in model.named_parameters() if "bert" in n)
    assert 0 < moved <= system.count(model)  # the task's own entries: no language is left in it
    applied.revert()
    assert all(torch.equal(p, pristine[n]) for n, p in model.named_parameters())


def test_one_source_is_what_it_was() -> None:
    data = number_words(0, "smoke")
    one, several = (
        LotteryTicketSFT.from_preset("smoke", multi_source=flag) for flag in (False, True)
    )
    for system in (one, several):  # the smoke job has examples in one language only
        system.fit(data.for_fit(), Budget(steps=20))
    assert all(torch.equal(a, several.state()[n]) for n, a in one.state().items())
