"""The report drawn: error over points, features and the ridge, with what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from passband.bench.report.style import ACCENT, SECOND, picture, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from passband.dynamics.rf_eigen.report import Report

SIZE = (4.2, 3.1)  # inches


def draw(report: Report, folder: Path) -> list[Path]:
    """data.svg, ridge.svg and, where there are random features, features.svg."""
    kinds = {"data": _data, "ridge": _ridge} | ({"features": _features} if report.features else {})
    written = []
    for name, draw_one in kinds.items():
        with picture(*SIZE) as fig:
            axes = fig.subplots()
            draw_one(axes, report)
            axes.set_ylabel("unexplained variance, %")
            axes.legend()
            written.append(save(fig, folder / f"{name}.svg"))
    return written


def _data(axes: Axes, report: Report) -> None:
    rows = report.data
    n = [row.n for row in rows]
    axes.fill_between(n, [100 * r.low for r in rows], [100 * r.high for r in rows],
                      color=ACCENT, alpha=0.18, linewidth=0)
    axes.plot(n, [100 * r.test for r in rows], color=ACCENT, label="best ridge, predicted")
    sizes, means, errors = np.array(report.measured).T
    axes.errorbar(sizes, 100 * means, 100 * errors, fmt="o", color=SECOND, markersize=3.5,
                  linewidth=1, label="measured")
    axes.axvline(report.points, color="grey", linewidth=0.8, linestyle=":")
    _log(axes, "points")


def _features(axes: Axes, report: Report) -> None:
    rows = [row for row in report.features if np.isfinite(row.k)]
    k = [row.k for row in rows]
    axes.plot(k, [100 * r.test for r in rows], color=ACCENT, label="best ridge, predicted")
    axes.axhline(100 * report.features[-1].test, color="grey", linewidth=0.8, linestyle=":")
    real = [check for check in report.checks if np.isfinite(check.k)]
    axes.plot([c.k for c in real], [100 * c.measured for c in real], "o", color=SECOND,
              markersize=4, label=f"measured, {real[0].n:,} points")
    _log(axes, "random features")


def _ridge(axes: Axes, report: Report) -> None:
    ridge, test, train = (np.array(values) for values in zip(*report.curve, strict=True))
    axes.plot(ridge, 100 * test, color=ACCENT, label="test")
    axes.plot(ridge, 100 * np.maximum(train, 1e-5), color=SECOND, linestyle="--", label="train")
    if report.now.ridge > ridge[0]:
        axes.plot([report.now.ridge], [100 * report.now.test], "o", color=ACCENT, markersize=5,
                  label="best")
    _log(axes, "ridge")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 100 * report.now.test / 300))


def _log(axes: Axes, label: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(label)
    # 6, 20, 300 in place of powers of ten: percentages are read, not compared by magnitude.
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    low, high = axes.get_ylim()
    if high / low < 100:
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    else:
        axes.yaxis.set_minor_formatter(NullFormatter())
