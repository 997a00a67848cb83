"""How a conversation is written as one text, and which parts of it are learned.

>>> turns = (Turn("user", "Add 2 and 3."), Turn("assistant", "5"))
>>> [part.text for part in segments(turns, "tulu")]
['<|user|>\\nAdd 2 and 3.\\n<|assistant|>\\n', '5']
>>> segments(turns, "none")[-1]
Segment(text='5', learned=True)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from passband.errors import DataError, UnknownNameError


@dataclass(frozen=True)
class Turn:
    role: str
    content: str


@dataclass(frozen=True)
class Segment:
    """A piece of text; `learned`: the loss is on it."""

    text: str
    learned: bool


Turns = tuple[Turn, ...]

_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n"
)


def _none(turns: Turns) -> list[Segment]:
    """The contents as they are."""
    return [Segment(turn.content, turn.role == "assistant") for turn in turns]


def _plain(turns: Turns) -> list[Segment]:
    """A line break after what is not learned."""
    return [
        Segment(turn.content, True) if turn.role == "assistant"
        else Segment(turn.content + "\n", False) for turn in turns
    ]


def _alpaca(turns: Turns) -> list[Segment]:
    """The header, "### Instruction:" and "### Response:" of Stanford Alpaca."""
    parts = [Segment(_ALPACA, False)]
    for place, turn in enumerate(turns):
        gap = "\n\n" if place else ""
        if turn.role == "assistant":
            parts += [Segment(f"{gap}### Response:", False), Segment(turn.content, True)]
        else:
            title = "" if turn.role == "system" else "### Instruction:\n"
            parts.append(Segment(f"{gap}{title}{turn.content}", False))
    return parts


def _tulu(turns: Turns) -> list[Segment]:
    """<|role|> lines, as the Tulu models are trained."""
    parts = []
    for place, turn in enumerate(turns):
        gap = "\n" if place and turns[place - 1].role == "assistant" else ""
        if turn.role == "assistant":
            parts += [Segment(f"{gap}<|assistant|>\n", False), Segment(turn.content, True)]
        else:
            parts.append(Segment(f"{gap}<|{turn.role}|>\n{turn.content}\n", False))
    return parts


TEMPLATES: Mapping[str, Callable[[Turns], list[Segment]]] = {
    "none": _none, "plain": _plain, "alpaca": _alpaca, "tulu": _tulu,
}


def segments(
    turns: Turns, template: str, tokenizer: Any = None, where: str = "a conversation"
) -> list[Segment]:
    """A conversation in pieces, by a template: none, plain, alpaca, tulu, or the tokenizer's chat.

    Neighbouring pieces that are treated alike are joined. Raises `UnknownNameError`, and
    `DataError` where the tokenizer has no chat template or one that can't be followed.
    """
    if template == "chat":
        parts = _chat(turns, tokenizer, where)
    elif template in TEMPLATES:
        parts = TEMPLATES[template](turns)
    else:
        raise UnknownNameError("template", template, [*TEMPLATES, "chat", "auto"])
    joined: list[Segment] = []
    for part in parts:
        if joined and joined[-1].learned == part.learned:
            part = Segment(joined.pop().text + part.text, part.learned)
        if part.text:
            joined.append(part)
    return joined


def _chat(turns: Turns, tokenizer: Any, where: str) -> list[Segment]:
    """The tokenizer's own template: what it adds when an assistant's turn is added is learned."""
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "the tokenizer has no chat template", expected="one that has",
            mend=f"choose a template: {', '.join(TEMPLATES)}",
        )
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]

    def written(count: int, opened: bool = False) -> str:
        try:
            text: str = tokenizer.apply_chat_template(
                messages[:count], tokenize=False, add_generation_prompt=opened
            )
        except Exception as error:  # templates are programs and raise what they like
            raise DataError(
                f"{where}: the tokenizer's chat template refuses it: {error}",
                expected="turns that the template knows",
                mend=f"mend the row, or choose a template: {', '.join(TEMPLATES)}",
            ) from error
        return text

    parts, done = [], ""
    for place, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        before, after = written(place, opened=True) if place else "", written(place + 1)
        if not before.startswith(done) or not after.startswith(before):
            raise DataError(
                f"{where}: the tokenizer's chat template rewrites earlier turns",
                expected="a template that only adds text",
                mend=f"choose a template: {', '.join(TEMPLATES)}",
            )
        parts += [Segment(before[len(done) :], False), Segment(after[len(before) :], True)]
        done = after
    # What comes after the last answer is never learned and is left out.
    return parts
