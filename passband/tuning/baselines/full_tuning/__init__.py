"""Full fine-tuning: all parameters, or all vectors, or all adapted matrices."""
