"""Every system does its work: repeatably, whatever the batch, and again after a reload."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from passband.bench.system import System
from passband.catalog import Card
from passband.errors import CheckpointError
from tests.contract.jobs import (
    Losses,
    fit,
    fitted,
    job_of,
    output,
    reload_output,
    trained_by_the_loop,
)

# A method may adjust something on this tiny work and say so; that is no failure.
pytestmark = pytest.mark.filterwarnings("default::passband.errors.PassbandWarning")


def precision(system: System) -> float:
    """Machine epsilon of the coarsest floating-point array that a system holds."""
    import torch

    dtypes = [torch.as_tensor(array).dtype for array in system.state().values()]
    return max((torch.finfo(d).eps for d in dtypes if d.is_floating_point), default=2**-52)


@pytest.fixture(scope="module")
def another_process() -> Iterator[ProcessPoolExecutor]:
    """A fresh interpreter: nothing of this process is left in it but the files on disk."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        yield pool


def test_fit_says_what_it_spent_and_how_it_chose(card: Card) -> None:
    job = job_of(card)
    found = card.create("smoke").fit(job.data(card).for_fit(), job.budget)
    assert found["selected"]
    # A last step that counts several gradients (a line search) may run over by a tenth, no more:
    # `compare` notes those that do.
    assert 0 <= found["steps"] <= 1.1 * (job.budget.steps or 0)


def test_the_output_is_finite(card: Card) -> None:
    values = output(card, fitted(card.id))
    assert values.size
    assert np.isfinite(values).all()


def test_the_training_loss_falls(card: Card) -> None:
    """On the job's one fixed batch: what does not learn this learns nothing."""
    if not trained_by_the_loop(card):
        pytest.skip("not trained by gradient steps of the common loop")
    losses = Losses()
    fit(card, monitor=losses)
    assert len(losses.values) >= 10
    assert np.mean(losses.values[-3:]) < 0.98 * np.mean(losses.values[:3])


def test_same_seed_same_numbers(card: Card) -> None:
    again = fit(card)
    np.testing.assert_array_equal(output(card, again), output(card, fitted(card.id)))


def test_batches_change_nothing(card: Card) -> None:
    job = job_of(card)
    if job.parts is None:
        pytest.skip("this verb has no batches")
    system, data = fitted(card.id), job.data(card)
    whole = job.output(system, data)
    # A matrix product sums in another order for another shape, and large weights of opposite sign
    # enlarge that: half of the digits are asked for. What depends on its batch misses them by far.
    atol = precision(system) ** 0.5 * np.abs(whole).max()
    np.testing.assert_allclose(job.parts(system, data), whole, rtol=0, atol=atol)


def test_saved_and_loaded_in_a_new_process_it_gives_the_same(
    card: Card, tmp_path: Path, another_process: ProcessPoolExecutor
) -> None:
    system = fitted(card.id)
    folder = system.save(tmp_path / "saved")
    assert {p.name for p in folder.iterdir()} == {"config.json", "state.safetensors"}
    found = another_process.submit(reload_output, card.id, str(folder)).result(timeout=300)
    np.testing.assert_array_equal(found, output(card, system))


def test_what_is_loaded_knows_its_configuration(card: Card, tmp_path: Path) -> None:
    system = fitted(card.id)
    again = card.load().load(system.save(tmp_path / "saved"))
    assert again.id == card.id
    assert again.config == system.config
    assert again.parameter_count() == system.parameter_count()


def test_a_damaged_file_is_named(card: Card, tmp_path: Path) -> None:
    folder = fitted(card.id).save(tmp_path / "saved")
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"state\.safetensors"):
        card.load().load(folder)
