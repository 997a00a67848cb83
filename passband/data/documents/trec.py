"""Files as TREC and MS MARCO have them: documents and topics in tags, judgements, runs.

>>> _ = Path("docs.xml").write_text("<DOC><DOCNO> 7 </DOCNO><TITLE>Ice</TITLE><TEXT>melts</DOC>")
>>> documents_in(Path("docs.xml"))
[Document(id='7', text='melts', title='Ice')]
>>> _ = Path("topics.xml").write_text("<top><num> Number: 301 <title> glaciers </top>")
>>> topics_in(Path("topics.xml"))
{'301': 'glaciers'}
>>> _ = Path("qrels.txt").write_text("301 0 7 2")
>>> judgements_in(Path("qrels.txt"))
{'301': {'7': 2}}

These files are seldom XML: there is no root, tags are not closed, ampersands stand alone. So tags
are looked for, and what is between them is text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

from passband.data.documents.collection import Document, lines_of
from passband.errors import DataError

_DOCUMENT, _TOPIC = ("doc", ("docno", "docid")), ("top", ("num",))
_FIELD = re.compile(r"<\s*([a-z][\w-]*)[^>]*>", re.IGNORECASE)
_LABEL = re.compile(r"^\s*(number|topic|description|narrative)\s*:", re.IGNORECASE)
# Everything else between the tags of a document is about it, not of it.
_TEXT = ("text", "body", "abstract")


def text_of(path: Path) -> str:
    """The whole of a file; `DataError` with the line of the first byte that is no UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: no UTF-8", expected="text in UTF-8",
            mend="iconv -f latin1 -t utf-8 converts a file",
        ) from None


def kind_of(path: Path) -> str | None:
    """"doc" or "top": what a file of tags has; None for another file."""
    with path.open("rb") as file:
        start = file.read(20_000).decode("utf-8", "replace").lower()
    return next((tag for tag in ("doc", "top") if f"<{tag}>" in start), None)


def documents_in(path: Path) -> list[Document]:
    """Every <doc> of a file, id in <docno>; fields without their tags closed are read as well."""
    found = []
    for fields in _blocks(path, *_DOCUMENT):
        text = "\n".join(fields[name] for name in _TEXT if fields.get(name))
        if not any(name in fields for name in _TEXT):
            rest = (value for name, value in fields.items() if name not in ("", "title", "docno"))
            text = "\n".join(rest)
        found.append(Document(fields[""], text, " ".join(fields.get("title", "").split())))
    return found


def topics_in(path: Path) -> dict[str, str]:
    """Number -> title of every <top>; the description where there is no title."""
    found: dict[str, str] = {}
    for fields in _blocks(path, *_TOPIC):
        if fields[""] in found:
            raise DataError(f"{path}: topic {fields['']!r} comes twice", expected="one a number")
        text = fields.get("title") or fields.get("desc", "")
        found[fields[""]] = " ".join(text.split())
    return found


def _blocks(path: Path, tag: str, keys: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Fields of every block by their tags in lower case, its id as ""."""
    text = text_of(path)
    edges = list(re.finditer(rf"<(/?){tag}>", text, re.IGNORECASE))
    for i, edge in enumerate(edges):
        opens, closed = not edge[1], i + 1 < len(edges) and bool(edges[i + 1][1])
        if opens != (i % 2 == 0) or (opens and not closed):
            line = text.count("\n", 0, edge.start()) + 1
            raise DataError(
                f"{path}, line {line}: {edge[0]} without its other half",
                expected=f"<{tag}> ... </{tag}>", mend="add the tag that is missing",
            )
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        block = text[first.end() : last.start()]
        marks = list(_FIELD.finditer(block))
        ends = [mark.start() for mark in marks[1:]] + [len(block)]
        fields: dict[str, str] = {}
        for mark, end in zip(marks, ends, strict=True):
            name = mark[1].lower()
            value = re.sub(r"</[^>]*>", " ", block[mark.end() : end])
            value = _LABEL.sub("", html.unescape(value)).strip()
            # A field that comes again, such as paragraphs, goes on.
            fields[name] = f"{fields[name]}\n{value}".strip() if name in fields else value
        id = next((fields[key] for key in keys if fields.get(key)), "")
        if not id:
            line = text.count("\n", 0, first.start()) + 1
            raise DataError(
                f"{path}, line {line}: a <{tag}> without <{keys[0]}>", expected="an id in it",
            )
        yield {**fields, "": id}


# ---- judgements and runs ---------------------------------------------------------------------


def judgements_in(path: Path) -> dict[str, dict[str, int]]:
    """Query -> document -> grade, of lines "query 0 document grade" or "query document grade".

    The second, with a heading, is that of BEIR. Errors name the line.
    """
    found: dict[str, dict[str, int]] = {}
    for number, _, line in lines_of(path):
        fields = line.split("\t") if "\t" in line else line.split()
        if number == 1 and fields[-1].strip().lower() in ("score", "relevance", "rel", "label"):
            continue
        try:
            query, document, grade = fields[0], fields[-2], int(float(fields[-1]))
            if len(fields) not in (3, 4):
                raise ValueError
        except (ValueError, IndexError):
            raise DataError(
                f"{path}, line {number}: {line[:80]!r}",
                expected="query-id, corpus-id, score; or query, 0, document, grade",
            ) from None
        found.setdefault(query.strip(), {})[document.strip()] = grade
    return found


def rankings_in(path: Path) -> dict[str, list[str]]:
    """Query -> documents, best first, of "query document rank" or TREC run lines."""
    found: dict[str, list[tuple[int, str]]] = {}
    for number, _, line in lines_of(path):
        fields = line.split("\t") if "\t" in line else line.split()
        try:
            query, document, rank = (fields[0], fields[2], fields[3]) if len(fields) == 6 else (
                fields[0], fields[1], fields[2]
            )
            found.setdefault(query.strip(), []).append((int(rank), document.strip()))
        except (ValueError, IndexError):
            raise DataError(
                f"{path}, line {number}: {line[:80]!r}",
                expected="query, document, rank; or query Q0 document rank score tag",
            ) from None
    return {q: [document for _, document in sorted(ranked)] for q, ranked in found.items()}
