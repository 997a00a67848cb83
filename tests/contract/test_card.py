"""The card says what is there: names, claims, presets, sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from passband import catalog
from passband.bench.system import Config, System
from passband.catalog import FAMILIES, Card
from passband.errors import ConfigError, PassbandError
from tests.contract.jobs import JOBS, find_job

PRESETS = ("paper", "small", "smoke")


def test_the_card_is_complete(card: Card) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", card.id)
    assert card.family in FAMILIES
    assert card.kind in ("system", "baseline")
    assert card.title.strip()
    assert len(card.summary.split()) >= 3
    assert "\n" not in card.summary
    assert card.verbs
    if card.kind == "system":
        assert card.claims, "every system is held against the claims of its paper"
        assert card.tasks, "the first of `tasks` is the default of `passband train`"


def test_the_folder_has_the_id(card: Card) -> None:
    assert card.folder.name == card.id.replace("-", "_")
    parent = card.folder.parent
    assert (parent.name == "baselines") == (card.kind == "baseline")
    assert (parent.parent if card.kind == "baseline" else parent).name == card.family


def test_the_entry_is_a_system_with_the_verbs(card: Card) -> None:
    cls = card.load()
    assert issubclass(cls, System)
    assert tuple(cls.verbs) == card.verbs
    for verb in card.verbs:
        assert callable(getattr(cls, verb)), verb
        assert {verb, (card.family, verb)} & set(JOBS), f"contract/jobs.py: no job for {verb!r}"
        assert find_job(card, verb)


def test_names_on_the_card_exist(card: Card) -> None:
    for name in card.tasks:
        assert catalog.task(name).verb in card.verbs, name
    for name in card.baselines:
        assert set(catalog.get(name).verbs) & set(card.verbs), name
    for claim in card.claims:
        assert claim.statement.strip(), claim.id
        assert claim.reported.strip(), claim.id


def test_every_claim_has_one_proof(card: Card) -> None:
    ids = [claim.id for claim in card.claims]
    assert len(set(ids)) == len(ids)
    proofs = card.proofs()
    assert set(proofs) == set(ids)
    assert all(callable(proof) for proof in proofs.values())


def test_every_preset_is_there_and_builds(card: Card) -> None:
    cls = card.load()
    assert set(PRESETS) <= set(cls.presets)
    for preset in cls.presets:
        with weightless(preset):
            system = card.create(preset)
        assert system.id == card.id
        assert isinstance(system.config, cls.Config)
        counted = card.parameters.get(preset)
        if counted is not None:
            assert system.parameter_count() == counted, preset
    assert set(card.parameters) <= set(cls.presets)


def test_every_field_is_described(card: Card) -> None:
    for name, field in card.load().Config.model_fields.items():
        assert field.description, f"{name} has no description"


def test_wrong_values_are_answered_by_a_config_error_that_names_the_field(card: Card) -> None:
    config = card.load().Config
    for name in config.model_fields:
        with pytest.raises(ConfigError, match=f"'{name}"):
            card.load().configure("small", **{name: object()})
    for name, value in out_of_range(config):
        with pytest.raises(ConfigError, match=f"'{name}"):
            card.load().configure("small", **{name: value})


def test_unknown_fields_and_presets_are_refused(card: Card) -> None:
    with pytest.raises(PassbandError, match="no_such_field"):
        card.create("small", no_such_field=1)
    with pytest.raises(PassbandError, match="no-such-preset"):
        card.create("no-such-preset")


def test_fixed_fields_stay_fixed(card: Card) -> None:
    for name, value in card.config.items():
        assert card.create("smoke").config.model_dump(mode="json")[name] == value
        with pytest.raises(ConfigError, match=name):
            card.create("smoke", **{name: object()})


def weightless(preset: str) -> Any:
    """The full-sized preset is built without memory for its weights."""
    import torch

    return torch.device("meta" if preset == "paper" else "cpu")


def out_of_range(config: type[Config]) -> Iterator[tuple[str, Any]]:
    """One value just outside of each bound that a field declares, and not-a-number for reals."""
    for name, field in config.model_fields.items():
        for bound in field.metadata:
            for kind, step in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)):
                if getattr(bound, kind, None) is not None:
                    yield name, getattr(bound, kind) + step
        if field.annotation is float or float in get_args(field.annotation):
            bounded = any(hasattr(b, k) for b in field.metadata for k in ("ge", "gt", "le", "lt"))
            if bounded:
                yield name, float("nan")
