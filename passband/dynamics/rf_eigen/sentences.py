"""The report in words: one decision a sentence, each with its numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from passband.dynamics.rf_eigen.report import Report, Row

WITHIN = 1.05  # of the error at infinite width: enough features


def sentences(report: Report) -> list[str]:
    """Ridge, data, features, control: what to do, and how far to trust it."""
    said = [_now(report), _ridge(report), _data(report)]
    if report.features:
        said.append(_features(report))
    said.append(_task(report))
    if report.checks:
        said.append(_control(report))
    return said


def _now(report: Report) -> str:
    row = report.now
    return (
        f"With all {row.n:,} points and the kernel {report.kernel}, the best ridge leaves "
        f"{percent(row.test)} of the targets' variance unexplained ({span(row)})."
    )


def _ridge(report: Report) -> str:
    now, cost = report.now, report.interpolation_cost - 1
    ratio = f"there, the training error is {report.fitting_ratio:.2g} of the test error"
    if report.advice == "interpolate":
        if now.ridge == 0:
            return "Less ridge: none is best. Interpolate the training targets."
        return (
            f"Less ridge: interpolating the training targets costs {percent(cost)} more error than "
            f"the best ridge {now.ridge:.3g}, within what theory resolves; {ratio}. Interpolate."
        )
    return (
        f"Less ridge: keep it. Interpolating the training targets would give "
        f"{percent(now.no_ridge)}, {percent(cost)} more error than the best ridge "
        f"{now.ridge:.3g} (added to the kernel matrix, not divided by n); {ratio}."
    )


def _data(report: Report) -> str:
    now = report.now
    more = [row for row in report.data if row.n > now.n]
    parts = [
        f"{row.n / now.n:.2g} times the points ({row.n:,}) {percent(row.test)} ({span(row)})"
        for row in more
    ]
    saved = 1 - more[0].test / now.test
    half = next((row for row in report.data if row.n == round(now.n / 2)), None)
    fewer = f" Half of them would do with {percent(half.test)}." if half else ""
    return (
        f"More data: {', '.join(parts)}. Doubling removes {percent(saved)} of the error that is "
        f"left.{fewer}"
    )


def _features(report: Report) -> str:
    limit = report.features[-1].test
    enough = next(row for row in report.features if row.test <= WITHIN * limit)
    shown = [
        row for row in report.features[:-1]
        if row.k in (64, 256, 1024, 4096) and row.k < enough.k
    ]
    parts = [f"{int(row.k):,} random features {percent(row.test)}" for row in shown]
    count = "more than a million" if math.isinf(enough.k) else f"{int(enough.k):,}"
    before = f"{', '.join(parts)}; " if parts else ""
    return (
        f"More features: {before}{count} come within 5 % of what infinitely many give "
        f"({percent(limit)}). With a tuned ridge more never hurt; without one, stay away from "
        f"about {report.points:,} features, where the error peaks."
    )


def _task(report: Report) -> str:
    low, high = map(percent, report.noise_range)
    return (
        f"The task: eigenvalues fall as i^-{report.alpha:.2f}, the target's power beyond the "
        f"leading modes as i^-{report.beta:.2f}; {low} to {high} of the variance is noise, or "
        f"nothing that this kernel can learn. Theory and the measured errors are "
        f"{percent(report.misfit)} apart."
    )


def _control(report: Report) -> str:
    parts = [
        f"{check.what}: {percent(check.predicted)}, measured {percent(check.measured)} "
        f"({100 * check.apart:+.0f} %)"
        for check in report.checks
    ]
    return f"Control, at {report.checks[0].n:,} points: {'; '.join(parts)}."


def percent(share: float) -> str:
    """
    >>> percent(0.12345), percent(0.0012345), percent(1.5), percent(0)
    ('12.3 %', '0.12 %', '150 %', '0 %')
    """
    value = 100 * share
    if abs(value) >= 99.95:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if abs(value) >= 1 else f"{value:.2g} %"


def span(row: Row) -> str:
    return f"{percent(row.low)} to {percent(row.high)}"
