"""Sparse fine-tuning whose positions move: SpIEL."""
