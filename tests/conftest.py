"""What all tests share: few threads, a cache of their own, repeatable property tests."""

from __future__ import annotations

import os
import signal
import tempfile

# Before NumPy or torch are imported. The problems in tests are small: more threads only wait for
# each other, and the tests' subprocesses inherit this.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")
if "PASSBAND_CACHE" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="passband-tests-")
    os.environ["PASSBAND_CACHE"] = _cache.name

# Shells start background jobs with Ctrl-C ignored, and Python keeps that: tests that interrupt
# need the usual handler.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from hypothesis import settings  # noqa: E402

settings.register_profile("house", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("house")
