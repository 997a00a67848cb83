"""Rocchio's relevance feedback on the passages that were found first."""
