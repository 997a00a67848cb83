"""Jobs of the fine-tuning family: adapt a pretrained model, and see what it gained and forgot.

Each task has a pretrained model that ships with a package or is pretrained here once and cached, a
target that the model is adapted to, a retention test on what it knew before, and a test between
the two. The pretrained model and all test sets are the same for every seed; the seed draws the
training examples.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from passband.bench.system import System
from passband.bench.task import Artifact, Data, Metric, Size, Task
from passband.errors import DataError

if TYPE_CHECKING:
    from passband.tuning.adaptation import Exam

# What every row of the family says besides its own target.
COST = (
    Metric("step_seconds", "s", "lower", log=True, about="mean seconds of a training step"),
    Metric("attach_seconds", "s", "lower", log=True,
           about="seconds before the first step: decompositions, calibration"),
    Metric("step_bytes", "B", "lower", log=True,
           about="peak of tensors made in one forward and backward pass"),
    Metric("optimizer_bytes", "B", "lower", log=True, about="state of the optimiser"),
    Metric("adapter_bytes", "B", "lower", log=True, about="tensors of the saved edit"),
    Metric("trainable", "", "lower", log=True, about="trained scalars"),
    Metric("delta_norm", "", "lower", log=True,
           about="Frobenius norm of the change of all weights, a fresh head left out"),
    Metric("intruders", "", "lower",
           about="of the 10 leading left singular vectors of each changed matrix, those with "
           "|cosine| below 0.5 to every one of the pretrained matrix; summed"),
)


class Adapt(Task):
    """A pretrained model, a target, and what it should not forget.

    build  (seed, size) -> Data of an Adaptation with an Exam as its test part, as "module:function"
    read   the same from a user's file and model
    """

    family = "tuning"
    verb = "adapt"
    version = 1
    pareto = (("gain", "forgetting"), ("gain", "step_bytes"), ("gain", "step_seconds"))

    def __init__(
        self, name: str, summary: str, build: str, *, target: Metric, retention: str,
        unit: str, between: str, read: str = "",
    ) -> None:
        self.name, self.summary, self._build, self._read = name, summary, build, read
        self.takes_model = bool(read)
        sign: Literal["higher"] = "higher"
        self.metrics = (
            target,
            Metric("gain", target.unit, sign, about=f"improvement of {target.name}"),
            Metric("forgetting", unit, "lower", about=f"worsening of {retention}"),
            Metric("out_of_domain", unit if between == retention else target.unit, sign,
                   about=f"improvement of {between}"),
            *COST,
        )

    def data(self, seed: int = 0, size: Size = "small", model: Path | None = None) -> Data[Any]:
        return _function(self._build)(seed, size)

    def read(self, path: Path, model: Path | None = None) -> Data[Any]:
        if not self._read:
            raise DataError(
                f"the task {self.name!r} has no reader for user data", expected="its own data",
                mend="your own text goes to the tasks own-text and own-labels",
            )
        return _function(self._read)(path, model)

    def evaluate(self, system: System, data: Data[Any]) -> dict[str, float]:
        from passband.tuning.measures import measure

        exam: Exam | None = data.test
        return measure(system, exam, self.primary) if exam is not None else {}

    def artifacts(self, system: System, data: Data[Any], folder: Path) -> list[Artifact]:
        from passband.tuning.pictures import draw

        return draw(system, data, folder)


class Sequence(Task):
    """Tasks learned one after the other, and what of the earlier ones is left at the end."""

    family = "tuning"
    verb = "adapt"
    version = 1
    pareto = (("score", "forgetting"),)
    metrics = (
        Metric("score", "%", "higher", about="mean over the tasks at the end"),
        Metric("backward_transfer", "%", "higher",
               about="mean over earlier tasks of their score at the end minus when just learned"),
        Metric("forgetting", "bits/byte", "lower", about="worsening of bits/byte on docstrings"),
        *COST,
    )

    def __init__(self, name: str, summary: str, build: str) -> None:
        self.name, self.summary, self._build = name, summary, build

    def data(self, seed: int = 0, size: Size = "small", model: Path | None = None) -> Data[Any]:
        return _function(self._build)(seed, size)

    def evaluate(self, system: System, data: Data[Any]) -> dict[str, float]:
        from passband.tuning.measures import measure_sequence

        return measure_sequence(system, data.test) if data.test is not None else {}


class Transfer(Task):
    """A task that is taught in one language and wanted in others."""

    family = "tuning"
    verb = "adapt"
    version = 1
    pareto = (("zero_shot", "adapter_bytes"), ("zero_shot", "forgetting"))
    metrics = (
        Metric("zero_shot", "%", "higher",
               about="accuracy in languages without any example, with the modules for them if any"),
        Metric("gain", "%", "higher", about="improvement of zero_shot"),
        Metric("forgetting", "nats/token", "lower",
               about="worsening of the masked-LM loss on what was known before"),
        Metric("out_of_domain", "%", "higher",
               about="accuracy in well-known languages without any example, task alone"),
        Metric("task_alone", "%", "higher", about="zero_shot without modules for languages"),
        Metric("source_accuracy", "%", "higher", about="in the language of the examples"),
        Metric("source_fit", "nats/token", "lower",
               about="masked-LM loss on held-out text of the source, language module alone"),
        Metric("target_fit", "nats/token", "lower", about="the same, mean over the targets"),
        *COST,
    )

    def __init__(self, name: str, summary: str, build: str) -> None:
        self.name, self.summary, self._build = name, summary, build

    def data(self, seed: int = 0, size: Size = "small", model: Path | None = None) -> Data[Any]:
        return _function(self._build)(seed, size)

    def evaluate(self, system: System, data: Data[Any]) -> dict[str, float]:
        from passband.tuning.crosslingual import measure_transfer

        return measure_transfer(system, data.test) if data.test is not None else {}


def _function(path: str) -> Callable[..., Data[Any]]:
    module, name = path.split(":")
    found: Callable[..., Data[Any]] = getattr(import_module(module), name)
    return found


_JOBS = "passband.tuning.jobs"
_DIFFUSION = "passband.tuning.diffusion_digits"
_BITS = "bits/byte on held-out docstrings"

_ALL: tuple[Task, ...] = (
    Adapt(
        "lm-arithmetic",
        "a byte-level Llama pretrained on docstrings learns to add two-digit numbers",
        f"{_JOBS}.text:arithmetic", unit="bits/byte", retention=_BITS,
        target=Metric("exact_match", "%", "higher", about="of 500 unseen sums"),
        between="exact match on three-digit sums",
    ),
    Adapt(
        "lm-code",
        "a byte-level Llama pretrained on docstrings learns Python code",
        f"{_JOBS}.text:code", unit="bits/byte", retention=_BITS,
        target=Metric("bits_per_byte", "bits/byte", "lower", about="on held-out code"),
        between="bits/byte on generated JSON",
    ),
    Adapt(
        "lm-json",
        "a byte-level Llama pretrained on docstrings learns generated JSON",
        f"{_JOBS}.text:json", unit="bits/byte", retention=_BITS,
        target=Metric("bits_per_byte", "bits/byte", "lower", about="on held-out JSON"),
        between="bits/byte on Python code",
    ),
    Adapt(
        "lm-cipher",
        "a byte-level Llama pretrained on docstrings learns them again with letters exchanged",
        f"{_JOBS}.text:cipher", unit="bits/byte", retention=_BITS,
        target=Metric("bits_per_byte", "bits/byte", "lower", about="on held-out cipher text"),
        between="bits/byte on Python code",
    ),
    Sequence(
        "lm-sequence",
        "a byte-level Llama learns sums, then Python code, then JSON",
        f"{_JOBS}.text:sequence",
    ),
    Adapt(
        "minilm-packages",
        "the sentence encoder MiniLM (22.7 M) learns which package a docstring comes from",
        f"{_JOBS}.packages:packages", unit="",
        retention="rank (MRR) of the right function for a docstring",
        target=Metric("accuracy", "%", "higher", about="on docstrings of unseen modules"),
        between="accuracy on unseen kinds of docstrings",
    ),
    Adapt(
        "digits-shift",
        "a small vision transformer pretrained on digits learns inverted, rotated ones",
        f"{_JOBS}.digits:shift", unit="%", retention="accuracy on upright digits",
        target=Metric("accuracy", "%", "higher", about="on unseen inverted, rotated digits"),
        between="accuracy on inverted, upright digits",
    ),
    Adapt(
        "digits-biased",
        "a vision transformer pretrained on noisy, imbalanced labels learns from 300 clean ones",
        f"{_JOBS}.digits:biased", unit="%", retention="accuracy of the frequent classes",
        target=Metric("balanced_accuracy", "%", "higher", about="mean over the ten classes"),
        between="accuracy of the five rare classes",
    ),
    Adapt(
        "digits-style",
        "a class-conditional diffusion model of digits learns five of them in a new style; or "
        "your pictures (--data DIR with metadata.jsonl: file_name, text)",
        f"{_DIFFUSION}:style", read=f"{_JOBS}.image_folder:read", unit="%",
        retention="accuracy of the other five classes as drawn",
        target=Metric("fd", "", "lower", about="Frechet distance of drawn to unseen styled digits"),
        between="(minus) Frechet distance to the style in the other five classes",
    ),
    Adapt(
        "digits-ink",
        "the same diffusion model learns dark ink on bright paper",
        f"{_DIFFUSION}:inversion", unit="%",
        retention="accuracy of the other five classes as drawn",
        target=Metric("fd", "", "lower", about="Frechet distance of drawn to unseen styled digits"),
        between="(minus) Frechet distance to the style in the other five classes",
    ),
    Adapt(
        "own-text",
        "your own JSON lines or text (--data FILE), on your own causal LM (--model DIR)",
        f"{_JOBS}.own:text_example", read=f"{_JOBS}.own:text", unit="bits/byte", retention=_BITS,
        target=Metric("bits_per_byte", "bits/byte", "lower", about="on a tenth held out"),
        between=_BITS,
    ),
    Adapt(
        "own-labels",
        "your own JSON lines with text and label (--data FILE), on your encoder (--model DIR)",
        f"{_JOBS}.own:labels_example", read=f"{_JOBS}.own:labels", unit="",
        retention="rank (MRR) of the right function for a docstring",
        target=Metric("accuracy", "%", "higher", about="on a tenth held out"),
        between="rank (MRR) of the right function for a docstring",
    ),
    Transfer(
        "number-words",
        "a small multilingual BERT learns the last digit of numerals in English, for three others",
        "passband.tuning.number_words:number_words",
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
