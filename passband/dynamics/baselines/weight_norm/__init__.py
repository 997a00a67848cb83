"""Weight normalisation by torch's own parametrization."""
