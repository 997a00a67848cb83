"""The report: complete, offline, safe against what rows contain, and made whatever is damaged."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passband.bench.claims import Evidence, judge, not_shown
from passband.bench.prove import ClaimRow
from passband.bench.report import charts, claims_markdown, claims_table, comparison, write_report
from passband.bench.report.artifacts import clean_svg
from passband.bench.report.tables import SYMBOLS, duration, figure, mean, size
from passband.bench.results import CLAIMS, RESULTS, Result, RowsFile
from passband.bench.run import Cell
from passband.bench.task import Artifact
from passband.bench.verdict import VERDICTS

EVIL = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>"


def row(**changes: Any) -> Result:
    plain = Result(
        key="", system="chebyshev", preset="small", overrides={}, task="poisson1d-mix",
        task_version=1, size="small", seed=0, metrics={"relative_l2": 1e-3, "max_error": 2e-3},
        seconds={"fit": 1.5, "evaluate": 0.1}, peak_memory=3_000_000, parameters=92,
        file_bytes=10, budget={}, spent={}, selected="last", versions={"numpy": "9.9.9"},
        code_hash="c0de", dirty=False, machine={"cpu": "A1", "memory": 8_000_000_000},
        when="2025-01-01T00:00:00.000000Z",
    )
    asked = replace(plain, **changes)
    limits = ", ".join(f"{value:g} {name}" for name, value in asked.budget.items())
    key = Cell(
        asked.system, asked.task, asked.preset, asked.size, asked.seed, limits.replace(
            "seconds", "s"), asked.overrides, asked.data.get("path", ""),
    ).key
    return replace(asked, key=key)


def claim(evidence: Evidence, **changes: Any) -> ClaimRow:
    plain = ClaimRow(
        system="gp-hm", claim="C1", statement="errors are small", reported="1e-6", source="Table 1",
        evidence=evidence, seconds=3.0, when="2025-01-01T00:00:00.000000Z", scale="full",
        calibrate=False, code_hash="c0de", dirty=False, versions={}, command="passband reproduce x",
    )
    return replace(plain, **changes)


def every_verdict() -> list[ClaimRow]:
    found = [
        judge([1e-7, 1.5e-7, 2e-7], margin=1e-5, better="lower", log=True),
        judge([3.0, 3.1, 2.9], margin=1.0, better="lower"),
        judge([0.5, 1.6], margin=1.0, better="lower"),
        not_shown("10 GPU hours"),
    ]
    assert [e.verdict for e in found] == list(VERDICTS)
    return [claim(e, claim=f"C{i}") for i, e in enumerate(found, start=1)]


def write(runs: Path, results: list[Result] = [], claims: list[ClaimRow] = []) -> Path:  # noqa: B006
    RowsFile(runs / RESULTS, Result).extend(results)
    RowsFile(runs / CLAIMS, ClaimRow).extend(claims)
    return runs


class Page(HTMLParser):
    """Tags with attributes, and the text outside of style and script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.skip = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.skip = tag if tag in ("style", "script") else self.skip

    def handle_endtag(self, tag: str) -> None:
        self.skip = "" if tag == self.skip else self.skip

    def handle_data(self, data: str) -> None:
        if not self.skip:
            self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


# ---- the page --------------------------------------------------------------------------------


def test_every_verdict_is_shown_with_word_symbol_and_command(tmp_path: Path) -> None:
    page = Page(write_report(write(tmp_path, claims=every_verdict())))
    for verdict in VERDICTS:
        assert f"{SYMBOLS[verdict]} {verdict}" in page.text
    assert "needs 10 GPU hours" in page.text
    assert page.text.count("passband reproduce x") == 4
    assert "Of 4 claims of gp\u2011hm, 1 holds, 1 fails, 1 is inconclusive" in page.text


def test_nothing_is_asked_of_the_network(tmp_path: Path) -> None:
    artifact = asdict(Artifact("image", "picture", "p.svg"))
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "p.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        'viewBox="0 0 4 2"><image xlink:href="http://evil.example/a.png"/>'
        '<rect id="r" width="1" height="1" fill="url(http://evil.example/b)"/></svg>'
    )
    path = write_report(write(
        tmp_path, [row(folder="f", artifacts=[artifact]), row(system="pinn")], every_verdict()
    ))
    page = Page(path)
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            value = attributes.get(name) or ""
            assert value == "" or value.startswith(("#", "data:")), (name, value)
    assert "http://" not in path.read_text(encoding="utf-8")
    assert "https://" not in path.read_text(encoding="utf-8")
    assert not page.of("link") and not page.of("iframe")
    policy = next(m["content"] for m in page.of("meta") if m.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'")


def test_the_security_policy_lets_our_script_run(tmp_path: Path) -> None:
    import base64
    import hashlib

    text = write_report(write(tmp_path)).read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_names_and_texts_cannot_inject(tmp_path: Path) -> None:
    artifacts = [asdict(Artifact("image", EVIL, "missing.png", EVIL, EVIL))]
    evidence = replace(
        judge([1.0, 1.1], margin=2.0, better="lower", unit=EVIL),
        details={"columns": [EVIL], "rows": [[EVIL]]},
    )
    path = write_report(write(
        tmp_path,
        [
            row(system=EVIL, task=EVIL, preset=EVIL, metrics={EVIL: 1.0}, artifacts=artifacts,
                curves={"seconds": [1.0, 2.0], EVIL: [1.0, 0.5]}, folder=EVIL,
                versions={EVIL: EVIL}, machine={EVIL: EVIL}, code_hash=EVIL, when=EVIL),
            row(task=EVIL, metrics={EVIL: 2.0}, error=EVIL),
            row(task=EVIL, system="b", metrics={EVIL: 2.0}),
        ],
        [claim(evidence, system=EVIL, claim=EVIL, statement=EVIL, reported=EVIL, command=EVIL)],
    ))
    page = Page(path)
    assert len(page.of("script")) == 1
    assert not page.of("img")
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
    assert "alert('x')" in page.text  # shown as text


def test_a_torn_file_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    write(tmp_path, [row(), row(system="pinn")], every_verdict())
    with (tmp_path / RESULTS).open("a") as file:
        file.write('{"key": "x", "system": "torn-sys')
    with (tmp_path / CLAIMS).open("ab") as file:
        file.write(b"\xff\xfe not json\n[1, 2]\n")
    page = Page(write_report(tmp_path))
    assert "results.jsonl, line 3: not a whole row" in page.text
    assert "claims.jsonl, line 5: not a whole row" in page.text
    assert "claims.jsonl, line 6: not a whole row" in page.text
    assert "chebyshev" in page.text and "torn-sys" not in page.text


def test_an_empty_or_missing_folder_still_makes_a_page(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "none", tmp_path / "out" / "r.html"))
    assert "Nothing has been run yet." in page.text
    assert "results.jsonl is missing" in page.text


def test_missing_artifacts_and_paths_outside_are_named(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("TOPSECRET")
    runs = tmp_path / "runs"
    artifacts = [
        asdict(Artifact("image", "gone", "gone.png")),
        asdict(Artifact("table", "stolen", "../../secret.txt")),
    ]
    page = Page(write_report(write(runs, [row(folder="cells", artifacts=artifacts)])))
    assert "cells/gone.png is missing" in page.text
    assert "lies outside the runs folder" in page.text
    assert "TOPSECRET" not in page.text


def test_sounds_tables_and_pictures_are_inlined(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "a.wav").write_bytes(b"RIFF0000WAVE")
    table = {"columns": ["k"], "rows": [["cell one"], [0.5]]}
    (folder / "t.json").write_text(json.dumps(table))
    (folder / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(11) + b"\4\0\0\0\2")
    artifacts = [
        asdict(Artifact("audio", "before", "a.wav", group="g")),
        asdict(Artifact("table", "numbers", "t.json")),
        asdict(Artifact("image", "map", "p.png")),
    ]
    page = Page(write_report(write(tmp_path, [row(folder="c", artifacts=artifacts)])))
    assert (page.of("audio")[0]["src"] or "").startswith("data:audio/wav;base64,UklGR")
    assert page.of("img")[0]["alt"] == "map"
    assert "cell one" in page.text


def test_hundreds_of_rows_stay_small(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "p.png").write_bytes(bytes(2_500_000))
    times = list(np.arange(1.0, 501.0))
    rows = [
        row(
            system=f"s{i % 30}", task=f"t{i // 30}", folder="c", metrics={"m": float(i + 1)},
            curves={"seconds": times, "m": times},
            artifacts=[asdict(Artifact("image", "map", "p.png"))],
        )
        for i in range(300)
    ]
    path = write_report(write(tmp_path, rows))
    assert path.stat().st_size < 20_000_000
    assert "left out to keep this page small" in Page(path).text


def test_keyboard_and_screen_readers_have_what_they_need(tmp_path: Path) -> None:
    page = Page(write_report(write(tmp_path, [row(), row(system="pinn")], every_verdict())))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert page.of("a")[0] == {"class": "skip", "href": "#main"}
    for anchor in page.of("a"):
        assert (anchor["href"] or "")[1:] in ids
    for svg in page.of("svg"):
        assert svg.get("aria-hidden") == "true" or svg.get("aria-label")
    assert all(b["type"] == "button" for b in page.of("button"))
    assert any(h.get("aria-sort") == "none" for h in page.of("th"))


# ---- the tables ------------------------------------------------------------------------------


def test_the_newest_row_counts_and_full_scale_beats_smoke(tmp_path: Path) -> None:
    good = judge([1.0, 1.1], margin=2.0, better="lower")
    bad = judge([3.0, 3.1], margin=2.0, better="lower")
    write(tmp_path, [
        row(when="2025-01-02", metrics={"relative_l2": 5.0}),
        row(when="2025-01-01", metrics={"relative_l2": 7.0}),
    ], [
        claim(bad, when="2025-01-01"), claim(good, when="2025-01-02"),
        claim(bad, when="2025-01-03", scale="smoke"),
    ])
    (table,) = comparison(tmp_path)
    assert table.entries[0].metrics["relative_l2"].value == 5.0
    ((only,),) = [group.rows for group in claims_table(tmp_path)]
    assert (only.evidence.verdict, only.scale) == ("holds", "full")


def test_log_metrics_are_averaged_geometrically() -> None:
    number = mean([1e-2, 1e-4, 1e-6], log=True)
    assert number is not None and number.geometric
    assert number.value == pytest.approx(1e-4)
    # Standard error of the decimal logarithms -2, -4, -6: 2 / sqrt(3).
    assert number.spread == pytest.approx(10 ** (2 / math.sqrt(3)))
    plain = mean([1.0, 2.0, 3.0])
    assert plain is not None
    assert (plain.value, plain.spread) == (2.0, pytest.approx(1 / math.sqrt(3)))
    assert mean([math.nan, None]) is None
    zero = mean([0.0, 1.0], log=True)
    assert zero is not None and not zero.geometric and zero.value == 0.5


def test_best_is_marked_and_broken_entries_can_not_be_best(tmp_path: Path) -> None:
    write(tmp_path, [
        row(system="a", metrics={"relative_l2": 1e-6, "max_error": 1.0}),
        row(system="a", seed=1, metrics={}, error="ValueError: diverged"),
        row(system="b", metrics={"relative_l2": 1e-4, "max_error": 1.0}),
        row(system="c", metrics={"relative_l2": 1e-3, "max_error": 0.5}, parameters=1),
    ])
    (table,) = comparison(tmp_path)
    best = {entry.name: entry.best for entry in table.entries}
    assert [entry.name for entry in table.entries] == ["a", "b", "c"]
    assert best["a"] == set()
    assert "relative_l2" in best["b"] and "max_error" not in best["b"]
    assert {"max_error", "parameters"} <= best["c"]
    page = Page(write_report(tmp_path))
    assert "1 of 2 failed" in page.text and "ValueError: diverged" in page.text


def test_a_metric_that_no_row_has_is_no_column(tmp_path: Path) -> None:
    write(tmp_path, [row(metrics={"relative_l2": 1e-3}), row(seed=1, metrics={}, error="no")])
    (table,) = comparison(tmp_path)
    assert [metric.name for metric in table.metrics] == ["relative_l2"]


def test_a_metric_that_is_no_number_is_a_broken_seed(tmp_path: Path) -> None:
    """As other programs may write it; the engine itself makes it an error."""
    write(tmp_path, [
        row(system="a", metrics={"relative_l2": math.nan, "max_error": 1.0}),
        row(system="a", seed=1, metrics={"relative_l2": 1e-3, "max_error": 1.0}),
    ])
    (table,) = comparison(tmp_path)
    (entry,) = table.entries
    assert entry.broken == 1 and entry.metrics["relative_l2"].value == pytest.approx(1e-3)
    assert "damaged" not in Page(write_report(tmp_path)).text


def test_sizes_presets_and_budgets_are_kept_apart(tmp_path: Path) -> None:
    write(tmp_path, [
        row(), row(size="smoke"), row(preset="paper"), row(budget={"seconds": 60.0}), row(seed=1),
    ])
    tables = {table.data: table for table in comparison(tmp_path)}
    assert set(tables) == {"small data", "smoke data"}
    entries = tables["small data"].entries
    assert sorted((e.detail, e.n) for e in entries) == [
        ("paper", 1), ("small", 2), ("small · 60 s", 1)
    ]
    assert len({e.style for e in entries}) == 3
    assert len({e.style % len(charts.PALETTE) for e in entries}) == 1  # one system, one colour


def test_markdown_has_one_row_a_claim(tmp_path: Path) -> None:
    write(tmp_path, claims=[claim(not_shown("a | b"), statement="x < y | z\nnext")])
    lines = claims_markdown(tmp_path).splitlines()
    (line,) = [text for text in lines if text.startswith("| C1")]
    assert len(re.findall(r"(?<!\\)\|", line)) == 6
    assert r"x &lt; y \| z next" in line and "○ not shown (needs a" in line
    assert claims_markdown(tmp_path / "none") == "No claim has been judged yet.\n"


@pytest.mark.parametrize(("value", "text"), [
    (2.413e-8, "2.41 × 10⁻⁸"), (0.05124, "0.0512"), (-1.5, "−1.50"), (9.999e-4, "0.00100"),
    (1234.0, "1230"), (0.0, "0"), (math.inf, "∞"), (math.nan, "not a number"), (99.99, "100"),
])
def test_figures(value: float, text: str) -> None:
    assert figure(value) == text


def test_durations_and_sizes() -> None:
    assert [duration(s) for s in (0.412, 75.0, 7300.0)] == ["0.412 s", "1.25 min", "2.03 h"]
    assert [size(92, ""), size(3_200_000), size(132_609, "")] == ["92", "3.2 MB", "133 k"]


# ---- drawings --------------------------------------------------------------------------------


@pytest.mark.parametrize("x", ["lower", "higher"])
@pytest.mark.parametrize("y", ["lower", "higher"])
def test_the_front_holds_exactly_the_unbeaten_points(x: str, y: str) -> None:
    rng = np.random.default_rng(0)
    points = [tuple(p) for p in rng.uniform(1, 2, (40, 2))]
    sign = np.array([1 if better == "lower" else -1 for better in (x, y)])
    unbeaten = {
        p for p in points
        if not any((sign * q <= sign * p).all() and q != p for q in points)
    }
    assert set(charts.front_of(points, x, y)) == unbeaten


def test_log_axes_put_decades_at_equal_steps() -> None:
    axis = charts.Axis.over([1e-8, 1.0], True, 0.0, 100.0)
    steps = np.diff([axis(t) for t in axis.ticks()])
    assert np.allclose(steps, steps[0]) and steps[0] > 0
    narrow = charts.Axis.over([0.11, 0.19], True, 0.0, 1.0)
    assert len(narrow.ticks()) >= 2
    assert all(narrow.low <= t <= narrow.high for t in narrow.ticks())


def test_the_glyph_shades_the_side_where_the_claim_holds() -> None:
    def shaded(better: str) -> tuple[float, float, float]:
        svg = str(charts.interval_glyph(1.0, 0.8, 1.2, 2.0, better, "x"))
        found = re.findall(r'class="good" x="([\d.]+)".*?width="([\d.]+)"', svg)
        left, width = map(float, found[0])
        mean_at = float(re.findall(r'cx="([\d.]+)"', svg)[0])
        return left, left + width, mean_at

    left, right, at = shaded("lower")
    assert left < at < right
    left, right, at = shaded("higher")
    assert at < left < right
    assert charts.interval_glyph(None, None, None, 1.0, "lower", "x") is None


def test_curves_skip_what_a_logarithm_can_not_draw() -> None:
    lines = [[(0.0, 1.0), (1.0, math.nan), (2.0, 0.0)]]
    assert charts.curves([charts.Series("a", 0, lines)], "m", log_y=True) is None
    assert charts.curves([charts.Series("a", 0, [[(1.0, 0.0)]])], "m", log_y=False) is not None


def test_svg_is_cleaned_and_ids_made_unique() -> None:
    dirty = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 30 10" onload="alert(1)">'
        "<script>alert(1)</script><style>*{display:none}</style>"
        "<foreignObject><p/></foreignObject>"
        '<defs><clipPath id="c"><rect width="1" height="1"/></clipPath></defs>'
        '<g clip-path="url(#c)" style="fill: red"><use href="#c"/>'
        '<a href="javascript:x"/></g></svg>'
    )
    svg, box = clean_svg(dirty, "a7-", "title")
    assert box == (30.0, 10.0)
    for word in ("script", "style>", "foreign", "onload", "javascript", "alert"):
        assert word not in svg
    assert 'id="a7-c"' in svg and "url(#a7-c)" in svg and 'href="#a7-c"' in svg
    assert "fill: red" in svg
    with pytest.raises(ValueError, match="not an SVG"):
        clean_svg("<html/>", "", "")


# ---- one measure against another -------------------------------------------------------------


NAMES = ("hft", "sara", "ba-lora", "sorsa", "corda", "s2ft", "intruder-dims", "nm-flow", "lt-sft",
         "spiel", "s3ft", "gs-lora", "pretrained-thesis", "full-fine-tuning")
PLACES = {
    "spread": lambda rng, n: (rng.uniform(1, 9, n), rng.uniform(1, 9, n)),
    "in clusters": lambda rng, n: (rng.choice([1.0, 5.0], n) + rng.normal(size=n) / 99,
                                   rng.choice([1.0, 5.0], n) + rng.normal(size=n) / 99),
    "in one place": lambda rng, n: (np.full(n, 2.0), np.full(n, 3.0)),
    "on a line": lambda rng, n: (np.arange(1.0, n + 1), np.arange(1.0, n + 1)),
    "one above the other": lambda rng, n: (np.full(n, 2.0), np.arange(1.0, n + 1)),
}


def dots(x: Any, y: Any, names: tuple[str, ...] = NAMES) -> list[charts.Point]:
    return [
        charts.Point(name, i, charts.Span(a, a, a), charts.Span(b, b, b))
        for i, (name, a, b) in enumerate(zip(names, map(float, x), map(float, y), strict=False))
    ]


def boxes(svg: str) -> list[tuple[str, float, float, float, float]]:
    """(name, left, top, right, bottom) of every name in a chart, letters 6.6 px wide."""
    found = re.findall(
        r'class="direct" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)<', svg
    )
    out = []
    for x, y, anchor, text in found:
        wide = 6.6 * len(text)
        left = float(x) - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
        out.append((text, left, float(y) - 10, left + wide, float(y) + 3))
    return out


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("how", PLACES)
def test_fourteen_names_stand_apart_from_each_other_and_all_markers(how: str, log: bool) -> None:
    x, y = PLACES[how](np.random.default_rng(1), 14)
    svg = str(charts.pareto(
        dots(x, y), charts.Measure("cost", "lower", log), charts.Measure("error", "lower", log)
    ))
    labels = boxes(svg)
    assert sorted(label[0] for label in labels) == sorted(NAMES)
    height = float(re.findall(r'viewBox="0 0 360 ([\d.]+)"', svg)[0])
    marks = [
        (float(a) - 4, float(b) - 4, float(a) + 4, float(b) + 4)
        for a, b in re.findall(r'transform="translate\(([\d.]+),([\d.]+)\)(?: rotate\(45\))?"', svg)
    ]
    assert len(marks) == 14
    for i, (_, left, top, right, bottom) in enumerate(labels):
        assert left >= charts.LEFT and right <= 360 and top >= 0
        assert bottom <= height - charts.BOTTOM
        rest = [label[1:] for label in labels[i + 1:]] + marks
        assert not [o for o in rest
                    if left < o[2] and o[0] < right and top < o[3] and o[1] < bottom]


def test_a_crowd_that_has_no_room_is_still_drawn() -> None:
    names = tuple(f"a-rather-long-name-{i:03}" for i in range(200))
    svg = str(charts.pareto(
        dots(np.ones(200), np.ones(200), names), charts.Measure("x", "lower"),
        charts.Measure("y", "lower"),
    ))
    assert svg.count("class=\"mark\"") + svg.count("class=\"stroke\"") == 200
    assert 0 < len(boxes(svg)) < 200


@pytest.mark.parametrize(("x", "y", "ends"), [
    ("lower", "lower", "right"), ("higher", "lower", "left"), ("lower", "higher", "right"),
])
def test_arrows_point_to_the_better_side_and_the_front_ends_at_the_worse(
    x: str, y: str, ends: str
) -> None:
    svg = str(charts.pareto(
        dots([1, 2, 3], [3, 1, 2]), charts.Measure("cost", x), charts.Measure("error", y)
    ))
    arrows = {"lower": "← better", "higher": "better →"}
    names = re.findall(r'class="name"[^>]*>([^<]+)<', svg)
    assert [name.split("\u2002")[1] for name in names] == [arrows[x], arrows[y]]
    (steps,) = re.findall(r'class="front" d="([^"]+)"', svg)
    edge = float(steps.rpartition("H")[2])
    assert edge == (charts.LEFT if ends == "left" else charts.WIDTH - charts.RIGHT)


def test_error_bars_have_the_length_of_the_spread() -> None:
    spans = [charts.Span(2.0, 1.0, 4.0), charts.Span(10.0, 10.0, 10.0)]
    points = [charts.Point("a", 0, spans[0], spans[1]), charts.Point("b", 1, spans[1], spans[0])]
    for log in (False, True):
        svg = str(charts.pareto(
            points, charts.Measure("x", "lower", log), charts.Measure("y", "lower", log)
        ))
        across, up = re.findall(r'class="bars" d="([^"]+)"', svg)
        left, right = map(float, re.findall(r"M([\d.]+),[\d.]+H([\d.]+)$", across)[0])
        low, high = map(float, re.findall(r"M[\d.]+,([\d.]+)V([\d.]+)$", up)[0])
        (middle,) = (float(v) for v in re.findall(r'translate\(([\d.]+),[\d.]+\)"', svg)[:1])
        share = (middle - left) / (right - left)
        assert share == pytest.approx(0.5 if log else 1 / 3, abs=2e-3)  # 2 between 1 and 4
        assert low > high  # upwards on the page


def test_an_axis_is_linear_where_a_value_allows_no_logarithm() -> None:
    svg = charts.pareto(
        dots([1, 2], [0.0, 1e-3]), charts.Measure("x", "lower", True),
        charts.Measure("y", "lower", True),
    )
    assert svg is not None and svg.count('class="mark"') == 2
    assert charts.pareto(dots([1], [1]), charts.Measure("x", "lower"),
                         charts.Measure("y", "lower")) is None


@pytest.mark.usefixtures("fakes")
def test_a_task_says_what_is_drawn_against_what(tmp_path: Path) -> None:
    def shifted(system: str, seed: int, mse: float, **more: Any) -> Result:
        return row(system=system, seed=seed, task="fakes-shifted",
                   metrics={"mse": mse, "r2": 1 - mse}, **more)

    rows = [
        *(shifted("fakes-line", i, 10.0 ** -(i + 1), seconds={"fit": 1.0 + i}) for i in range(3)),
        *(shifted("fakes-average", i, 0.5, seconds={"fit": 0.1}) for i in range(3)),
    ]
    page = Page(write_report(write(tmp_path, rows)))
    for caption in ("Mse against seconds", "Mse against r2"):
        assert caption in page.text
    assert "against peak memory" not in page.text
    labels = [svg["aria-label"] or "" for svg in page.of("svg") if svg.get("aria-label")]
    assert any(
        text == "mse against seconds to fit for fakes-line, fakes-average; better is lower mse and "
        "lower seconds to fit" for text in labels
    )
    assert any("lower mse and higher r2" in text for text in labels)
    (table,) = comparison(tmp_path)
    line = next(entry for entry in table.entries if entry.name == "fakes-line")
    number = line.measured("mse")
    assert number is not None and number.value == pytest.approx(1e-2)  # geometric
    error = 10 ** (1 / math.sqrt(3))  # standard error of the logarithms -1, -2, -3
    assert number.ends == pytest.approx((1e-2 / error, 1e-2 * error))
    seconds = line.measured("seconds")
    assert seconds is not None
    assert seconds.ends == pytest.approx((2 - 1 / math.sqrt(3), 2 + 1 / math.sqrt(3)))


def test_a_model_of_the_users_is_named_and_kept_apart(tmp_path: Path) -> None:
    own = {"model": "/home/me/llama", "model_hash": "1a2b3c4d5e6f"}
    data = {"path": "/home/me/my.csv", "hash": "aabbccdd00"}
    write(tmp_path, [row(), row(data=own), row(data=own | data)])
    assert {table.data for table in comparison(tmp_path)} == {
        "small data", "small data, model llama 1a2b3c4d", "my.csv aabbccdd, model llama 1a2b3c4d",
    }
