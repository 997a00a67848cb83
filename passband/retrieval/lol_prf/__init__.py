"""LoL: pseudo-relevance feedback that more feedback does not hurt (arXiv 2204.11545)."""
