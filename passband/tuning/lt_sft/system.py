"""LT-SFT as a system: a sparse difference for the task, and one for each language of the job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from passband.bench.budget import Budget
from passband.bench.system import Config
from passband.parts.edits import compose
from passband.tuning.adaptation import Adaptation, Output
from passband.tuning.crosslingual import CrossLingual
from passband.tuning.handle import Handle
from passband.tuning.lt_sft.model import LTSFT
from passband.tuning.lt_sft.multi_source import Collated, SourceBatches, Sources
from passband.tuning.modules import Modules, shared
from passband.tuning.tuner import Tuner, TunerConfig


class LTSFTConfig(TunerConfig):
    """The mask, the phases, and what is left alone. The defaults are the recipe for tasks."""

    density: float = Field(0.05, gt=0, le=1, description="K / maskable parameters, (0, 1]")
    entries: int | None = Field(None, gt=0, description="K itself, in place of density")
    criterion: Literal["lottery", "per_tensor", "random", "bitfit", "first_order", "all"] = Field(
        "lottery", description="how the K entries are chosen; all: dense differences, no mask"
    )
    iterations: int = Field(1, gt=0, le=100, description="rounds of select and rewind, K / J each")
    full_share: float = Field(
        0.5, gt=0, lt=1, description="part of the steps that phase 1 takes (3 / 13 in the paper's "
        "recipe for tokens)"
    )
    l1_full: float = Field(0.0, ge=0, description="weight of the distance to theta0 in phase 1")
    l1_sparse: float = Field(0.0, ge=0, description="weight of the distance to theta0 in phase 2")
    l1_normaliser: Literal["total", "maskable", "none"] = Field(
        "total", description="what the distance is divided by: a number of parameters, or 1"
    )
    l1_maskable_only: bool = Field(False, description="heads have no part in the distance")
    freeze_layer_norm: bool = Field(True, description="norms stay as they are")
    freeze_embeddings: bool = Field(False, description="embedding tables stay as they are")
    freeze_head: bool = Field(False, description="heads stay as they are")
    freeze_decoder: bool = Field(False, description="the output projection stays as it is")
    untie_embeddings: bool = Field(False, description="the output projection has its own weight")
    languages: bool = Field(
        True, description="on a cross-lingual job, learn a module for each language too"
    )
    multi_source: bool = Field(
        False, description="learn the task in every language the job has examples in, each batch "
        "with the module of its language"
    )
    upsampling: dict[str, int] = Field(
        {}, description="of several sources: how often a language's batches come in an epoch"
    )
    language_lr: float | None = Field(None, gt=0, description="of these; null: lr")
    language_l1: float = Field(0.0, ge=0, description="l1_full and l1_sparse of these")


class LotteryTicketSFT(Modules, Tuner):
    """
    >>> from passband import create
    >>> system = create("lt-sft", preset="smoke", density=0.1)
    """

    _sources: Sources | None = None  # of the phase that runs

    Config: ClassVar[type[Config]] = LTSFTConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # Tasks (POS, DP, NER): 3 epochs, then 10. A phase's schedule falls to zero.
        "paper": {
            "architecture": "mbert", "entries": 14_155_776, "full_share": 3 / 13, "lr": 5e-5,
            "batch_size": 8, "schedule": "linear", "warmup": 0.0,
        },
        "paper-nli": {
            "architecture": "mbert", "entries": 14_155_776, "lr": 2e-5, "batch_size": 32,
            "schedule": "linear", "warmup": 0.0,
        },
        "paper-qa": {
            "architecture": "mbert", "entries": 14_155_776, "lr": 3e-5, "batch_size": 12,
            "schedule": "linear", "warmup": 0.0,
        },
        "paper-language": {
            "architecture": "mbert", "entries": 7_667_712, "l1_full": 0.1, "l1_sparse": 0.1,
            "freeze_decoder": True, "untie_embeddings": True, "lr": 5e-5, "batch_size": 8,
            "accumulate": 2, "schedule": "linear", "warmup": 0.0,
        },
        "small": {"steps": 1500, "lr": 1e-3, "schedule": "linear", "warmup": 0.0},
        "smoke": {"steps": 40, "batch_size": 8, "lr": 3e-3, "schedule": "linear", "warmup": 0.0},
    }

    def method(self, targets: tuple[str, ...] = ()) -> LTSFT:
        c = self.config
        return LTSFT(
            density=c.density, count=c.entries, criterion=c.criterion, iterations=c.iterations,
            full_share=c.full_share, l1_full=c.l1_full, l1_sparse=c.l1_sparse,
            l1_normaliser=c.l1_normaliser, l1_maskable_only=c.l1_maskable_only,
            freeze_layer_norm=c.freeze_layer_norm, freeze_embeddings=c.freeze_embeddings,
            freeze_head=c.freeze_head, freeze_decoder=c.freeze_decoder,
            untie_embeddings=c.untie_embeddings,
        )

    def language_method(self) -> LTSFT:
        """Of a language module on a cross-lingual job."""
        weight = self.config.language_l1
        return replace(self.method(), l1_full=weight, l1_sparse=weight)

    def count(self, model: nn.Module) -> int:
        """K, without heads."""
        return self.method().entries(model)

    # ---- languages -----------------------------------------------------------------------------

    def attach(
        self, model: nn.Module, problem: Adaptation, budget: Budget, number: int = 0
    ) -> Handle:
        method = self.language_method() if self.learning else self.method()
        return method.attach(
            model, problem.calibration, head=problem.head, steps=budget.steps, seed=self.seed
        )

    def learning_rate(self, handle: Handle) -> float:
        rate: float = self.config.lr
        return self.config.language_lr or rate if self.learning else rate

    def languages_of(self, problem: CrossLingual) -> Mapping[str, Adaptation]:
        more = problem.sources_texts if self.config.multi_source else {}
        return {**problem.texts, **more}

    def in_language(self, problem: CrossLingual) -> Adaptation:
        """The task on the model that speaks the source language already: its module is frozen.

        Of several sources, each batch puts the module of its language on and off.
        """
        if self.config.multi_source and len(problem.sources) > 1:
            return self._in_languages(problem)
        source = shared(self.modules[problem.source])

        def model() -> nn.Module:
            found = problem.model()
            source.apply(found)
            return found

        return replace(problem, model=model)

    def _in_languages(self, problem: CrossLingual) -> Adaptation:
        batches = SourceBatches(
            problem.sources, self.config.batch_size, upsampling=self.config.upsampling,
            seed=self.seed,
        )

        def output(model: nn.Module, batch: Any) -> Output:
            examples, language = batch
            assert self._sources is not None
            self._sources.use(language)
            return problem.output(model, examples)

        return replace(problem, examples=Collated(batches, problem.collate), output=output)

    def prepare(self, handle: Handle, problem: Adaptation) -> None:
        self._sources = None
        if isinstance(problem.examples, Collated):
            edits = {n: shared(self.modules[n]) for n in problem.examples.batches.examples}
            self._sources = Sources(handle, edits)

    def _measure(self, handle: Handle, problem: Adaptation) -> None:
        super()._measure(handle, problem)
        if self._sources is not None:  # no step took the batch's module away
            self._sources.drop()

    def speak(self, model: nn.Module, language: str, task: bool = True) -> nn.Module:
        """theta0 + phi_task + phi_language, in place; a language without a module adds nothing.

        task  False: the language alone, with the head it was learned with
        """
        module = self.modules.get(language)
        parts = [self.fitted()] if task else []
        if module is not None:
            parts.append(shared(module) if task else module)
        if parts:
            compose(parts).apply(model)
        return model

    def adapt(self, model: nn.Module, scale: float = 1.0) -> nn.Module:
        """The task in the language it was learned in; all differences times `scale`."""
        parts = [self.fitted()]
        if self.source in self.modules:
            parts.append(shared(self.modules[self.source]))
        compose(parts).apply(model, scale=scale)
        return model
