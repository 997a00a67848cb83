"""The cross-lingual job, and the systems that have modules for languages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from passband.bench.budget import Budget
from passband.catalog import task
from passband.errors import ConfigError
from passband.tuning.baselines.full_tuning.system import Full
from passband.tuning.baselines.mad_x.model import Adapters, Coupling, adapters_of, size_for
from passband.tuning.baselines.mad_x.system import StackedAdapters
from passband.tuning.lt_sft.system import LotteryTicketSFT
from passband.tuning.modules import shared
from passband.tuning.number_words import (
    Masked,
    collate,
    masked,
    masked_lm,
    masked_lm_loss,
    number_words,
    pretrained_number_words,
)

BUDGET = Budget(steps=60)


@pytest.fixture(scope="module")
def data():
    return number_words(0, "smoke")


def fitted(system, data):
    system.fit(data.for_fit(), BUDGET)
    return system


@pytest.fixture(scope="module")
def sparse(data):
    return fitted(LotteryTicketSFT.from_preset("smoke", density=0.03), data)


@pytest.fixture(scope="module")
def stacked(data):
    return fitted(StackedAdapters.from_preset("smoke", invertible=True), data)


# ---- masks ---------------------------------------------------------------------------------------


def test_masking_is_that_of_bert() -> None:
    row = [1, 2, 2, 2, 3, *range(20, 40)]
    rng = np.random.default_rng(0)
    hidden = kept = exchanged = asked = 0
    for _ in range(3000):
        ids, labels = masked(row, rng, 0.15, 60)
        assert ids[:5] == row[:5]
        assert labels[:5] == [-100] * 5
        for token, label, old in zip(ids, labels, row, strict=True):
            if label == -100:
                assert token == old
            else:
                assert label == old
                asked += 1
                hidden += token == 2
                kept += token == old
                exchanged += token not in (2, old)
    assert 0.14 < asked / (3000 * 20) < 0.165  # at least one a row
    assert abs(hidden / asked - 0.8) < 0.02
    assert abs(kept / asked - 0.1) < 0.02
    assert abs(exchanged / asked - 0.1) < 0.02


def test_masks_of_an_evaluation_are_fixed_and_of_training_new() -> None:
    examples = Masked([[1, 2, 2, 2, 3, *range(20, 30)]] * 4, 60)
    assert examples[2] == examples[2]
    assert examples[2] != examples[3]
    draws = [examples.draw(2, np.random.default_rng(i)) for i in range(4)]
    assert any(draw != draws[0] for draw in draws)
    model = pretrained_number_words("smoke")
    assert masked_lm_loss(model, examples) == masked_lm_loss(model, examples)


def test_the_loss_is_that_of_transformers(data) -> None:
    job = data.train.texts["kz"]
    batch = collate([job.examples[i] for i in range(10)])
    model = job.model()
    inputs, labels = batch
    expected = nn.Module.__call__(model, **inputs, labels=labels).loss
    torch.testing.assert_close(masked_lm(model, batch).loss, expected)


# ---- the job -------------------------------------------------------------------------------------


def test_models_are_fresh_equal_copies(data) -> None:
    one, two = data.train.model(), data.train.model()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one.get_output_embeddings().weight is one.get_input_embeddings().weight
    with torch.no_grad():
        one.classifier.bias += 1
    assert not torch.equal(one.classifier.bias, two.classifier.bias)


def test_training_shows_neither_test_numbers_nor_other_languages(data) -> None:
    from passband.data.number_words import number_words as corpus

    words = corpus(("en",), ("kz",))
    shown = {tuple(ids) for ids, _ in data.train.examples}
    assert shown <= {tuple(words.prompt(n, "en")) for n in words.numbers("train")}
    texts = data.train.texts["kz"].examples.rows
    assert {tuple(row) for row in texts} <= {
        tuple(words.text(n, other, "kz")) for n in words.numbers("train")
        for other in (n, n + 1, n + 10, n + 100) if other < 1000
    }


def test_seeds_draw_the_examples_alone() -> None:
    one, two = number_words(1, "smoke"), number_words(2, "smoke")
    assert one.train.examples != two.train.examples
    model = one.test.model()
    assert one.test.accuracy(model, "kz") == two.test.accuracy(model, "kz")
    assert one.test.fit(model, "kz") == two.test.fit(model, "kz")


# ---- sparse differences --------------------------------------------------------------------------


def test_exactly_k_in_every_module(data, sparse) -> None:
    wanted = sparse.count(data.train.model())
    for edit in (sparse.fitted(), *sparse.modules.values()):
        held = [c for c in edit.changes.values() if c.kind == "sparse"]
        assert sum(len(c.indices) for c in held) == wanted
    assert set(sparse.modules) == {"en", "kz"}
    assert sparse.parameter_count() >= wanted


def test_the_sum_is_what_is_asked_in_another_language(data, sparse) -> None:
    base = data.train.model()
    model = sparse.speak(data.train.model(), "kz")
    named = dict(model.named_parameters())
    task_edit, language = sparse.fitted(), sparse.modules["kz"]
    for name, weight in base.named_parameters():
        expected = weight.detach().clone()
        for edit in (task_edit, language):
            change = edit.changes.get(name)
            if change is not None and change.kind == "sparse":
                expected = expected + change.delta()
            elif change is not None and edit is task_edit:
                expected = change.values
        torch.testing.assert_close(named[name], expected, rtol=0, atol=1e-6)
    assert {"cls.predictions.bias"} <= set(language.changes)
    assert not any(name.startswith("cls.") for name in shared(language).changes)


def test_metrics_of_a_method_without_languages(data) -> None:
    system = Full.from_preset("smoke")
    system.fit(data.for_fit(), Budget(steps=10))
    found = task("number-words").evaluate(system, data)
    assert found["zero_shot"] == found["task_alone"]
    model = data.test.model()
    system.adapt(model)
    assert found["source_accuracy"] == data.test.accuracy(model.eval(), "en")


@pytest.mark.parametrize("name", ["sparse", "stacked"])
def test_saved_and_loaded_it_measures_the_same(
    name: str, data, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    system = request.getfixturevalue(name)
    again = type(system).load(system.save(tmp_path / "saved"))
    job = task("number-words")
    assert job.evaluate(again, data) == job.evaluate(system, data)


def test_a_run_without_languages_has_none(data) -> None:
    system = fitted(LotteryTicketSFT.from_preset("smoke", languages=False), data)
    assert system.modules == {}
    found = task("number-words").evaluate(system, data)
    assert found["zero_shot"] == found["task_alone"]


def test_the_published_sizes() -> None:
    sizes = {
        preset: LotteryTicketSFT.from_preset(preset).parameter_count()
        for preset in ("paper", "paper-language")
    }
    # Adapters of reduction 1 and 2 on twelve layers of width 768, and the invertible adapter.
    assert sizes == {
        "paper": 12 * 2 * 768 * 768, "paper-language": 12 * 2 * 768 * 384 + 589_824
    }


# ---- stacked adapters ----------------------------------------------------------------------------


def test_a_coupling_is_inverted() -> None:
    torch.manual_seed(0)
    coupling = Coupling(8, 3)
    for parameter in coupling.parameters():
        nn.init.normal_(parameter, std=0.5)
    e = torch.randn(4, 8)
    assert not torch.allclose(coupling(e), e)
    torch.testing.assert_close(coupling.inverse(coupling(e)), e)


def test_adapters_are_the_identity_at_first_and_off_to_the_bit(data) -> None:
    job = data.train
    batch = job.collate([job.examples[i] for i in range(4)])
    model = job.model()
    before = job.output(model, batch).logits.detach()
    handle = StackedAdapters.from_preset("smoke").sized(model).attach(model, head=job.head)
    assert torch.equal(job.output(model, batch).logits, before)
    with torch.no_grad():
        for parameter in handle.trained().values():
            parameter.add_(0.1)
    assert not torch.allclose(job.output(model, batch).logits, before)
    with handle.off():
        assert torch.equal(job.output(model, batch).logits, before)
    handle.detach()
    assert torch.equal(job.output(model, batch).logits, before)


def test_the_stack_is_language_then_task(data, stacked) -> None:
    """Against the same blocks called one by one."""
    model = stacked.speak(data.train.model(), "kz").eval()
    plain = data.train.model()
    stacked.fitted().only(lambda n: n.startswith("classifier")).apply(plain)
    language, own = adapters_of(stacked.modules["kz"]), adapters_of(stacked.fitted())
    inputs, _ = data.train.collate([data.train.examples[i] for i in range(3)])
    with torch.no_grad():
        h = language.coupling(plain.bert.embeddings(inputs["input_ids"]))
        mask = (1.0 - inputs["attention_mask"][:, None, None].float()) * -1e9
        for number, layer in enumerate(plain.bert.encoder.layer):
            h = layer(h, mask)
            h = h[0] if isinstance(h, tuple) else h
            h = own.bottlenecks[number](language.bottlenecks[number](h))
        found = model.bert(**inputs).last_hidden_state
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[real], h[real], rtol=0, atol=1e-5)


def test_the_source_module_is_frozen_while_the_task_is_learned(data, stacked) -> None:
    assert not any(p.requires_grad for p in adapters_of(stacked.modules["en"]).parameters())
    one = stacked.modules["en"]
    again = StackedAdapters.from_preset("smoke", invertible=True)
    again.fit(data.for_fit(), BUDGET)
    assert all(torch.equal(c.values, again.modules["en"].changes[n].values)
               for n, c in one.changes.items())


def test_sizes_of_adapters() -> None:
    size = size_for(20_000, width=96, blocks=3)
    count = sum(p.numel() for p in Adapters(96, 3, size).parameters())
    more = sum(p.numel() for p in Adapters(96, 3, size + 1).parameters())
    assert count <= 20_000 < more
    with pytest.raises(ConfigError):
        Coupling(7, 2)
    with pytest.raises(ConfigError, match="scale"):
        StackedAdapters.from_preset("smoke").adapt(nn.Linear(1, 1), scale=0.5)


def test_a_finished_run_that_is_resumed_selects_the_same_entries(data, tmp_path: Path) -> None:
    """Every phase comes from its checkpoint: the mask follows from the end of phase 1."""
    runs = []
    for resume in (False, True):
        system = LotteryTicketSFT.from_preset("smoke", iterations=2)
        system.checkpoints, system.resume = tmp_path / "checkpoints", resume
        fitted(system, data)
        runs.append(system)
    first, again = runs
    for name, change in first.fitted().changes.items():
        assert change.same(again.fitted().changes[name]), name
    assert first.modules["kz"].changes.keys() == again.modules["kz"].changes.keys()
