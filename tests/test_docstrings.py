"""The examples in docstrings run and give what they say."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import passband
from passband import create
from passband.pde import Problem

# The building blocks and the methods: what people copy from.
PLACES = (
    "passband.errors", "passband.bench.budget", "passband.bench.part", "passband.parts.",
    "passband.data.", "passband.pde.gp_hm.", "passband.pde.baselines.",
    "passband.tuning.", "passband.speech.", "passband.retrieval.",
    "passband.dynamics.",
)
MODULES = sorted(
    name for _, name, package in pkgutil.walk_packages(passband.__path__, "passband.")
    if name.startswith(PLACES) and not package and not name.endswith(".claims")
)


# Given to every example, besides what its module imports itself.
NAMES = {"np": np, "torch": torch, "nn": nn, "Path": Path, "create": create, "Problem": Problem}


def tuning_names():
    """A tiny model to adapt; transformers is imported where it is asked for only."""
    from passband.tuning.models import byte_lm

    return {"byte_lm": byte_lm}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)  # examples write files where they are run
    names = NAMES | (tuning_names() if name.startswith("passband.tuning.") else {})
    found = doctest.testmod(
        module, extraglobs=names, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert not found.failed
