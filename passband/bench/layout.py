"""The layout of a runs folder.

Apart from `results`, whose locks and hashes take longer to import than `passband list` may.
"""

from __future__ import annotations

RESULTS = "results.jsonl"          # Result rows
CLAIMS = "claims.jsonl"            # ClaimRow rows of judging seeds
CALIBRATION = "calibration.jsonl"  # ClaimRow rows of calibration seeds
CELLS = "cells"                    # cells/<key>/: artifacts of one cell, and
SYSTEM = "system"                  # its saved system,
RUNNING = "running.json"           # who runs it now (or was interrupted),
CURVES = "curves.jsonl"            # its curves so far, for a resume
CHECKPOINT = "checkpoint"          # and the state to resume from; the last three go when it ends
