"""Readers of user files: every form, every kind of wrong file, and what is learned."""

from __future__ import annotations

import json

import pytest
import torch

from passband.data.chat import Turn, segments
from passband.data.instructions import (
    ByteTokenizer,
    Document,
    Labelled,
    Preference,
    from_rows,
    read,
    tokenize,
    tokenize_labelled,
    tokenize_preferences,
)
from passband.errors import DataError, PassbandWarning, UnknownNameError

BYTES = ByteTokenizer()


def learned(example):
    ids, labels = example
    assert ids.shape == labels.shape and ids.dtype == labels.dtype == torch.int64
    assert ((labels == -100) | (labels == ids)).all()
    return bytes(i for i in labels.tolist() if i != -100)


def text(example):
    return bytes(example[0].tolist())


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "form", "prompt", "response"),
    [
        ({"prompt": "p", "response": "r"}, "prompt", "p", "r"),
        ({"prompt": "p", "completion": "r"}, "prompt", "p", "r"),
        ({"instruction": "p", "output": "r"}, "instruction", "p", "r"),
        ({"instruction": "p", "input": "", "output": "r"}, "instruction", "p", "r"),
        ({"instruction": "p", "input": "i", "output": "r", "text": "all"}, "instruction",
         "p\n\n### Input:\ni", "r"),
        ({"query": "p", "response": "r", "type": "x"}, "instruction", "p", "r"),
        ({"question": "p", "answer": "r"}, "instruction", "p", "r"),
        ({"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]},
         "chat", "p", "r"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_forms(tmp_path, row, form, prompt, response, suffix):
    path = tmp_path / f"data{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps([row, row], indent=2))
    else:
        lines(path, row, row)
    rows = read(path)
    assert (len(rows), rows.form) == (2, form)
    assert rows[0].turns == (Turn("user", prompt), Turn("assistant", response))
    example = tokenize(rows, BYTES, template="none")[1]
    assert text(example) == f"{prompt}{response}\0".encode()
    assert learned(example) == f"{response}\0".encode()


def test_templates():
    turns = (Turn("user", "Q"), Turn("assistant", "A"), Turn("user", "R"), Turn("assistant", "B"))
    alpaca = segments(turns[:2], "alpaca")
    assert alpaca[0].text.endswith("### Instruction:\nQ\n\n### Response:")
    assert alpaca[0].text.startswith("Below is an instruction")
    assert [(s.text, s.learned) for s in segments(turns, "tulu")] == [
        ("<|user|>\nQ\n<|assistant|>\n", False), ("A", True),
        ("\n<|user|>\nR\n<|assistant|>\n", False), ("B", True),
    ]
    assert [s.text for s in segments(turns, "plain")] == ["Q\n", "A", "R\n", "B"]
    with pytest.raises(UnknownNameError, match="alpaca"):
        segments(turns, "alpacca")
    with pytest.raises(DataError, match="no chat template"):
        segments(turns, "chat", BYTES)


def test_every_answer_of_a_chat_is_learned():
    messages = [
        {"role": "system", "content": "S"}, {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"}, {"role": "user", "content": "R"},
        {"role": "assistant", "content": "B"},
    ]
    example = tokenize(from_rows([{"messages": messages}]), BYTES)[0]
    assert learned(example) == b"AB\0"
    open_end = [*messages, {"role": "user", "content": "T"}]
    assert learned(tokenize(from_rows([{"messages": open_end}]), BYTES)[0]) == b"AB"


def test_plain_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\n two \r\nthree\n")
    rows = read(path)
    assert [row.text for row in rows] == ["one", "two", "three"] and rows.lines == (1, 3, 4)
    assert learned(tokenize(rows, BYTES)[0]) == b"one\0"
    assert read(lines(tmp_path / "b.jsonl", {"text": "one"}))[0] == Document("one")


def test_preferences(tmp_path):
    path = lines(
        tmp_path / "p.jsonl", {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"prompt": "p", "chosen": "good", "rejected": " "},
    )
    rows = read(path)
    assert isinstance(rows[0], Preference)
    with pytest.warns(PassbandWarning, match=r"1 of 2 rows .* line 2"):
        pairs = tokenize_preferences(rows, BYTES)
    chosen, rejected = pairs[0]
    assert (text(chosen), learned(chosen)) == (b"pgood\0", b"good\0")
    assert (text(rejected), learned(rejected)) == (b"pbad\0", b"bad\0")
    assert len(pairs) == 1 and pairs.unsupervised == (1,)
    (ids, labels), _ = pairs.collate([pairs[0]])
    assert ids.shape == labels.shape == (1, 6)


def test_preferences_as_conversations():
    user, good, bad = ({"role": r, "content": c} for r, c in
                       (("user", "p"), ("assistant", "good"), ("assistant", "bad")))
    row = {"prompt": "p", "chosen": [user, good], "rejected": [user, bad]}
    chosen, rejected = tokenize_preferences(from_rows([row]), BYTES)[0]
    assert learned(chosen) == b"good\0" and learned(rejected) == b"bad\0"
    assert text(chosen) == b"<|user|>\np\n<|assistant|>\ngood\0"
    with pytest.raises(DataError, match="role 'user'"):
        from_rows([{**row, "rejected": [user]}])


def test_labels():
    rows = from_rows([
        {"text": "a", "label": 10}, {"text": "b", "text_pair": "c", "label": 9},
        {"text": "a", "label": 10},
    ])
    assert rows[1] == Labelled("b", "9", "c")
    data = tokenize_labelled(rows, BYTES)
    assert data.classes == ("9", "10")  # numbers in the order of numbers
    inputs, labels = data.collate([data[0], data[1]])
    assert labels.tolist() == [1, 0]
    assert inputs["input_ids"].tolist() == [[97, 0, 0], [98, 10, 99]]
    assert inputs["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    with pytest.raises(DataError, match="line 1: the label '10'"):
        tokenize_labelled(rows, BYTES, classes=("9", "8"))
    with pytest.raises(DataError, match="at least two"):
        tokenize_labelled(rows.subset([0, 2]), BYTES)


def test_columns_may_have_other_names(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"ask": "p", "said": "r"})
    rows = read(path, columns={"prompt": "ask", "response": "said"})
    assert learned(tokenize(rows, BYTES)[0]) == b"r\0"
    with pytest.raises(DataError, match="columns has promt"):
        read(path, columns={"promt": "ask"})


# ---- truncation -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "response", "kept"),
    [
        ("abcd", "123", "abcd123\0"),          # fits as it is
        ("abcdefgh", "12", "defgh12\0"),       # the prompt loses its start
        ("abc", "123456789", "abc12345"),      # the response loses its end
        ("abcdefgh", "123456789", "efgh1234"),  # half and half
    ],
)
def test_truncation_keeps_the_start_of_the_response(prompt, response, kept):
    rows = from_rows([{"prompt": prompt, "response": response}])
    tokens = tokenize(rows, BYTES, max_length=8)
    assert text(tokens[0]) == kept.encode()
    first = kept.index("1")
    assert learned(tokens[0]) == kept[first:].encode()
    assert tokens.cut == (() if len(prompt + response) < 8 else (0,))


def test_rows_with_nothing_to_learn_are_counted(tmp_path):
    path = lines(
        tmp_path / "a.jsonl", {"prompt": "p", "response": ""}, {"prompt": "p", "response": "r"},
        {"prompt": "p", "response": " \n"},
    )
    with pytest.warns(PassbandWarning, match=r"2 of 3 rows .*a\.jsonl, line 1"):
        tokens = tokenize(read(path), BYTES)
    assert tokens.unsupervised == (0, 2) and tokens.kept == (1,)
    assert tokens.facts() == {"rows": 3, "tokens": 3, "learned": 2, "cut": 0, "unsupervised": 2}
    with pytest.raises(DataError, match="all 2 rows"):
        tokenize(read(path).subset([0, 2]), BYTES)


# ---- transformers tokenizers ----------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A fast tokenizer of words, with a beginning and an end of sequence."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<pad>", "<s>", "</s>", "<unk>", "Q", "A", "B", "Ask", "ed", "says", ":"]
    tokenizer = Tokenizer(
        models.WordPiece({n: i for i, n in enumerate(names)}, unk_token="<unk>",
                         continuing_subword_prefix="")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>",
    )


def test_a_token_that_reaches_into_the_response_is_learned(words):
    rows = from_rows([{"prompt": "Q : As", "response": "ked A"}])
    ids, labels = tokenize(rows, words)[0]
    assert words.convert_ids_to_tokens(ids.tolist()) == ["<s>", "Q", ":", "Ask", "ed", "A", "</s>"]
    assert (labels != -100).tolist() == [False, False, False, True, True, True, True]


def test_truncation_keeps_the_beginning_of_sequence(words):
    rows = from_rows([{"prompt": "Q Q Q Q Q Q : ", "response": "A B"}])
    ids, labels = tokenize(rows, words, max_length=6)[0]
    assert words.convert_ids_to_tokens(ids.tolist()) == ["<s>", "Q", ":", "A", "B", "</s>"]
    assert (labels != -100).tolist() == [False, False, False, True, True, True]


def test_the_tokenizers_own_chat_template(words):
    words.chat_template = (
        "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    rows = from_rows([{"messages": turns}])
    _ids, labels = tokenize(rows, words)[0]
    assert words.convert_ids_to_tokens(labels[labels != -100].tolist()) == ["A", "</s>"]
    words.chat_template = "{% for m in messages %}{{ loop.length }}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match=r"line 1: .* rewrites earlier turns"):
        tokenize(rows, words)
    words.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(DataError, match="no such role"):
        tokenize(rows, words)
    words.chat_template = None


# ---- files that are wrong -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"[]", "has no rows"),
        (b'{"prompt": "p", "response": "r"}\n{"prompt": "p"\n', "line 2: no JSON at column 15"),
        (b'[{"prompt": "p", "response": "r"},\n {"prompt" "p"}]', "line 2: no JSON"),
        (b'[{"prompt": "p", "response": "r"}', "no JSON"),
        (b'{"prompt": "p", "response": "r"}\n[1]\n', "line 2: a list"),
        (b'{"ask": "p", "said": "r"}\n', "line 1: columns ask, said"),
        (b'{"prompt": "p", "response": "r"}\n{"prompt": "p", "said": "r"}\n',
         "line 2: no response; columns: prompt, said"),
        (b'{"prompt": "p", "response": 5}\n', "line 1: 'response' is the number 5; columns: "),
        (b'{"prompt": null, "response": "r"}\n', "columns prompt, response"),
        (b'{"messages": []}\n', "line 1: 'messages' is empty list"),
        (b'{"messages": [{"role": "bot", "content": "x"}]}\n', r"messages\[0\] has the role 'bot'"),
        (b'{"messages": [{"from": "human"}]}\n', r"messages\[0\] is an object"),
        (b'{"text": "a", "label": 1.5}\n', "'label' is the number 1.5"),
        (b'{"instruction": "a", "input": [1], "output": "b"}\n', "'input' is a list"),
        (b'\n{"text": "\xe9"}\n', "line 2: byte 0xe9 is no UTF-8"),
    ],
)
def test_what_a_file_has_wrong_is_named(tmp_path, content, told):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=told) as error:
        read(path)
    assert str(path) in error.value.what and error.value.expected and error.value.mend


def test_what_is_no_file(tmp_path):
    with pytest.raises(DataError, match="not there"):
        read(tmp_path / "none.jsonl")
    (tmp_path / "some.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"a folder with some\.jsonl"):
        read(tmp_path)


def test_lines_in_a_list_are_counted(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n {"text": "a"},\n\n {"text":\n  "b"}, {"text": "c"}\n]\n')
    assert read(path).lines == (2, 4, 5)
    path.write_text('[\n {"text": "a"},\n {"text": 3}\n]\n')
    with pytest.raises(DataError, match="line 3: 'text' is the number 3"):
        read(path)


def test_signs_that_only_look_like_line_breaks(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "one\u2028two\x85"}, ensure_ascii=False) + "\n", "utf-8")
    assert read(path)[0].text == "one\u2028two\x85"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"text": "a"}\r\n{"text": "b"}\r\n')
    assert [row.text for row in read(path)] == ["a", "b"]


def test_another_form_than_the_task_needs():
    rows = from_rows([{"text": "a", "label": "x"}])
    with pytest.raises(DataError, match="'labelled'"):
        tokenize(rows, BYTES)
    with pytest.raises(DataError, match="'labelled'"):
        tokenize_preferences(rows, BYTES)
    with pytest.raises(DataError, match="'prompt'"):
        tokenize_labelled(from_rows([{"prompt": "a", "response": "x"}]), BYTES)
