"""Runs every contract test that takes a `card` over the whole catalog."""

from __future__ import annotations

import pytest

from passband import catalog


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "card" in metafunc.fixturenames:
        cards = list(catalog.cards().values())
        metafunc.parametrize("card", cards, ids=[card.id for card in cards])
