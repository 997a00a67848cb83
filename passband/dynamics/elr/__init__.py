"""ELR: classifiers from wrong labels that do not learn them by heart (Liu et al., NeurIPS 2020)."""
