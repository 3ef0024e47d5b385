import csv
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.files.records import open_records
from rept.errors import UsageError


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def records(path: str) -> list[dict[str, object] | None]:
    opened = open_records(path, "train", "datamodule.train")
    return [opened[row] for row in range(len(opened))]


def test_json_lines_are_read_as_they_are(tmp_path: Path) -> None:
    lines = '\ufeff{"a": 1, "b": "x"}\r\n\n{"a": "\\u2028 é"}\n[7]\nnull\n  {"c": [1, {"d": null}]}'
    path = write(tmp_path, "a.jsonl", lines)
    assert records(path) == [{"a": 1, "b": "x"}, {"a": "\u2028 é"}, None, None, {"c": [1, {"d": None}]}]
    assert open_records(path, "train", "").columns == ["a", "b", "c"]


MANY = settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
VALUES = st.none() | st.integers() | st.text() | st.lists(st.text(), max_size=2)


@MANY
@given(rows=st.lists(st.dictionaries(st.text(), VALUES, max_size=3), min_size=1, max_size=5))
def test_json_round_trip(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    assert records(write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))) == rows
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    if lines.isprintable():
        assert records(write(tmp_path, "b.json", lines)) == rows
    assert records(write(tmp_path, "c.json", json.dumps(rows, indent=1))) == rows


@MANY
@given(rows=st.lists(st.lists(st.text(st.characters(codec="utf-8")), min_size=2, max_size=2), min_size=1, max_size=5))
def test_csv_round_trip(tmp_path: Path, rows: list[list[str]]) -> None:
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["one", "two"], *rows])
    assert records(str(tmp_path / "a.csv")) == [{"one": one or None, "two": two or None} for one, two in rows]


def test_csv_infers_no_types_and_refuses_a_wrong_width(tmp_path: Path) -> None:
    lines = '\ufeffprompts,response\n\n007,NA\r\n\n"a ""b""\n\nc",None\ntoo,many,fields\nfew\n,\n'
    path = write(tmp_path, "a.csv", lines)
    assert records(path) == [
        {"prompts": "007", "response": "NA"},
        {"prompts": 'a "b"\n\nc', "response": "None"},
        None,
        None,
        {"prompts": None, "response": None},
    ]


@pytest.mark.parametrize("header", ["prompts", ",prompts"])
def test_csv_may_have_an_unnamed_index_column(tmp_path: Path, header: str) -> None:
    path = write(tmp_path, "a.csv", f'{header}\n0,"Name, please"\n1,TY\n')
    assert records(path) == [{"prompts": "Name, please"}, {"prompts": "TY"}]


def test_a_field_may_be_long(tmp_path: Path) -> None:
    text = "x" * 200_000
    assert records(write(tmp_path, "a.tsv", f"a\tb\n{text}\ty,z\n")) == [{"a": text, "b": "y,z"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": }\n', "line 3: invalid JSON"),
        ("a.jsonl", '{"a": 1}\n{"a": 2', "line 2: invalid JSON"),
        ("a.jsonl", '{"a": 1}\n' + "[" * 100_000, "line 2: invalid"),
        ("a.jsonl", '{"a": 1}\n{"a": ' + "1" * 5000 + "}", "line 2: invalid"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', "line 2: not UTF-8 text"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), "line 1: not UTF-8 text"),
        ("a.jsonl", '{\n"a": 1}', "expected one JSON object a line"),
        ("a.json", '[{"a": 1},\n{"a": }]', "line 2: invalid JSON"),
        ("a.jsonl", "\n \n", "has no rows"),
        ("a.json", "[]", "has no rows"),
        ("a.jsonl", "", "is empty"),
        ("a.csv", "", "is empty"),
        ("a.csv", "prompts\n", "has no rows"),
        ("a.csv", 'prompts,b\nx,y\n"never closed,z\n', "line 3: invalid"),
        ("a.csv", b"prompts\n\xe9\n", "line 2: not UTF-8 text"),
        ("a.csv", "a,b,a\n1,2,3\n", "more than one column named a"),
        ("a.jsonl.gz", b"", "is empty"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("a.csv.gz", gzip.compress(b"a\n1\n", mtime=0)[:-9], "damaged or cut off"),
        ("a.jsonl.gz", '{"a": 1}', "damaged or cut off"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n{"a": }', mtime=0), "line 2: invalid JSON"),
        ("a.parquet.gz", gzip.compress(b"x", mtime=0), "Expected datamodule.train to be a file .jsonl"),
        ("a.xlsx", "x", "Expected datamodule.train to be a file .jsonl"),
    ],
)
def test_a_damaged_file_is_reported_in_a_sentence(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        records(write(tmp_path, name, content))
    assert message in str(error.value) and name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["nowhere.jsonl", "no/such/file.csv", "tests/nothing", "squad", ""])
def test_a_missing_path_is_reported_with_the_accepted_formats(path: str) -> None:
    with pytest.raises(
        UsageError, match="does not exist; expected a file .jsonl, .json, .csv, .tsv .also .gz. or .parquet"
    ):
        open_records(path or "nothing", "train", "datamodule.train")


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a folder without a data set; expected a file .jsonl"):
        open_records(str(tmp_path), "train", "datamodule.train")


def test_an_error_of_the_file_system_is_reported_in_a_sentence() -> None:
    with pytest.raises(UsageError, match="cannot be read: File name too long"):
        open_records("a" * 5000 + ".jsonl", "train", "datamodule.train")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", '{"a": "1"}\n{"a": "2"}'), ("a.json", '[{"a": "1"}, {"a": "2"}]'), ("a.csv", "a\n1\n2")],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file_compressed_by_gzip_is_read_like_the_file_itself(
    tmp_path: Path, name: str, content: str, mark: str
) -> None:
    plain = write(tmp_path, name, mark + content)
    packed = write(tmp_path, f"{name}.gz", gzip.compress((mark + content).encode()))
    assert records(packed) == records(plain) == [{"a": "1"}, {"a": "2"}]


def test_only_the_index_is_in_memory(tmp_path: Path) -> None:
    """Rows are read again each time, so a change of the file is visible."""
    path = write(tmp_path, "a.jsonl", '{"a": "x"}\n{"a": "y"}\n')
    opened = open_records(path, "train", "")
    with Path(path).open("r+b") as file:
        file.write(b'{"a": "z"}')
    assert opened[0] == {"a": "z"}
    with pytest.raises(IndexError):
        opened[2]


PIECES = list('{}[]":,\n\r\0\ufeff') + ['{"a": 1}', "a,b", "null", "\\ud800", "1e999", "NaN"]


@MANY
@given(
    name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"]),
    content=st.lists(st.sampled_from(PIECES)).map(lambda pieces: "".join(pieces).encode()) | st.binary(),
)
def test_any_file_is_read_or_refused_in_a_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    try:
        found = records(write(tmp_path, name, content))
    except UsageError as refused:
        assert name in str(refused) and "\n" not in str(refused)
    else:
        assert found and all(record is None or isinstance(record, dict) for record in found)
