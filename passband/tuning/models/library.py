"""The transformers library: imported when a model is built, and kept quiet meanwhile."""

from passband.parts.transformers_library import quiet, seeded, transformers, versions

__all__ = ["quiet", "seeded", "transformers", "versions"]
