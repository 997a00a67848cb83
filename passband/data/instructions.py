"""Files of the user's own for fine-tuning: instructions, chats, labels, preferences, plain text.

>>> rows = from_rows([{"instruction": "Add 2 and 3.", "output": "5"}])
>>> rows.form, rows[0].turns[-1]
('instruction', Turn(role='assistant', content='5'))
>>> tokens = tokenize(rows, ByteTokenizer(), max_length=16, template="none")
>>> ids, labels = tokens[0]
>>> decode(ids), [i for i in labels.tolist() if i != -100]
('Add 2 and 3.5\\x00', [53, 0])

A file is JSON lines, a JSON list, or .txt with one document a line. The columns say what it is:

    messages                        chat: a list of {role, content}
    prompt, chosen, rejected        preference
    instruction (+input), output    instruction
    query, response                 instruction
    question, answer                instruction
    prompt, response | completion   prompt: written out by the user, taken as it is
    text (+text_pair), label        labelled
    text                            document

Every error names the file, the line and the columns found there. The loss is on the responses
only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from passband.data.chat import Segment, Turn, segments
from passband.data.text import decode
from passband.data.tokens import ByteTokenizer, Labels, Preferences, Tokens
from passband.data.tokens import tokenize_labelled as _labelled
from passband.data.tokens import tokenize_segments as _segments
from passband.errors import DataError

__all__ = [
    "ByteTokenizer", "Document", "Labelled", "Labels", "Preference", "Preferences", "Rows",
    "Supervised", "Tokens", "Turn", "decode", "from_rows", "read", "tokenize",
    "tokenize_labelled", "tokenize_preferences",
]
Raw = Mapping[str, Any]


@dataclass(frozen=True)
class Supervised:
    """A conversation; what the assistant says is learned. `raw`: the prompt is final as it is."""

    turns: tuple[Turn, ...]
    raw: bool = False


@dataclass(frozen=True)
class Preference:
    """One prompt with the better and the worse of two answers."""

    chosen: Supervised
    rejected: Supervised


@dataclass(frozen=True)
class Labelled:
    text: str
    label: str
    text_pair: str | None = None


@dataclass(frozen=True)
class Document:
    text: str


Row = Supervised | Preference | Labelled | Document


class Wrong(Exception):
    """What a row has that it should not: text, expected."""


@dataclass(frozen=True)
class Form:
    """A set of columns and what is made of a row that has them."""

    name: str
    required: tuple[str, ...]
    build: Callable[[Raw], Row]
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rows(Sequence[Any]):
    """Rows of one form. `lines[i]` is where row i stands in its source, counted from 1."""

    source: str
    form: str
    rows: tuple[Row, ...]
    lines: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def where(self, index: int) -> str:
        return f"{self.source}, line {self.lines[index]}"

    def subset(self, chosen: Iterable[int]) -> Rows:
        """The rows at these places: to hold some out."""
        places = list(chosen)
        rows = tuple(self.rows[i] for i in places)
        return Rows(self.source, self.form, rows, tuple(self.lines[i] for i in places))


# ---- the forms ------------------------------------------------------------------------------


def _text(row: Raw, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise Wrong(f"{column!r} is {_kind(value)}", "text")
    return value


def _turns(value: Any, column: str) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value:
        raise Wrong(f"{column!r} is {_kind(value)}", "a list of {role, content} with some entries")
    turns = []
    for place, one in enumerate(value):
        role, content = (one.get("role"), one.get("content")) if isinstance(one, Mapping) else (
            None, None
        )
        if not isinstance(role, str) or not isinstance(content, str):
            raise Wrong(f"{column}[{place}] is {_kind(one)}", "an object with texts role, content")
        if role not in ("system", "user", "assistant", "tool"):
            raise Wrong(f"{column}[{place}] has the role {role!r}", "system, user, assistant, tool")
        turns.append(Turn(role, content))
    return tuple(turns)


def _chat(row: Raw) -> Row:
    return Supervised(_turns(row.get("messages"), "messages"))


def _answer(prompt: str, response: str) -> Callable[[Raw], Row]:
    """One question and one answer, from these columns."""

    def build(row: Raw) -> Row:
        asked, extra = _text(row, prompt), row.get("input")
        if prompt == "instruction" and extra is not None:
            if not isinstance(extra, str):
                raise Wrong(f"'input' is {_kind(extra)}", "text, or nothing")
            asked = f"{asked}\n\n### Input:\n{extra}" if extra.strip() else asked
        turns = (Turn("user", asked), Turn("assistant", _text(row, response)))
        return Supervised(turns, raw=prompt == "prompt")

    return build


def _preference(row: Raw) -> Row:
    prompt = row.get("prompt")
    raw = isinstance(prompt, str) and all(
        isinstance(row.get(column), str) for column in ("chosen", "rejected")
    )
    opening = (Turn("user", prompt),) if isinstance(prompt, str) else _turns(prompt, "prompt")

    def side(column: str) -> Supervised:
        value = row.get(column)
        if isinstance(value, str):
            return Supervised((*opening, Turn("assistant", value)), raw=raw)
        answer = _turns(value, column)[-1]  # lists repeat the conversation up to the answer
        if answer.role != "assistant":
            raise Wrong(f"{column!r} ends with the role {answer.role!r}", "an assistant's turn")
        return Supervised((*opening, answer))

    return Preference(side("chosen"), side("rejected"))


def _label(row: Raw) -> Row:
    label, pair = row.get("label"), row.get("text_pair")
    if not isinstance(label, str | int) or label == "":
        raise Wrong(f"'label' is {_kind(label)}", "text or a whole number")
    if pair is not None and not isinstance(pair, str):
        raise Wrong(f"'text_pair' is {_kind(pair)}", "text, or nothing")
    return Labelled(_text(row, "text"), str(label), pair)


def _document(row: Raw) -> Row:
    return Document(_text(row, "text"))


# In the order in which they are looked for: what has more to say comes first.
FORMS = (
    Form("preference", ("prompt", "chosen", "rejected"), _preference),
    Form("chat", ("messages",), _chat),
    Form("instruction", ("instruction", "output"), _answer("instruction", "output"), ("input",)),
    Form("instruction", ("query", "response"), _answer("query", "response")),
    Form("instruction", ("question", "answer"), _answer("question", "answer")),
    Form("prompt", ("prompt", "response"), _answer("prompt", "response")),
    Form("prompt", ("prompt", "completion"), _answer("prompt", "completion")),
    Form("labelled", ("text", "label"), _label, ("text_pair",)),
    Form("document", ("text",), _document),
)
_KNOWN = {column for form in FORMS for column in (*form.required, *form.optional)}
_EXPECTED = "; or ".join(
    ", ".join((*form.required, *(f"({column})" for column in form.optional))) for form in FORMS
)


# ---- reading --------------------------------------------------------------------------------


def read(path: str | Path, columns: Mapping[str, str] | None = None) -> Rows:
    """Rows of a .jsonl, .json or .txt file.

    columns  names used here -> names in the file, e.g. {"instruction": "ask", "output": "said"}
    Raises `DataError` naming the file, the line and its columns.
    """
    path = Path(path)
    text = _content(path)
    if path.suffix.lower() == ".txt":
        lines = [(i, line.strip()) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows = tuple(Document(line) for _, line in lines)
        return Rows(str(path), "document", rows, tuple(i for i, _ in lines))
    # The content decides, not the suffix: many files named .json hold lines.
    entries = _json_list(path, text) if text.lstrip().startswith("[") else _json_lines(path, text)
    return _rows(str(path), entries, columns)


def from_rows(
    rows: Iterable[Raw], columns: Mapping[str, str] | None = None, source: str = "rows"
) -> Rows:
    """The same of mappings in memory, such as a Hugging Face data set."""
    return _rows(source, list(enumerate(rows, 1)), columns)


def _content(path: Path) -> str:
    if path.is_dir():
        names = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{path} is a folder with {names}", expected="a .jsonl, .json or .txt file",
            mend="give one of its files",
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(
            f"{path} is not there", expected="a .jsonl, .json or .txt file", mend="check the path"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: byte {error.object[error.start]:#04x} is no UTF-8",
            expected="text in UTF-8", mend="convert it: iconv -f latin1 -t utf-8 FILE > NEW",
        ) from None
    except OSError as error:
        raise DataError(
            f"{path} can't be read: {error.strerror}", expected="a readable file",
            mend="check its permissions",
        ) from None
    if not text.strip():
        raise DataError(f"{path} is empty", expected="at least one row", mend="check the file")
    return text.replace("\r\n", "\n")


def _json_list(path: Path, text: str) -> list[tuple[int, Any]]:
    """Entries of a JSON list, each with the line where it begins."""
    decoder, entries = json.JSONDecoder(), []
    place, line = _skip(text, text.index("[") + 1), 1
    seen = 0
    try:
        while text[place : place + 1] != "]":
            line, seen = line + text.count("\n", seen, place), place
            value, place = decoder.raw_decode(text, place)
            entries.append((line, value))
            place = _skip(text, place)
            if text[place : place + 1] == ",":
                place = _skip(text, place + 1)
            elif text[place : place + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
        if text[place + 1 :].strip():
            raise json.JSONDecodeError("Extra data", text, place + 1)
    except json.JSONDecodeError as error:
        raise _no_json(path, error.lineno, error) from None
    return entries


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\n\r":
        place += 1
    return place


def _json_lines(path: Path, text: str) -> list[tuple[int, Any]]:
    entries = []
    # Not splitlines: it also breaks at signs that JSON strings may hold, such as U+2028.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                entries.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise _no_json(path, number, error) from None
    return entries


def _no_json(path: Path, line: int, error: json.JSONDecodeError) -> DataError:
    return DataError(
        f"{path}, line {line}: no JSON at column {error.colno} ({error.msg})",
        expected="one JSON object a line, or one list of objects",
        mend="look at that line: a quote, a comma or a bracket is missing",
    )


def _rows(
    source: str, entries: list[tuple[int, Any]], columns: Mapping[str, str] | None
) -> Rows:
    if not entries:
        raise DataError(f"{source} has no rows", expected="at least one", mend="check the file")
    names = {theirs: ours for ours, theirs in (columns or {}).items()}
    unknown = sorted(set(columns or {}) - _KNOWN)
    if unknown:
        raise DataError(
            f"columns has {', '.join(unknown)}", expected=f"some of {', '.join(sorted(_KNOWN))}",
            mend='columns={"instruction": "name in your file", "output": "name in your file"}',
        )
    form, rows = None, []
    for line, entry in entries:
        if not isinstance(entry, Mapping):
            raise DataError(
                f"{source}, line {line}: {_kind(entry)}", expected="an object with named columns",
                mend='one {"prompt": ..., "response": ...} a line',
            )
        row = {names.get(str(column), str(column)): value for column, value in entry.items()}
        form = form or _form(source, line, row)
        missing = [column for column in form.required if row.get(column) is None]
        if missing:
            raise DataError(
                f"{source}, line {line}: no {', '.join(missing)}; columns: {_columns(row)}",
                expected=f"{', '.join(form.required)}, as in the first row",
                mend="fill the row in or leave it out; one file holds one kind of rows",
            )
        rows.append(_built(source, line, form, row))
    assert form is not None
    return Rows(source, form.name, tuple(rows), tuple(line for line, _ in entries))


def _form(source: str, line: int, row: Raw) -> Form:
    for form in FORMS:
        if all(row.get(column) is not None for column in form.required):
            return form
    raise DataError(
        f"{source}, line {line}: columns {_columns(row)}", expected=_EXPECTED,
        mend='rename them, or say which is which: columns={"prompt": "...", "response": "..."}',
    )


def _built(source: str, line: int, form: Form, row: Raw) -> Row:
    try:
        return form.build(row)
    except Wrong as wrong:
        what, expected = wrong.args
        raise DataError(
            f"{source}, line {line}: {what}; columns: {_columns(row)}", expected=expected,
            mend="mend the row or leave it out",
        ) from None


def _columns(row: Raw) -> str:
    return ", ".join(sorted(row)) or "none"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false",
             type(None): "missing"}
    if isinstance(value, str | list | dict) and not value:
        return f"empty {names[type(value)].split()[-1]}"
    return names.get(type(value), f"the number {value}")


# ---- tokens ---------------------------------------------------------------------------------

Kind = TypeVar("Kind")


def _only(rows: Rows, kind: type[Kind] | tuple[type[Kind], ...], wanted: str) -> None:
    if not rows or not isinstance(rows[0], kind):
        raise DataError(
            f"{rows.source} holds rows of the form {rows.form!r}", expected=wanted,
            mend="another file, or another task",
        )


def tokenize(
    rows: Rows, tokenizer: Any, *, max_length: int = 512, template: str = "auto", eos: bool = True
) -> Tokens:
    """(ids [T], labels [T]) of every row; labels are -100 but on what is learned.

    tokenizer   a transformers tokenizer or `ByteTokenizer()`
    max_length  tokens of a row. A longer prompt loses its start and a longer response its end,
                such that the response keeps its start and at least half of the room.
    template    how a conversation is written: "auto" is "alpaca" for instructions, the tokenizer's
                own chat template (else "tulu") for chats, "none" for prompts
    eos         the response ends with the tokenizer's end-of-sequence token, which is learned

    Documents are learned whole. Rows with nothing to learn (an empty response, a chat without an
    assistant) are left out and counted: `Tokens.unsupervised`, with a `PassbandWarning`.
    Raises `DataError` where no row is left.
    """
    _only(rows, (Supervised, Document), "instructions, prompts, chats or documents")
    parts = [_parts(rows, i, tokenizer, template) for i in range(len(rows))]
    return _segments(parts, tokenizer, max_length, eos, rows.where)


def tokenize_preferences(
    rows: Rows, tokenizer: Any, *, max_length: int = 512, template: str = "auto", eos: bool = True
) -> Preferences:
    """Chosen and rejected of every row, as `tokenize` does; a row needs both."""
    _only(rows, Preference, "columns prompt, chosen, rejected")

    def side(name: str) -> Tokens:
        half = Rows(
            rows.source, rows.form, tuple(getattr(row, name) for row in rows.rows), rows.lines
        )
        parts = [_parts(half, i, tokenizer, template) for i in range(len(half))]
        return _segments(parts, tokenizer, max_length, eos, rows.where)

    return Preferences.of(side("chosen"), side("rejected"))


def tokenize_labelled(
    rows: Rows, tokenizer: Any, *, max_length: int = 256, classes: Sequence[str] | None = None
) -> Labels:
    """Inputs and class numbers of rows with text and label.

    classes  in the order of their numbers; None: those of these rows, sorted (numbers as numbers)
    Raises `DataError` for fewer than two classes, or a label that is not among `classes`.
    """
    _only(rows, Labelled, "columns text, label and perhaps text_pair")
    return _labelled(
        [(row.text, row.text_pair, row.label) for row in rows.rows], tokenizer, max_length,
        classes, rows.where,
    )


def _parts(rows: Rows, index: int, tokenizer: Any, template: str) -> list[Segment]:
    row = rows[index]
    if isinstance(row, Document):
        return [Segment(row.text, True)]
    chosen = template
    if template == "auto":
        own = "chat" if getattr(tokenizer, "chat_template", None) else "tulu"
        chosen = "none" if row.raw else "alpaca" if rows.form == "instruction" else own
    return segments(row.turns, chosen, tokenizer, rows.where(index))
