"""TF-GridNet: recurrent networks over bins and frames, attention over frames, complex mapping."""
