import pytest

from datamodules.files.exclusion import excluded_rows
from rept.errors import UsageError


def write(tmp_path, text: str):
    path = tmp_path / "rows"
    path.write_text(text)
    return path


def test_none_and_numbers():
    assert excluded_rows(None, 5) == frozenset()
    assert excluded_rows([4, 0, 4], 5) == {0, 4}


@pytest.mark.parametrize(
    "text",
    [
        "[3, 1]",
        '{"run": "x", "rows": [3, 1]}',
        "row\n3\n1\n",
        "score,row\n0.5,3\n0.25,1\n",
        "\ufeffrow,label\n3,a\n1,b\n",
    ],
)
def test_files(tmp_path, text):
    assert excluded_rows(str(write(tmp_path, text)), 5) == {1, 3}
    assert excluded_rows(write(tmp_path, text), 5) == {1, 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 5]", "from 0 to 4, but got 5"),
        ("[-1]", "got -1"),
        ('["1"]', "got '1'"),
        ("[true]", "got True"),
        ("[1.5]", "got 1.5"),
        ("row\nx\n", "got 'x'"),
        ("row\n\u00b2\n", "got '\u00b2'"),
        ("[1,\n2", "line 2"),
        ('{"row": [1]}', "list of row numbers as rows, but got None"),
        ("line\n1\n", "columns found: line"),
        ("", "columns found: none"),
    ],
)
def test_invalid_lists_are_reported(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        excluded_rows(write(tmp_path, text), 5)


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(UsageError, match="cannot be read .No such file"):
        excluded_rows(tmp_path / "none.json", 5)


def test_a_binary_file_is_reported(tmp_path):
    (tmp_path / "rows").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        excluded_rows(tmp_path / "rows", 5)
