"""The certificate as JSON, a picture and one offline HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from passband.bench.report.style import ACCENT, INK, SECOND, picture, save
from passband.bench.results import write_atomic
from passband.dynamics.orth_cnn.certify import Certificate, LayerCertificate

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>How near to isometric: {{ source }}</title>
<style>
 :root { color-scheme: light dark; --ink: #1c1d21; --paper: #fff; --soft: #6b7080; --line: #e3e5ea }
 @media (prefers-color-scheme: dark) { :root { --ink: #e8e9ed; --paper: #17181c; --soft: #9aa0b0;
         --line: #2e3038 } }
 body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
        max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
 h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem }
 .soft, figcaption { color: var(--soft) } figure { margin: 1rem 0; max-width: 46rem }
 svg { width: 100%; height: auto } .wide { overflow-x: auto } ul { padding-left: 1.1rem }
 table { border-collapse: collapse } th { font-weight: 500; color: var(--soft) }
 td, th { padding: .25rem 1.1rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right;
          font-variant-numeric: tabular-nums; white-space: nowrap }
 td:first-child, th:first-child { text-align: left }
</style></head><body>
<h1>{{ source }}: {{ rows|length }} convolution{{ "" if rows|length == 1 else "s" }}</h1>
<ul>{% for one in said %}<li>{{ one }}</li>{% endfor %}</ul>
<figure>{{ svg }}<figcaption>Singular values of each layer, smallest to largest, at the image size
in the table; the dotted line is an isometry.</figcaption></figure>
<div class="wide"><table><thead><tr>{% for cell in head %}<th>{{ cell }}{% endfor %}</tr></thead>
<tbody>{% for row in cells %}<tr>{% for cell in row %}<td>{{ cell }}{% endfor %}</tr>{% endfor %}
</tbody></table></div>
{% if notes %}<h2>What doesn't hold, and where</h2><ul>
{%- for names, note in notes %}<li>{{ names }}: {{ note }}.</li>{% endfor %}</ul>{% endif %}
<p class="soft">L_orth is 0 where a layer is orthogonal, at every image size. `any size` is what
follows from it for all singular values: [sqrt(1 - eps), sqrt(1 + eps)]. Achour, Malgouyres,
Mamalet: Existence, Stability and Scalability of Orthogonal Convolutional Neural Networks, JMLR 23,
2022.</p>
</body></html>
"""
HEAD = ("layer", "kernel", "stride", "groups", "case", "orthogonal one", "L_orth", "image",
        "sigma measured", "sigma at any size", "eps", "eps of the paper", "Lipschitz")
SHOWN = 60  # layers in the picture


def write(
    rows: Sequence[LayerCertificate], out: Path, *, source: str, stem: str = "certificate",
    whole: Certificate | None = None, more: dict[str, Any] | None = None,
) -> list[Path]:
    """STEM.json, STEM.html and STEM.svg in a folder.

    whole  the model's certificate, where there is a model and not weights alone
    """
    out.mkdir(parents=True, exist_ok=True)
    drawn = ranges(rows, out / f"{stem}.svg")
    facts = {"source": source, **(more or {})}
    facts |= whole.to_json() if whole is not None else {"convolutions": [asdict(r) for r in rows]}
    text = json.dumps(_plain(facts), indent=1, allow_nan=False)
    write_atomic(out / f"{stem}.json", text.encode())
    svg = drawn.read_text(encoding="utf-8")
    page = Environment(autoescape=True).from_string(_PAGE).render(
        source=source, rows=rows, said=_said(rows, whole), svg=Markup(svg[svg.index("<svg"):]),
        head=HEAD, cells=[_cells(row) for row in rows], notes=_notes(rows),
    )
    write_atomic(out / f"{stem}.html", page.encode())
    return [out / f"{stem}.html", out / f"{stem}.json", drawn]


def ranges(rows: Sequence[LayerCertificate], path: Path) -> Path:
    """Smallest to largest singular value of each layer; impossible layers in another colour."""
    shown = rows[:SHOWN]
    longest = max(len(row.name) for row in shown)
    with picture(4.6 + 0.06 * longest, 0.7 + 0.26 * len(shown)) as fig:
        axes = fig.subplots()
        for place, row in enumerate(shown):
            colour = ACCENT if row.exists else SECOND
            axes.plot([row.sigma_min, row.sigma_max], [place, place], color=colour, linewidth=5,
                      solid_capstyle="butt")
            axes.plot([row.sigma_min, row.sigma_max], [place, place], "|", color=colour)
        axes.axvline(1, color=INK, linestyle=":", linewidth=1)
        axes.set_yticks(range(len(shown)), [row.name or "weight" for row in shown])
        axes.set(ylim=(len(shown) - 0.4, -0.6), xlabel="singular values")
        axes.set_xlim(left=0)
        return save(fig, path)


def _said(rows: Sequence[LayerCertificate], whole: Certificate | None) -> list[str]:
    near = sum(row.err_s < 0.1 for row in rows)
    said = [
        f"{near} of {len(rows)} are within 10 % of an isometry at the sizes given "
        "(|sigma² - 1| < 0.1)",
        f"singular values lie between {min(r.sigma_min for r in rows):.3g} and "
        f"{max(r.sigma_max for r in rows):.3g}; the largest multiply to "
        f"{math.prod(r.sigma_max for r in rows):.3g}",
    ]
    if impossible := [r.name or "the weight" for r in rows if not r.exists]:
        said.append(f"no orthogonal layer exists of the shape of {', '.join(impossible)}")
    if whole is not None and whole.lipschitz is not None:
        said.append(f"the model's outputs move by at most {whole.lipschitz:.4g} times what its "
                    "inputs move by, in Euclidean distance")
    elif whole is not None:
        said.append("no Lipschitz constant of the whole model: " + "; ".join(whole.reasons[:5]))
    return said


def _cells(row: LayerCertificate) -> list[str]:
    return [
        row.name or "weight", " x ".join(map(str, row.shape)), ", ".join(map(str, row.stride)),
        str(row.groups), row.case, "exists" if row.exists else "impossible", f"{row.lorth:.4g}",
        " x ".join(map(str, row.size)), f"{row.sigma_min:.4f} to {row.sigma_max:.4f}",
        f"{row.bound_min:.3f} to {row.bound_max:.3f}", f"{row.eps:.3g}", f"{row.eps_paper:.3g}",
        "none" if row.lipschitz is None else f"{row.lipschitz:.4f}",
    ]


def _notes(rows: Sequence[LayerCertificate]) -> list[tuple[str, str]]:
    """Each note once, with the layers it is about."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for note in row.notes:
            found.setdefault(note, []).append(row.name or "weight")
    return [(", ".join(names), note) for note, names in found.items()]


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: null stands for both."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
