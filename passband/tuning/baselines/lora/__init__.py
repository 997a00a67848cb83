"""Adapters of the peft library behind this family's handle: LoRA and others to compare with."""
