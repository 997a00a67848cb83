"""Regularisers, diagnostics and theory of training, each beside the control it is judged by."""
