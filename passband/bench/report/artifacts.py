"""Artifacts of results made part of the page: pictures, sounds, tables and pages as inline data.

Files are somebody's output and are treated as untrusted: SVG passes a list of harmless elements,
pages stand in sandboxed frames without a network, nothing outside the runs folder is read, and
the page's total size is bounded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from passband.bench.results import Result

LARGEST = 3_000_000  # bytes of one file
TOTAL = 12_000_000  # bytes of all of them; base64 makes 16 MB of it
_MIME = {
    ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp",
    ".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg", ".ogg": "audio/ogg",
}
_ELEMENTS = frozenset((
    "svg", "g", "path", "line", "rect", "circle", "ellipse", "polyline", "polygon", "text", "tspan",
    "defs", "clipPath", "use", "title", "desc", "linearGradient", "radialGradient", "stop", "image",
    "marker", "pattern", "symbol",
))


@dataclass(frozen=True)
class Shown:
    """An artifact as the page shows it.

    ratio    width over height of a picture
    widest   CSS pixels beyond which it isn't stretched
    """

    kind: str
    title: str
    caption: str
    uri: str = ""
    svg: Markup = field(default_factory=Markup)
    page: Markup = field(default_factory=Markup)
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    ratio: float = 1.0
    widest: float = 1200.0
    trouble: str = ""  # why it can't be shown


class Shelf:
    """Hands out artifacts until the page is full. One for each report.

    scripts  digests of the scripts of pages: a frame runs what its report's policy allows
    """

    def __init__(self, runs: Path, room: int = TOTAL) -> None:
        self.runs, self.room, self.number = runs, room, 0
        self.scripts: set[str] = set()

    def show(self, result: Result) -> dict[str, list[Shown]]:
        """Artifacts of one result by group, in order of appearance."""
        groups: dict[str, list[Shown]] = {}
        for raw in result.artifacts:
            if isinstance(raw, dict):
                groups.setdefault(str(raw.get("group", "")), []).append(self._one(raw, result))
        return groups

    def _one(self, raw: dict[str, Any], result: Result) -> Shown:
        kind, title = str(raw.get("kind", "")), str(raw.get("title", ""))
        caption, name = str(raw.get("caption", "")), str(raw.get("file", ""))
        place = f"{result.folder}/{name}"
        path = (self.runs / place).resolve()
        if not path.is_relative_to(self.runs.resolve()):
            return Shown(kind, title, caption, trouble=f"{name} lies outside the runs folder")
        try:
            length = path.stat().st_size
            if length > LARGEST or length > self.room:
                return Shown(kind, title, caption,
                             trouble=f"left out to keep this page small; see {place}")
            data = path.read_bytes()
        except OSError:
            return Shown(kind, title, caption, trouble=f"{place} is missing")
        self.room -= length
        self.number += 1
        try:
            return self._embed(kind, title, caption, path.suffix.lower(), data)
        except (ValueError, ElementTree.ParseError) as error:
            return Shown(kind, title, caption, trouble=f"{name} can't be shown: {error}")

    def _embed(self, kind: str, title: str, caption: str, suffix: str, data: bytes) -> Shown:
        if kind == "table":
            columns, rows = read_table(json.loads(data))
            return Shown(kind, title, caption, columns=columns, rows=rows)
        if suffix == ".svg" and kind == "image":
            svg, (width, height) = clean_svg(data.decode("utf-8"), f"a{self.number}-", title)
            # Units are points: so much wider, ten-point lettering is as large as the page's.
            return Shown(kind, title, caption, svg=svg, ratio=width / height, widest=1.45 * width)
        if suffix == ".html" and kind == "page":
            text = data.decode("utf-8")
            self.scripts |= script_digests(text)
            return Shown(kind, title, caption, page=attribute(text))
        mime = _MIME.get(suffix, "")
        if not mime.startswith(f"{kind}/"):
            raise ValueError(f"{suffix or 'no ending'} is no {kind or 'known kind'}")
        uri = f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"
        ratio = _png_ratio(data)
        return Shown(kind, title, caption, uri=uri, ratio=ratio, widest=520 * ratio)


def attribute(text: str) -> Markup:
    """A text between double quotes of an attribute; it stays short, unlike with full escapes.

    >>> attribute('<b title="a&b">')
    Markup('<b title=&quot;a&amp;b&quot;>')
    """
    return Markup(text.replace("&", "&amp;").replace('"', "&quot;"))


class _Scripts(HTMLParser):
    """The texts of scripts that a browser would run."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.found: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.inside = dict(attrs).get("type") in (None, "", "text/javascript", "module")
            if self.inside:
                self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[-1] += data


def script_digests(text: str) -> set[str]:
    """SHA-256 of each inline script of a page, in base64.

    >>> len(script_digests("<script>start()</script><script type='application/json'>1</script>"))
    1
    """
    parser = _Scripts()
    parser.feed(text)
    return {
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
        for script in parser.found
    }


def read_table(raw: Any, most: int = 200) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Checked columns and rows of {"columns": [...], "rows": [[...]]}, as texts."""
    if not isinstance(raw, dict) or not isinstance(raw.get("columns"), list | tuple) \
            or not isinstance(raw.get("rows"), list | tuple):
        raise ValueError('a table is {"columns": [...], "rows": [[...]]}')
    rows = [tuple(map(_text, row)) if isinstance(row, list | tuple) else (_text(row),)
            for row in raw["rows"][:most]]
    if len(raw["rows"]) > most:
        rows.append((f"… {len(raw['rows']) - most} more rows",))
    return tuple(map(str, raw["columns"])), tuple(rows)


def _text(value: Any) -> str:
    from passband.bench.report.tables import figure

    return figure(value, 4) if isinstance(value, float) else str(value)


def _png_ratio(data: bytes) -> float:
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        return 1.0
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return width / height if width and height else 1.0


# ---- SVG -------------------------------------------------------------------------------------


def clean_svg(text: str, prefix: str, title: str) -> tuple[Markup, tuple[float, float]]:
    """An inline copy without scripts, styles, handlers or addresses, its ids made unique.

    Returns the markup and (width, height) in the drawing's units. Raises ValueError for no SVG.
    """
    if "<!ENTITY" in text:
        raise ValueError("entities are not allowed")
    root = ElementTree.fromstring(text)
    if _local(root.tag) != "svg":
        raise ValueError("not an SVG")
    _clean(root, prefix)
    box = [float(v) for v in re.split(r"[ ,]+", root.get("viewBox", "").strip()) if v]
    if len(box) != 4 or not min(box[2:]) > 0:
        raise ValueError("it has no viewBox")
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", title)
    return Markup(ElementTree.tostring(root, encoding="unicode")), (box[2], box[3])


def _clean(element: ElementTree.Element, prefix: str) -> None:
    element.tag = _local(element.tag)
    for name in list(element.attrib):
        value = element.attrib.pop(name)
        local = _local(name)
        kept = _attribute(local, value, prefix)
        if kept is not None:
            element.set(local, kept)
    for child in list(element):
        if not isinstance(child.tag, str) or _local(child.tag) not in _ELEMENTS:
            element.remove(child)
        else:
            _clean(child, prefix)


def _attribute(name: str, value: str, prefix: str) -> str | None:
    """The attribute's safe value, or None to drop it."""
    low = name.lower()
    if low.startswith("on") or low in ("class", "base"):
        return None
    if low == "id":
        return prefix + value
    if low in ("href", "src"):
        if value.startswith("#"):
            return f"#{prefix}{value[1:]}"
        safe = re.match(r"data:image/(png|jpeg|webp);base64,", value)
        return re.sub(r"\s+", "", value) if safe else None
    value = re.sub(r"url\(\s*['\"]?#", f"url(#{prefix}", value)
    outside = re.search(r"url\((?!#)|image-set|@import|expression|\\", value, re.IGNORECASE)
    return None if outside else value


def _local(name: str) -> str:
    return name.rpartition("}")[2]
