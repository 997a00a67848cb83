"""Inference-free sparse retrieval with an IDF-aware FLOPS penalty (Geng et al., 2024)."""
