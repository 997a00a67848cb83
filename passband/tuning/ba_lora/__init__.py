"""BA-LoRA: low-rank tuning with penalties on the output that keep knowledge and diversity."""
