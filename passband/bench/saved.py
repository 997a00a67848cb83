"""Systems by name and from folders: a method that is built on another one gets it here.

>>> create("gp-hm", preset="smoke", kernel="gm").config.kernel
'gm'

A class always comes from the catalog, never from the text of a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from passband import catalog
from passband.bench.layout import SYSTEM
from passband.bench.system import System, read_facts, validate
from passband.catalog import Card
from passband.errors import CheckpointError


def create(name: str, preset: str = "small", *, seed: int = 0, **overrides: Any) -> System:
    """`passband.create`."""
    return catalog.get(name).create(preset, seed=seed, **overrides)


def load(folder: str | Path) -> System:
    """`passband.load`."""
    folder = Path(folder)
    if not (folder / "config.json").exists() and (folder / SYSTEM).is_dir():
        folder /= SYSTEM
    facts = read_facts(folder)
    return _card(facts, f"{folder} holds").load().load(folder)


def facts_of(system: System) -> dict[str, Any]:
    """JSON from which `rebuild` makes the same system, its state aside: for one inside another."""
    return {
        "system": system.id, "class": f"{type(system).__module__}:{type(system).__qualname__}",
        "seed": system.seed, "config": system.config.model_dump(mode="json"),
        "extra": system.extra(),
    }


def rebuild(facts: Mapping[str, Any], state: Mapping[str, Any]) -> System:
    """The system whose `facts_of` and `state()` these are; raises CheckpointError as `load`."""
    cls = _card(facts, "a saved system contains").load()
    system = cls(validate(cls.Config, facts["config"]), seed=facts["seed"])
    system.id = facts["system"]
    system.load_state(state, facts["extra"])
    return system


def _card(facts: Mapping[str, Any], where: str) -> Card:
    name, entry = facts["system"], facts["class"]
    known = catalog.cards()
    # A system that was built directly from its class carries no id: its class has to be an entry.
    card = known.get(name) or next((c for c in known.values() if c.entry == entry), None)
    if card is None:
        raise CheckpointError(
            f"{where} {name or entry!r}, which the catalog doesn't have",
            expected="a system of the catalog (`passband list`)",
            mend="install the package that brings it",
        )
    return card
