"""Two small systems and a task, brought by a package as an installed plugin would bring them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from passband import catalog

FAKES = Path(__file__).parent / "fakes"


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The catalog with `fakes-line`, `fakes-average` and the task `fakes-line`, here and in every
    process that starts from here."""
    places = [str(FAKES), str(Path(catalog.ROOT).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, places)))
    monkeypatch.setattr(sys, "path", [str(FAKES), *sys.path])
    _forget()
    yield FAKES
    _forget()


def _forget() -> None:
    catalog.cards.cache_clear()
    catalog.tasks.cache_clear()
