"""MAD-X: stacked adapters for languages and tasks (arXiv 2005.00052)."""
