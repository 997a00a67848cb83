"""The examples in docstrings run and give what they say."""

import doctest
import importlib
import pkgutil

import numpy as np
import pytest
import torch

import passband
from passband import create
from passband.pde import Problem

# The building blocks and the methods: what people copy from.
PLACES = (
    "passband.errors", "passband.bench.budget", "passband.parts.",
    "passband.data.", "passband.pde.gp_hm.", "passband.pde.baselines.",
    "passband.tuning.diffusion", "passband.tuning.sara.",
    "passband.tuning.intruder_dims.",
    "passband.tuning.lt_sft.", "passband.tuning.baselines.mad_x.", "passband.tuning.number_words",
    "passband.tuning.crosslingual",
)
MODULES = sorted(
    name for _, name, package in pkgutil.walk_packages(passband.__path__, "passband.")
    if name.startswith(PLACES) and not package and not name.endswith(".claims")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    names = {"np": np, "torch": torch, "create": create, "Problem": Problem}
    found = doctest.testmod(
        module, extraglobs=names, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert not found.failed
