"""MAD-X as a system: adapters for each language of a job, and for the task on top of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from passband.bench.budget import Budget
from passband.bench.system import Config
from passband.errors import ConfigError
from passband.parts.edits import Edit
from passband.tuning.adaptation import Adaptation
from passband.tuning.baselines.mad_x.model import (
    MADX,
    PREFIX,
    Adapters,
    adapters_of,
    install,
    places,
    size_for,
)
from passband.tuning.crosslingual import CrossLingual
from passband.tuning.handle import Handle
from passband.tuning.modules import Modules
from passband.tuning.tuner import Tuner, TunerConfig


class MADXConfig(TunerConfig):
    """Sizes of the adapters."""

    density: float = Field(
        0.05, gt=0, le=1, description="adapters' parameters / the base model's, (0, 1]: compares "
        "with a sparse edit of that density; used where a reduction is null"
    )
    reduction: float | None = Field(
        None, gt=0, description="hidden size / bottleneck of the task adapter (16 in the paper)"
    )
    language_reduction: float | None = Field(
        None, gt=0, description="the same of language adapters (2 in the paper)"
    )
    invertible: bool = Field(False, description="an invertible adapter at the embeddings as well")
    skip_last: bool = Field(False, description="MAD-X 2.0: none for languages in the last block")
    languages: bool = Field(True, description="learn modules for languages too")
    language_lr: float | None = Field(None, gt=0, description="of these; null: lr")


class StackedAdapters(Modules, Tuner):
    """
    >>> from passband import create
    >>> system = create("mad-x", preset="smoke")
    """

    Config: ClassVar[type[Config]] = MADXConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "architecture": "mbert", "reduction": 16, "language_reduction": 2, "invertible": True,
            "lr": 1e-4, "batch_size": 8, "schedule": "linear", "warmup": 0.0,
        },
        "small": {"steps": 1500, "lr": 3e-3, "schedule": "linear", "warmup": 0.0},
        "smoke": {"steps": 40, "batch_size": 8, "lr": 1e-2, "schedule": "linear", "warmup": 0.0},
    }

    def method(self, targets: tuple[str, ...] = ()) -> MADX:
        raise ConfigError(
            "MAD-X has no size without a model", expected="a model to count",
            mend="sized(model) gives the method for it",
        )

    def sized(self, model: nn.Module, language: bool = False) -> MADX:
        """The method for a model: bottlenecks by reduction, or by share of its parameters."""
        c, found = self.config, places(model)
        reduction = c.language_reduction if language else c.reduction
        if reduction is not None:
            size = max(1, round(found.width / reduction))
        else:
            base = getattr(model, getattr(model, "base_model_prefix", "") or "", model)
            total = sum(p.numel() for p in base.parameters())
            size = size_for(round(c.density * total), found.width, len(found.blocks))
        invertible = max(1, found.width // 4) if language and c.invertible else 0
        return MADX(size, invertible, language and c.skip_last)

    def count(self, model: nn.Module) -> int:
        """Of a task's adapters, without heads."""
        return sum(p.numel() for p in self.sized(model).build(model).parameters())

    def attach(
        self, model: nn.Module, problem: Adaptation, budget: Budget, number: int = 0
    ) -> Handle:
        below = [] if self.learning or not self.source else [self._language(self.source)]
        return self.sized(model, bool(self.learning)).attach(
            model, head=problem.head, steps=budget.steps, seed=self.seed, below=below
        )

    def learning_rate(self, handle: Handle) -> float:
        rate: float = self.config.lr
        return self.config.language_lr or rate if self.learning else rate

    def in_language(self, problem: CrossLingual) -> Adaptation:
        return replace(problem)

    def _language(self, language: str) -> Adapters:
        return adapters_of(self.modules[language])

    def speak(self, model: nn.Module, language: str, task: bool = True) -> nn.Module:
        """The model with the language's adapters, and the task's on top."""
        parts = [self.modules[language]] if language in self.modules else []
        heads = self.fitted() if task else self.modules.get(language)
        stack = [adapters_of(edit) for edit in parts]
        stack += [adapters_of(self.fitted())] if task else []
        if heads is not None:
            _head(heads).apply(model)
        found = places(model)
        install(found.blocks, stack, embeddings=found.embeddings, lm_head=found.lm_head)
        return model

    def adapt(self, model: nn.Module, scale: float = 1.0) -> nn.Module:
        """The task in its own language. Adapters can't be scaled: `scale` has to be 1."""
        if scale != 1.0:
            raise ConfigError(
                f"scale = {scale} for adapters", expected="1: they are modules, no differences"
            )
        return self.speak(model, self.source)


def _head(edit: Edit) -> Edit:
    return edit.only(lambda name: not name.startswith(PREFIX))
