"""Cards are read once and kept; what was kept never stands for another file."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from passband import catalog
from passband.card_cache import CardCache
from passband.errors import ConfigError


def write(path: Path, text: str, when: int = 1) -> Path:
    path.write_text(text)
    os.utime(path, ns=(when, when))
    return path


@pytest.fixture(autouse=True)
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)


def kept(tmp_path: Path, *cards: Path) -> Path:
    file = tmp_path / "cache" / "cards.json"
    cache = CardCache(file)
    for card in cards:
        cache.read(card)
    cache.close()
    return file


def test_the_second_reading_parses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = write(tmp_path / "card.toml", 'a = 1\nb = [0.5, "x"]\n[[claims]]\nid = "C1"\n')
    file = kept(tmp_path, card)
    monkeypatch.setitem(sys.modules, "tomllib", None)  # importing it would raise
    cache = CardCache(file)
    content = cache.read(card)
    assert content == {"a": 1, "b": [0.5, "x"], "claims": [{"id": "C1"}]}
    content.pop("claims")  # what the catalog does
    assert "claims" in cache.read(card)
    before = file.stat().st_mtime_ns
    cache.close()
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize(("text", "when"), [("a = 2", 2), ("a = 22", 1)])
def test_a_changed_file_is_parsed_again(tmp_path: Path, text: str, when: int) -> None:
    card = write(tmp_path / "card.toml", "a = 1")
    file = kept(tmp_path, card)
    write(card, text, when)
    assert CardCache(file).read(card) == {"a": int(text[4:])}


@pytest.mark.parametrize("damage", [
    "", "{", "[]", '{"PATH": 3}', '{"PATH": [1, 5]}', '{"PATH": [1, 5, 7]}', "\x00\xff",
])
def test_a_damaged_cache_is_none(tmp_path: Path, damage: str) -> None:
    card = write(tmp_path / "card.toml", "a = 1")
    file = kept(tmp_path, card)
    file.write_bytes(damage.replace("PATH", str(card)).encode("latin-1"))
    cache = CardCache(file)
    assert cache.read(card) == {"a": 1}
    cache.close()
    assert json.loads(file.read_text())[str(card)][2] == {"a": 1}


def test_where_nothing_can_be_kept_all_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = write(tmp_path / "card.toml", "day = 2025-01-01")  # JSON has no dates
    assert not kept(tmp_path, card).exists()
    write(card, "a = 1")
    (tmp_path / "file").write_text("")
    cache = CardCache(tmp_path / "file" / "cards.json")
    assert cache.read(card) == {"a": 1}
    cache.close()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert not kept(tmp_path, card).exists()


def test_cards_from_the_cache_are_the_cards(tmp_path: Path) -> None:
    path = catalog.get("gp-hm").folder / "card.toml"
    file = kept(tmp_path, path)
    again = catalog.read_card(path, "passband.pde.gp_hm", CardCache(file))
    assert again == catalog.get("gp-hm") and again.claims
    assert replace(again, id="x") != again


@pytest.mark.parametrize("text", ["a = ", "id = 'x'", "\xff"])
def test_a_broken_card_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "card.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"card\.toml"):
        catalog.read_card(path, "room")


def test_the_same_verb_in_two_families_is_other_work():
    risk, diagnosis = catalog.get("rf-eigen"), catalog.get("intruder-dims")
    assert "measure" in risk.verbs and "measure" in diagnosis.verbs
    task = catalog.task("digits-risk")
    assert catalog.enters(risk, task)
    assert not catalog.enters(diagnosis, task)
    assert not catalog.enters(catalog.get("grok"), task)
