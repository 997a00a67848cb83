"""The verdicts on a claim, in the order in which they are listed.

Apart from `claims`, whose statistics take longer to import than `passband list` may.
"""

from __future__ import annotations

from typing import Literal, get_args

Verdict = Literal["holds", "fails", "inconclusive", "not shown"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
