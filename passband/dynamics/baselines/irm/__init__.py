"""Invariant risk minimisation: no domain may gain by scaling the outputs."""
