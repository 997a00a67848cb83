"""Intruder dimensions as a system: train an adapter and repair it, or measure what others trained.

>>> base, tuned = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
>>> report = create("intruder-dims").measure(base, tuned)     # or folders of two checkpoints
>>> [layer.name for layer in report.layers], report.count <= 8
(['weight'], True)

    passband train intruder-dims --task digits-shift     an adapter, repaired as validation allows
    passband apply intruder-dims pair.json -o out/       report and heat maps of the user's files
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from passband.bench.budget import Budget
from passband.bench.results import write_atomic
from passband.bench.system import Config, Monitor
from passband.bench.task import Data
from passband.errors import ConfigError
from passband.parts.edits import Edit
from passband.parts.targets import find_targets, weight_of
from passband.tuning.adaptation import Adaptation
from passband.tuning.handle import Handle, Method
from passband.tuning.intruder_dims.adapters import LoRA
from passband.tuning.intruder_dims.bases import kept_bases
from passband.tuning.intruder_dims.equal_quality import DISTANCE, matched, named
from passband.tuning.intruder_dims.files import Checkpoint, Subject, is_subject, read_subject
from passband.tuning.intruder_dims.model import measure
from passband.tuning.intruder_dims.pairs import Weights
from passband.tuning.intruder_dims.repair import Choice, Repair, truncated
from passband.tuning.intruder_dims.report import Report
from passband.tuning.intruder_dims.whole_matrices import WholeMatrices
from passband.tuning.tuner import Tuner, TunerConfig

ROBERTA = (
    "query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense",
)
# Validation metrics of which less is better, where nobody says so.
_LESS = ("loss", "bits", "perplexity", "error")


class IntruderConfig(TunerConfig):
    """The tuned variant and its training, what counts as an intruder, and the repair."""

    variant: Literal["lora", "full"] = Field(
        "lora", description="factors beside the target matrices, or the matrices themselves"
    )
    rank: int = Field(8, gt=0, description="of the factors")
    alpha: float | None = Field(None, gt=0, description="update times rank; null: twice the rank")
    rank_stabilised: bool = Field(False, description="alpha over the root of the rank (rsLoRA)")
    train: Literal["both", "B"] = Field(
        "both", description="both factors, or B alone over a frozen orthonormal A"
    )
    lr_ratio: float = Field(1.0, gt=0, description="learning rate of B over A's (LoRA+: 16)")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the input of the factors")

    k: int = Field(10, gt=0, description="leading singular vectors that are looked at")
    threshold: float = Field(
        0.5, gt=0, le=1, description="largest |cosine| to the base below which one is an intruder"
    )
    side: Literal["left", "right", "both"] = Field(
        "left", description="singular vectors of outputs, of inputs, or unlike on either side"
    )
    within: float = Field(
        0.0, ge=0, lt=1,
        description="base singular values closer than this share count as one subspace",
    )
    heat: int = Field(64, ge=0, description="size of the heat maps; 0: none")

    repair: Literal["intruders", "random", "update", "none"] = Field(
        "intruders", description="what is scaled after training: intruders, as many other leading "
        "directions, the whole update, or nothing"
    )
    which: Literal["top", "all"] = Field(
        "top", description="the first intruder of each matrix, or all among its leading vectors"
    )
    factor: float | None = Field(
        None, ge=0, description="1 leaves, 0 removes, above 1 amplifies; null: the smallest that "
        "validation tolerates"
    )
    tolerance: float = Field(
        0.01, ge=0, description="loss of the validation metric that a repair may cost, as a share"
    )
    judge: str = Field(
        "auto", description="highest NAME or lowest NAME of the task's validation; auto: its first "
        "metric, less being better for losses, bits and errors"
    )
    keep_rank: bool = Field(
        False, description="truncate a repaired adapter to its rank (lossy) in place of adding "
        "one rank for each direction"
    )
    match_metric: float | None = Field(
        None, description="keep the checkpoint whose validation metric is nearest to this"
    )


class IntruderDims(Tuner):
    """
    >>> system = IntruderDims.from_preset("small", rank=1, repair="none")
    """

    Config: ClassVar[type[Config]] = IntruderConfig
    verbs: ClassVar[tuple[str, ...]] = ("adapt", "measure")
    needs_fit: ClassVar[bool] = False  # two checkpoints can be compared without training
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "architecture": "roberta-base", "targets": ROBERTA, "rank": 8, "lr": 1.5e-4,
            "batch_size": 16, "steps": 122_720, "schedule": "linear", "warmup": 0.06,
        },
        "paper-r1": {
            "architecture": "roberta-base", "targets": ROBERTA, "rank": 1, "lr": 3e-4,
            "batch_size": 16, "steps": 122_720, "schedule": "linear", "warmup": 0.06,
        },
        "paper-full": {
            "architecture": "roberta-base", "targets": ROBERTA, "variant": "full", "lr": 1e-5,
            "batch_size": 16, "steps": 122_720, "schedule": "linear", "warmup": 0.06,
        },
        "paper-llama": {"architecture": "llama-2-7b", "rank": 256, "repair": "none"},
        "small": {"lr": 5e-3, "rank": 4},
        "smoke": {"steps": 20, "batch_size": 8, "rank": 2, "lr": 1e-2, "heat": 8},
    }

    # ---- adapt -----------------------------------------------------------------------------

    def method(self, targets: tuple[str, ...]) -> Method:
        c = self.config
        if c.variant == "full":
            return WholeMatrices(targets)
        return LoRA(
            c.rank, c.alpha, c.rank_stabilised, c.train, c.lr_ratio, c.dropout, targets
        )

    def fit(
        self, data: Data[Adaptation], budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        """As every method's, then the repair; the report has `intruders` and `repair`.

        Raises `ConfigError` before training where the job's validation can't judge a repair.
        """
        configured, problem = self.config, data.train
        self._judge = self._check(problem)
        self._repairs: list[dict[str, Any]] = []
        if configured.match_metric is not None:
            problem = _matched(problem, self._judge[0], configured.match_metric)
            self.config = configured.model_copy(update={"select": f"lowest {DISTANCE}"})
        try:
            found = super().fit(replace(data, train=problem), budget, monitor)
        finally:
            self.config = configured
        base = problem.model()
        reports = [self.measure(base, edit, heat=0).facts() for edit in self.edits]
        return found | {"intruders": reports[-1], "rounds": reports, "repair": self._repairs[-1]}

    def finish(self, handle: Handle, problem: Adaptation) -> Edit:
        edit = handle.edit()
        c = self.config
        if c.repair == "none":
            self._repairs.append({"factor": 1.0, "directions": 0, "tried": []})
            return edit
        with handle.off() as model:
            repair = self.mending(model, edit)
            choice = self._choose(repair, model, problem)
        facts = {**choice.to_json(), "directions": repair.count}
        repaired = choice.edit
        if c.keep_rank and c.variant == "lora":
            cut = truncated(repaired, c.rank)
            repaired = cut.edit
            facts["residual"] = max(cut.residual.values(), default=0.0)
        self._repairs.append(facts)
        about = {**edit.about, "repair": {"what": c.repair, "factor": choice.factor}}
        return replace(repaired, about=about)

    def mending(self, base: Weights, edit: Edit) -> Repair:
        """The intervention as configured, on an edit of `base`, ready to be scaled."""
        c = self.config
        return Repair(
            base, edit, k=c.k, eps=c.threshold, which=c.which, side=c.side, seed=self.seed,
            bases=kept_bases(c.side, within=c.within),
        )

    def _choose(self, repair: Repair, model: nn.Module, problem: Adaptation) -> Choice:
        c = self.config
        if c.factor is not None:
            edit = repair.edit(c.factor, c.repair)
            return Choice(c.factor, edit, float("nan"), float("nan"), ())
        metric, better = self._judge
        validation = problem.validation
        assert validation is not None

        def score(adapted: nn.Module) -> float:
            adapted.eval()
            with torch.no_grad():
                return named(validation(adapted), metric)

        return repair.choose(
            model, score, c.tolerance, better=better, relative=True, what=c.repair
        )

    def _check(self, problem: Adaptation) -> tuple[str, Literal["higher", "lower"]]:
        """Metric and direction that judge a repair; asked of the pretrained model once."""
        c = self.config
        judged = c.repair != "none" and c.factor is None
        if not judged and c.match_metric is None:
            return "", "higher"
        if problem.validation is None:
            raise ConfigError(
                f"the job {problem.name!r} has no validation to judge a repair by",
                expected="validation data", mend="give a factor, or repair='none'",
            )
        words = c.judge.split()
        with torch.no_grad():
            values = problem.validation(problem.model().eval())
        if c.judge == "auto":
            name = next(iter(values))
            return name, "lower" if any(word in name for word in _LESS) else "higher"
        if len(words) != 2 or words[0] not in ("highest", "lowest"):
            raise ConfigError(
                f"judge = {c.judge!r}", expected="auto, highest NAME or lowest NAME",
                mend=f"names: {', '.join(values)}",
            )
        named(values, words[1])
        return words[1], "higher" if words[0] == "highest" else "lower"

    # ---- measure ---------------------------------------------------------------------------

    def measure(
        self, base: Weights | str | Path, tuned: Weights | Edit | str | Path | None = None, *,
        names: Iterable[str] | None = None, heat: int | None = None,
        transposed: Iterable[str] = (),
    ) -> Report:
        """How `tuned` differs from `base`: intruders, spectra, heat maps, by matrix.

        base   a model, its tensors by name, or a folder of safetensors
        tuned  the same, or an edit; None: what this system has learned
        Raises `DataError` for names or shapes that differ, and NaN.
        """
        c = self.config
        if isinstance(base, str | Path):
            base = Checkpoint(Path(base))
            transposed = base.transposed
        if isinstance(tuned, str | Path):
            tuned = Checkpoint(Path(tuned))
        return measure(
            base, self.fitted() if tuned is None else tuned, names=names, transposed=transposed,
            k=c.k, eps=c.threshold, side=c.side, heat=c.heat if heat is None else heat,
            bases=kept_bases(c.side, within=c.within),
        )

    # ---- files -----------------------------------------------------------------------------

    def apply_file(self, path: Path, out: Path, monitor: Monitor | None = None) -> list[Path]:
        """The report of two checkpoints, or of a base and an adapter (see `files`).

        Writes `report.json`, `report.txt` and heat maps; with `factor` set also the repaired
        adapter. For a folder of a model alone: this system's own edit of it, merged.
        """
        if not is_subject(path):
            return super().apply_file(path, out, monitor)
        subject = read_subject(path)
        return self._write(subject, out)

    def _write(self, subject: Subject, out: Path) -> list[Path]:
        from passband.tuning.intruder_dims.pictures import draw_heat_maps
        from passband.tuning.peft_bridge import write_peft

        c = self.config
        report = self.measure(subject.base, subject.tuned, transposed=subject.transposed)
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report.to_json(), indent=2)
        written = [out / "report.json", out / "report.txt"]
        write_atomic(written[0], text.encode())
        write_atomic(written[1], report.text().encode())
        written += draw_heat_maps(report, out)
        if c.factor is None or c.repair == "none":
            return written
        edit = subject.tuned
        if not isinstance(edit, Edit):
            edit = Edit.between(subject.base, edit, [layer.name for layer in report.layers])
        repaired = self.mending(subject.base, edit).edit(c.factor, c.repair)
        repaired.save(out / "repaired.safetensors")
        return [*written, out / "repaired.safetensors", *write_peft(repaired, out / "peft")]

    # ---- size ------------------------------------------------------------------------------

    def count(self, model: nn.Module) -> int:
        method = self.method(self.config.targets or ("all-linear",))
        if isinstance(method, LoRA):
            return method.count(model)
        layers = find_targets(model, self.config.targets or ("all-linear",)).values()
        return sum(weight_of(layer)[0].numel() for layer in layers)


def _matched(problem: Adaptation, metric: str, target: float) -> Adaptation:
    """Every round of the job, matched."""
    rounds = tuple(matched(one, metric, target) for one in problem.rounds)
    return replace(matched(problem, metric, target), rounds=rounds)
