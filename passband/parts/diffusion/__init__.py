"""Score-based diffusion: stochastic processes, and samplers that run them backwards."""

from __future__ import annotations

from passband.parts.diffusion.correctors import (
    AnnealedLangevin,
    Corrector,
    Langevin,
    NoCorrector,
)
from passband.parts.diffusion.predictors import (
    EulerMaruyama,
    NoPredictor,
    Predictor,
    ReverseDiffusion,
)
from passband.parts.diffusion.samplers import PredictorCorrector, ProbabilityFlow, Sampler
from passband.parts.diffusion.sde import OUVE, SDE, VE

__all__ = [
    "OUVE", "SDE", "VE", "AnnealedLangevin", "Corrector", "EulerMaruyama", "Langevin",
    "NoCorrector", "NoPredictor", "Predictor", "PredictorCorrector", "ProbabilityFlow",
    "ReverseDiffusion", "Sampler",
]
