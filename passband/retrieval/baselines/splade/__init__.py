"""SPLADE with one encoder for queries and documents (Formal et al., 2021)."""
