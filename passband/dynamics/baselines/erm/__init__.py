"""Empirical risk minimisation: the mean of the domains' risks, no penalty."""
