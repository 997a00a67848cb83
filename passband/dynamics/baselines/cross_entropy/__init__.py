"""The plain classifier, with label smoothing and mixup as options."""
