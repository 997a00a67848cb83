"""HFT: half fine-tuning. Train half of the matrices, chosen by category; keep the other half."""
