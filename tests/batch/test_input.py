"""Inputs that are wrong are refused whole, with file, line and field; nothing is run."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from preread.backend import Choose, Generate
from preread.batch.files import expand
from preread.batch.job import begin
from preread.batch.journal import Journal
from preread.batch.keys import prefix_json, prefix_of
from preread.batch.order import Order
from preread.batch.table import Faults, Rows, Table
from preread.batch.template import RowTable, Template
from preread.errors import RequestError, SourceError
from preread.types import Message, Prefix, Sampling

from .made import batch_table, chat, row_table, written


def refused(tmp_path: Path, table: Table) -> str:
    """What is said; the journal is empty afterwards."""
    journal = Journal.open(tmp_path / "refused.journal")
    try:
        with pytest.raises((RequestError, SourceError)) as caught:
            begin(journal, table)
        assert not journal.planned and journal.count("requests") == 0
    finally:
        journal.close()
    return str(caught.value)


def all_rows(table: Table) -> tuple[Rows, Faults]:
    faults, whole = Faults(), Rows()
    for rows in table.read(faults):
        for name in Rows.__slots__:
            getattr(whole, name).extend(getattr(rows, name))
    return whole, faults


def body(**fields: Any) -> dict[str, Any]:
    return chat("a", "q", "", **fields)


MESSAGES = "body.messages"
WRONG_LINES = {
    "not JSON": ("line", '{"custom_id": '),
    "a list": ("line", "[1]"),
    "no number": ("body.temperature", json.dumps(body(temperature=float("nan")))),
    "an endless number": ("body.temperature", json.dumps(body(temperature=float("-inf")))),
    "a number too large": ("body.top_p", json.dumps(body(top_p=7)).replace("7", "1e400")),
    "one deep inside": (
        "body.response_format.a[1].b",
        json.dumps(body(response_format={"a": [0, {"b": float("inf")}]})),
    ),
    "nothing but a number that is none": ("line", "NaN"),
    "a lone surrogate": ("line", json.dumps(body()).replace('"q"', '"\\ud800"')),
    "no custom_id": ("custom_id", {k: v for k, v in body().items() if k != "custom_id"}),
    "a number for a name": ("custom_id", body() | {"custom_id": 7}),
    "method": ("method", body() | {"method": "GET"}),
    "url": ("url", body() | {"url": "/v1/embeddings"}),
    "no body": ("body", {k: v for k, v in body().items() if k != "body"}),
    "an unknown part": ("priority", body() | {"priority": 1}),
    "no model": ("body.model", body(model=None)),
    "an unknown option": ("body.reasoning_effort", body(reasoning_effort="high")),
    "two answers": ("body.n", body(n=2)),
    "streaming": ("body.stream", body(stream=True)),
    "logprobs": ("body.logprobs", body(logprobs=True)),
    "tools": ("body.tools", body(tools=[{"type": "function"}])),
    "no tokens": ("body.max_tokens", body(max_tokens=0)),
    "too hot": ("body.temperature", body(temperature=3)),
    "top_p": ("body.top_p", body(top_p=0)),
    "a seed that is none": ("body.seed", body(seed="x")),
    "an empty stop": ("body.stop", body(stop=[""])),
    "a schema without a schema": (
        "body.response_format.json_schema.schema",
        body(response_format={"type": "json_schema"}),
    ),
    "a format": ("body.response_format.type", body(response_format={"type": "xml"})),
    "no messages": (MESSAGES, body(messages=[])),
    "a role": (f"{MESSAGES}[0].role", body(messages=[{"role": "tool", "content": "x"}])),
    "no content": (f"{MESSAGES}[0].content", body(messages=[{"role": "user"}])),
    "an image": (
        f"{MESSAGES}[0].content[0]",
        body(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
    ),
    "a name": (f"{MESSAGES}[0].name", body(messages=[
        {"role": "user", "content": "x", "name": "Ann"}])),
    "the assistant's turn last": (MESSAGES, body(messages=[
        {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])),
    "a late system message": (MESSAGES, body(messages=[
        {"role": "user", "content": "x"}, {"role": "system", "content": "y"}])),
    "only a system message": (MESSAGES, body(messages=[{"role": "system", "content": "y"}])),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_LINES)
def test_a_wrong_line_is_told_with_its_place_and_field(tmp_path: Path, case: str) -> None:
    field, line = WRONG_LINES[case]
    path = written(tmp_path / "in.jsonl", [chat("first", "fine"), line, chat("last", "fine")])
    assert f"{path}:2: {field}: " in refused(tmp_path, batch_table(path))


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", ["x", *[chat(str(i), "q", n=2) for i in range(30)]])
    said = refused(tmp_path, batch_table(path))
    assert said.startswith("31 faults") and "and 11 more" in said and ":20: body.n" in said


def test_custom_ids_are_there_once(tmp_path: Path) -> None:
    one = written(tmp_path / "a.jsonl", [chat("x", "1"), chat("y", "2")])
    two = written(tmp_path / "b.jsonl", [chat("z", "1"), chat("x", "3")])
    said = refused(tmp_path, batch_table(one, two))
    assert f"{one}:1: custom_id: 'x' also at {two}:2" in said


def test_fields_that_change_nothing_are_taken_and_labels_are_noted(tmp_path: Path) -> None:
    given = body(
        n=1, stream=False, presence_penalty=0.0, user="Ann", stop=None, metadata={"a": "b"}
    )
    rows, faults = all_rows(batch_table(written(tmp_path / "in.jsonl", [given])))
    assert not faults.count and len(rows) == 1
    assert set(faults.notes) == {
        f"body.{name} labels a request and was not passed on" for name in ("user", "metadata")
    }


def test_a_body_becomes_an_order(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    given = chat(
        "a", "q", max_tokens=None, max_completion_tokens=7, temperature=0.5, top_p=0.9, seed=3,
        stop="END", response_format={"type": "json_schema", "json_schema": {"schema": schema}},
    )  # fmt: skip
    given["body"]["messages"][0] = {
        "role": "developer",
        "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}],
    }
    rows, faults = all_rows(batch_table(written(tmp_path / "in.jsonl", [given])))
    assert not faults.count, faults.messages
    work = Generate(7, Sampling(0.5, 0.9, 0, 3), ("END",), schema)
    assert rows.orders == [Order("m", work, form="chat")]
    assert rows.prefixes == [Prefix("Be brief.")] and rows.texts == ["q"]


def test_what_a_body_does_not_say_is_as_configured(tmp_path: Path) -> None:
    given = body(max_tokens=None)
    table = batch_table(
        written(tmp_path / "in.jsonl", [given]),
        model="other",
        max_tokens=5,
        temperature=0.7,
        seed=1,
    )
    rows, _ = all_rows(table)
    assert rows.orders[0].model == "other"
    assert rows.orders[0].work == Generate(5, Sampling(0.7, seed=1))


def test_wrong_rows_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text('name,profile\nAnn,sails\nBob\nCy,"two\nlines"\nDee,a,b\n')
    said = refused(tmp_path, row_table(path))
    assert f"{path}:3: row: 1 cells, expected 2" in said
    assert f"{path}:6: row: 3 cells, expected 2" in said and said.startswith("2 faults")


@pytest.mark.parametrize(("text", "told"), [
    ("name,name\na,b\n", "'name' is named twice"),
    ("name,\na,b\n", "'' is without a name"),
    ('name\n"open\n', ":2: row: cannot be read: unexpected end of data; a quote is opened"),
    ("name,answer\na,b\n", "answer: the output adds a column of that name"),
    ("other\na\n", "name: no such column; there are other"),
])  # fmt: skip
def test_wrong_tables(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "in.csv"
    path.write_text(text)
    assert told in refused(tmp_path, row_table(path, item="{name}"))


def test_empty_items_and_inputs(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("name,x\n ,b\n")
    assert ":2: item: is empty" in refused(tmp_path, row_table(path, item="{name}"))
    path.write_text("name,x\n")
    assert "holds no request" in refused(tmp_path, row_table(path))


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"a": "b"}\n{"a": "\xff"}\n')
    said = refused(tmp_path, row_table(tmp_path / "in.jsonl"))
    assert ":2: text: not UTF-8 (byte 0xff); save the file as UTF-8" in said
    (tmp_path / "in.csv").write_bytes("name\nAnn\n".encode("utf-16"))
    assert ":1: row: not UTF-8 (UTF-16)" in refused(tmp_path, row_table(tmp_path / "in.csv"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("before", [0, 1, 700, 5000])
def test_the_line_of_a_cell_that_is_no_text(tmp_path: Path, before: int, end: str) -> None:
    """Files are decoded in pieces of some kilobytes, rows are read one by one."""
    rows = ["name,profile", *(f"Ann{i},sails and rows" for i in range(before)), "José,x", "Bob,y"]
    (tmp_path / "in.csv").write_bytes(end.join(rows).encode("latin-1"))
    said = refused(tmp_path, row_table(tmp_path / "in.csv"))
    assert f"in.csv:{before + 2}: row: not UTF-8 (byte 0xe9)" in said and said.startswith(
        "1 fault "
    )


def test_a_field_that_is_there_twice_is_not_dropped(tmp_path: Path) -> None:
    cells = ['{"a": 1, "b": {"c": 1, "d": 2, "c": 3}}', '{"a": 1, "a": 1}', '{"a": {"a": 1}}']
    said = refused(tmp_path, row_table(written(tmp_path / "in.jsonl", cells)))
    assert ":1: c: is there twice" in said and ":2: a: is there twice" in said
    assert said.startswith("2 faults")


def test_a_file_is_read_once_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.csv").write_text("n\n1\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    monkeypatch.chdir(tmp_path)
    assert expand(["a.csv", "./a.csv", str(tmp_path / "*.csv"), "-", "-"]) == ["a.csv", "-"]


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"a": "b"}\n' * 1000)
    for name, data in {
        "short.jsonl.gz": whole[:-20],
        "bad.jsonl.gz": whole[:20] + b"x" * 9,
    }.items():
        (tmp_path / name).write_bytes(data)
        assert "damaged gzip" in refused(tmp_path, row_table(tmp_path / name))


def test_parquet_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "in.parquet").write_bytes(b"PAR1")
    assert "pip install 'preread[parquet]'" in refused(tmp_path, row_table(tmp_path / "in.parquet"))


def test_parquet_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"name": ["Ann", "Bob"], "age": [30, None]})
    parquet.write_table(table, tmp_path / "in.parquet")
    rows, _ = all_rows(row_table(tmp_path / "in.parquet"))
    assert rows.texts == ["name: Ann\nage: 30", "name: Bob\nage: null"]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    assert "bad.parquet" in refused(tmp_path, row_table(tmp_path / "bad.parquet"))


def test_parquet_from_a_pipe_and_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read from its end, which neither has."""
    pyarrow, parquet = (pytest.importorskip(f"pyarrow{n}") for n in ("", ".parquet"))
    parquet.write_table(pyarrow.table({"n": list(range(3000))}), tmp_path / "in.parquet")
    data = (tmp_path / "in.parquet").read_bytes()
    (tmp_path / "in.parquet.gz").write_bytes(gzip.compress(data))
    rows, faults = all_rows(row_table(tmp_path / "in.parquet.gz"))
    assert rows.lines == list(range(1, 3001)) and not faults.count
    read, write = os.pipe()
    os.write(write, data)  # less than a pipe holds
    os.close(write)
    with open(read, "rb") as pipe:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(pipe))
        asks = [(Order("m", Choose(("A", "B"))), Prefix(""), "")]
        again, faults = all_rows(RowTable(["-"], asks, Template(), format="parquet"))
    assert again.texts == rows.texts and not faults.count


def test_bytes_in_parquet_are_texts_or_faults(tmp_path: Path) -> None:
    """Columns of older writers say nothing of being text."""
    pyarrow, parquet = (pytest.importorskip(f"pyarrow{n}") for n in ("", ".parquet"))
    cells = [["é".encode(), None], [b"ok", b"\xff\x00"]]
    parquet.write_table(
        pyarrow.table({"name": [b"Ann", b"Bob"], "x": cells}), tmp_path / "in.parquet"
    )
    said = refused(tmp_path, row_table(tmp_path / "in.parquet"))
    assert ":2: x[1]: b'\\xff\\x00' is no UTF-8 text" in said and said.startswith("1 fault ")
    rows, _ = all_rows(row_table(tmp_path / "in.parquet"))
    assert rows.texts == ['name: Ann\nx: ["é", null]']


def test_numbers_that_json_has_not_are_told(tmp_path: Path) -> None:
    """Cells would otherwise come out as lines that no other reader takes."""
    cells = ['{"a": 1, "b": [0.5, NaN]}', '{"a": 1e400}', '{"a": -1e-400, "b": 1e300}']
    said = refused(tmp_path, row_table(written(tmp_path / "in.jsonl", cells)))
    assert ":1: b[1]: NaN is no finite number" in said and ":2: a: 1e400 is" in said
    assert said.startswith("2 faults")
    pyarrow, parquet = (pytest.importorskip(f"pyarrow{n}") for n in ("", ".parquet"))
    kind = pyarrow.list_(pyarrow.float32())
    column = pyarrow.array([[1.0], [2.0, float("inf")]], kind)
    parquet.write_table(pyarrow.table({"x": column}), tmp_path / "in.parquet")
    said = refused(tmp_path, row_table(tmp_path / "in.parquet"))
    assert ":2: x[1]: NaN or Infinity is no finite number" in said and "write null" in said


def test_unknown_kinds_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "IN.CSV.GZ").write_bytes(gzip.compress(b"a\nb\n"))
    assert all_rows(row_table(tmp_path / "IN.CSV.GZ"))[0].texts == ["a: b"]
    (tmp_path / "in.txt").write_text("x")
    assert "unknown kind" in refused(tmp_path, row_table(tmp_path / "in.txt"))
    with pytest.raises(SourceError, match="no such file"):
        expand([str(tmp_path / "*.none")])
    with pytest.raises(SourceError, match="only folders"):
        expand([str(tmp_path.parent / "*")])


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BufferedReader(io.BytesIO(b'{"a": "b"}\n'))  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))
    rows, faults = all_rows(row_table(Path("-")))
    assert rows.texts == ["a: b"] and not faults.count


@pytest.mark.parametrize("text", ["{", "{}", "{a!r}", "{a:>9}", "}"])
def test_templates_that_are_none(text: str) -> None:
    with pytest.raises(RequestError, match="--item"):
        Template(text)


def test_templates_write_what_they_say() -> None:
    row = {"a b": "x{y}", "n": 3, "deep": {"k": [1, None]}}
    assert Template("{{{a b}}}-{n}-{deep}").write(row) == '{x{y}}-3-{"k": [1, null]}'
    assert Template("always").write(row) == "always"
    with pytest.raises(KeyError):
        Template("{a.b}").write({"a": 1})  # a column of that name, never an attribute


@pytest.mark.parametrize("order", [
    Order("m", Generate(3, Sampling(0.1, 0.2, 3, 4), ("x",), {"type": "object"}), form="chat"),
    Order("m", Choose(("A", "B")), raw=True),
])  # fmt: skip
def test_orders_and_prefixes_come_back_from_their_text(order: Order) -> None:
    again = Order.from_json(order.to_json())
    assert again == order and again.key == order.key
    prefix = Prefix("s é", (Message("user", "a\n"), Message("assistant", "")))
    assert prefix_of(prefix_json(prefix)) == prefix
