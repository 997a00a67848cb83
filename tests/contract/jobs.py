"""A tiny piece of work for every verb: what to learn from, and what to look at afterwards.

The contract tests know systems by their cards only; all that depends on the kind of work is here.
A family that brings a new verb adds a `Job` for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from passband import catalog
from passband.bench import loop
from passband.bench.budget import Budget
from passband.bench.randomness import isolated
from passband.bench.system import Monitor, NullMonitor, System
from passband.bench.task import Data
from passband.catalog import Card
from passband.data.pde import Problem


@dataclass(frozen=True)
class Job:
    """One verb's tiny work.

    data     of a card's system, without looking at more than its card
    output   what the verb gives on fixed input, as one array
    parts    the same input in several batches of uneven size, joined again; None where the verb
             has no batches
    budget   enough to have learned something, little enough for seconds
    """

    data: Callable[[Card], Data[Any]]
    output: Callable[[System, Data[Any]], np.ndarray]
    parts: Callable[[System, Data[Any]], np.ndarray] | None = None
    budget: Budget = Budget(steps=20)


# ---- solve -----------------------------------------------------------------------------------

POINTS = np.linspace(0.0, 1.0, 41)[:, None]


def _two_tones(_: Card) -> Data[Problem]:
    """u'' = f with u = sin(2 pi x) + 0.2 cos(9 x) on [0, 1]."""

    def exact(x: np.ndarray) -> np.ndarray:
        return np.sin(2 * np.pi * x) + 0.2 * np.cos(9 * x)

    def source(x: np.ndarray) -> np.ndarray:
        return -((2 * np.pi) ** 2) * np.sin(2 * np.pi * x) - 0.2 * 81 * np.cos(9 * x)

    problem = Problem({"x": (0, 1)}, {"xx": 1.0}, source, exact=exact, name="two tones")
    return Data(train=problem.blind(), name=problem.name)


def _solution(system: Any, _: Data[Any]) -> np.ndarray:
    return np.asarray(system.solution(POINTS))


def _solution_in_parts(system: Any, _: Data[Any]) -> np.ndarray:
    return np.concatenate([system.solution(p) for p in np.split(POINTS, [1, 8, 25])])


# ---- predict: the placeholder of `passband new` ------------------------------------------------


def _own_task(card: Card) -> Data[Any]:
    return catalog.task(card.tasks[0]).data(seed=0, size="smoke")


def _predictions(system: Any, data: Data[Any]) -> np.ndarray:
    return np.asarray(system.predict(data.test.x))


def _predictions_in_parts(system: Any, data: Data[Any]) -> np.ndarray:
    return np.concatenate([system.predict(x) for x in np.split(data.test.x, [1, 50])])


# ---- adapt -------------------------------------------------------------------------------------

IMAGES = np.linspace(0.0, 1.0, 20 * 64, dtype=np.float32).reshape(20, 1, 8, 8)


def _eight_images(_: Card) -> Data[Any]:
    """A small vision transformer, and eight images it gets wrong."""
    from passband.tuning.jobs.digits import shift

    data = shift(seed=0, size="smoke")
    return replace(data, train=replace(data.train, examples=data.train.examples.subset(range(8))))


def _adapted(system: Any, data: Data[Any], images: np.ndarray) -> np.ndarray:
    import torch

    model = system.adapt(data.train.model()).eval()
    with torch.no_grad():
        return model(pixel_values=torch.from_numpy(images)).logits.numpy()


def _logits(system: Any, data: Data[Any]) -> np.ndarray:
    return _adapted(system, data, IMAGES)


def _logits_in_parts(system: Any, data: Data[Any]) -> np.ndarray:
    return np.concatenate([_adapted(system, data, x) for x in np.split(IMAGES, [1, 7])])


# ---- measure -----------------------------------------------------------------------------------


def _leading_values(system: Any, data: Data[Any]) -> np.ndarray:
    """What the report says of the leading singular values of what was tuned."""
    report = system.measure(data.train.model())
    return np.concatenate([layer.sigma for layer in report.layers])


def _noisy_product(_: Card) -> Data[Any]:
    """Sixty points in three dimensions, and a product of two of them with noise."""
    from passband.dynamics.risk_tasks import Regression

    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3))
    y = x[:, :1] * x[:, 1:2] + 0.1 * rng.standard_normal((60, 1))
    return Data(train=Regression(x, y), name="noisy product")


def _predicted_risks(system: Any, _: Data[Any]) -> np.ndarray:
    report = system.measure()
    return np.array([(row.test, row.train, row.ridge) for row in (*report.data, *report.features)])


# ---- separate, enhance, vocode -------------------------------------------------------------------

RATE = 8000


def _voices(count: int, seed: int) -> Any:
    """[count, L] of seven tenths of a second: harmonic tones that come and go."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(0.7 * RATE)) / RATE
    pitch = 90 + 250 * torch.rand(count, 1, generator=generator)
    waves = sum(torch.sin(2 * torch.pi * k * pitch * time) / k for k in range(1, 9))
    return 0.2 * waves * (1 + torch.sin(2 * torch.pi * 3 * time + pitch))


def _speech(input_of: Callable[[Any, int], Any], target_of: Callable[[Any], Any]) -> Any:
    """Data of four pairs made from two voices each, with a copy that a separator may look at."""
    from passband.data.speech.pairs import Example, Fixed

    def data(_: Card) -> Data[Any]:
        pairs = Fixed(
            [Example(input_of(_voices(2, seed), seed), target_of(_voices(2, seed)))
             for seed in range(4)], sample_rate=RATE,
        )
        return Data(train=pairs, valid=pairs, name="harmonic tones")

    return data


def _noisy(voices: Any, seed: int) -> Any:
    import torch

    noise = torch.randn(voices.shape[-1], generator=torch.Generator().manual_seed(100 + seed))
    return voices[0] + 0.1 * noise


def _separated(system: Any, _: Data[Any]) -> np.ndarray:
    return np.asarray(system.separate(_voices(2, 9).sum(0).numpy(), sample_rate=RATE))


def _enhanced(system: Any, _: Data[Any]) -> np.ndarray:
    return np.asarray(system.enhance(_voices(3, 9).numpy(), sample_rate=RATE))


def _enhanced_in_parts(system: Any, _: Data[Any]) -> np.ndarray:
    parts = np.split(_voices(3, 9).numpy(), [1])
    return np.concatenate([system.enhance(x, sample_rate=RATE) for x in parts])


def _mels(system: Any) -> np.ndarray:
    return np.asarray(system.analyse(_voices(3, 9).numpy(), sample_rate=RATE))


def _vocoded(system: Any, _: Data[Any]) -> np.ndarray:
    return np.asarray(system.vocode(_mels(system)))


def _vocoded_in_parts(system: Any, _: Data[Any]) -> np.ndarray:
    return np.concatenate([system.vocode(mel) for mel in np.split(_mels(system), [1])])


# ---- search --------------------------------------------------------------------------------------


def _ambiguous_words(_: Card) -> Data[Any]:
    """300 generated documents, and queries of two words with their relevant documents."""
    from passband.data.documents.topics import ambiguous_topics

    parts = ambiguous_topics(size="smoke")
    return Data(train=parts.train, valid=parts.valid, test=parts.test, name="ambiguous topics")


def _scores(system: Any, data: Data[Any], asked: slice) -> np.ndarray:
    """[Q, N] scores of every document, 0 where it is no hit."""
    hits = system.search(list(data.test.queries.values())[asked], k=len(data.test.corpus))
    found = np.zeros((len(hits.ids), len(data.test.corpus)), dtype=np.float32)
    for row, places, scores in zip(found, hits.places, hits.scores, strict=True):
        row[places] = scores
    return found


def _found(system: Any, data: Data[Any]) -> np.ndarray:
    system.index(data.test.corpus)
    return _scores(system, data, slice(0, 6))


def _found_in_parts(system: Any, data: Data[Any]) -> np.ndarray:
    system.index(data.test.corpus)
    return np.concatenate([_scores(system, data, part) for part in (slice(0, 1), slice(1, 6))])


# ---- flag --------------------------------------------------------------------------------------


def _names(_: Card) -> Data[Any]:
    """Made-up names of functions, a tenth of them with a dangerous word."""
    from passband.data.names.parts import halves

    train, test = halves(names=192, positives=24, seed=0)
    return Data(train=train, test=test, name="made-up names")


def _flagged(system: Any, data: Data[Any]) -> np.ndarray:
    return np.asarray(system.flag(data.test.names).scores)


def _flagged_in_parts(system: Any, data: Data[Any]) -> np.ndarray:
    names = data.test.names
    parts = (names[:1], names[1:100], names[100:])
    return np.concatenate([system.flag(part).scores for part in parts])


# ---- classify ----------------------------------------------------------------------------------


def _labelled_digits(_: Card) -> Data[Any]:
    """Sixteen digits in two groups, and forty others to classify."""
    import torch

    from passband.data.labelled.digits import clean
    from passband.data.labelled.labelled import Labelled

    def part(source: Labelled, n: int) -> Labelled:
        few = source.subset(range(n))
        return replace(few, groups=torch.arange(n) % 2, group_names=("even", "odd"))

    parts = clean()
    return Data(
        train=part(parts.train, 16), valid=part(parts.valid, 16), test=part(parts.test, 40),
        name="sixteen digits",
    )


def _class_scores(system: Any, data: Data[Any]) -> np.ndarray:
    return np.asarray(system.scores(data.test.x.numpy()))


def _class_scores_in_parts(system: Any, data: Data[Any]) -> np.ndarray:
    return np.concatenate([system.scores(x) for x in np.split(data.test.x.numpy(), [1, 14])])


# ---- complete ------------------------------------------------------------------------------------


def _sums(_: Card) -> Data[Any]:
    """Most of a table of sums modulo 13, a tenth of the labels at random."""
    from passband.data.modular import modular_dataset

    whole = modular_dataset(13, "add", alpha=0.8, xi=0.1, seed=0)
    return Data(train=whole.known, test=whole, name="sums modulo 13")


def _entries(system: Any, data: Data[Any]) -> np.ndarray:
    return np.asarray(system.scores(data.test.pairs))


def _entries_in_parts(system: Any, data: Data[Any]) -> np.ndarray:
    pairs = data.test.pairs.numpy()
    return np.concatenate([system.scores(x) for x in np.split(pairs, [1, 50])])


# A verb that means another job in one family has an entry (family, verb), which goes first.
JOBS: dict[str | tuple[str, str], Job] = {
    "complete": Job(_sums, _entries, _entries_in_parts),
    "classify": Job(_labelled_digits, _class_scores, _class_scores_in_parts),
    "flag": Job(_names, _flagged, _flagged_in_parts),
    "search": Job(_ambiguous_words, _found, _found_in_parts),
    "separate": Job(_speech(lambda v, _: v.sum(0), lambda v: v), _separated),
    "enhance": Job(_speech(_noisy, lambda v: v[0]), _enhanced, _enhanced_in_parts),
    "vocode": Job(
        _speech(lambda v, _: v[0], lambda v: v[0]), _vocoded, _vocoded_in_parts,
    ),
    "solve": Job(_two_tones, _solution, _solution_in_parts),
    "adapt": Job(_eight_images, _logits, _logits_in_parts),
    "measure": Job(_eight_images, _leading_values),
    ("dynamics", "measure"): Job(_noisy_product, _predicted_risks),
    "predict": Job(_own_task, _predictions, _predictions_in_parts),
}


# ---- what the tests ask for --------------------------------------------------------------------


def job_of(card: Card) -> Job:
    """The job of the card's first verb."""
    return find_job(card, card.verbs[0])


def find_job(card: Card, verb: str) -> Job:
    """The job of a verb, that of the card's family before the common one."""
    return JOBS[(card.family, verb) if (card.family, verb) in JOBS else verb]


def fit(card: Card, seed: int = 0, monitor: Monitor | None = None) -> System:
    """A system of the preset `smoke` after its job, as the engine would run it."""
    job = job_of(card)
    with isolated(seed):
        system = card.create("smoke", seed=seed)
        system.fit(job.data(card).for_fit(), job.budget, monitor)
    return system


class Losses(NullMonitor):
    """Keeps the training losses that a fit logs, in order."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def log(self, step: int, seconds: float, **values: float) -> None:
        self.values += [values["loss"]] if "loss" in values else []


def trained_by_the_loop(card: Card) -> bool:
    """Whether the module of the system, or of one of its bases, calls the common training loop."""
    modules = {sys.modules[base.__module__] for base in card.load().__mro__}
    return any(loop.train in vars(module).values() for module in modules)


@cache
def fitted(name: str) -> System:
    """The same, shared by the tests that only look at it."""
    return fit(catalog.get(name))


def output(card: Card, system: System) -> np.ndarray:
    job = job_of(card)
    return job.output(system, job.data(card))


def reload_output(name: str, folder: str) -> np.ndarray:
    """What a saved system gives; called in a process that never fitted it."""
    card = catalog.get(name)
    return output(card, card.load().load(folder))
