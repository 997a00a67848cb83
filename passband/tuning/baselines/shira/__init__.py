"""Sparse High Rank Adapters, as peft has it; a card without code of its own."""
