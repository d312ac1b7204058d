"""Tables of all kinds, and what is said of those that cannot be read."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bvllm_adapters.tables.media_paths import RowError, media_path
from bvllm_adapters.tables.table import plain, read_table

ROWS = [
    {"video": "a.mp4", "question": "Who, where?", "answer": "é\u2028", "kind": "x"},
    {"video": "b c.mp4", "question": 'A "quoted"\none', "answer": "2", "kind": None},
]


def test_the_same_rows_whatever_the_kind(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    (tmp_path / "t.jsonl").write_text(lines + "\n\n", encoding="utf-8")
    (tmp_path / "t.json").write_text(json.dumps(ROWS))
    cells = '\ufeffvideo,question,answer,kind\r\na.mp4,"Who, where?",é\u2028,x\r\n\r\n'
    cells += 'b c.mp4,"A ""quoted""\none",2,\r\n'
    (tmp_path / "t.csv").write_bytes(cells.encode())
    tables = {name: read_table(tmp_path / f"t.{name}") for name in ("jsonl", "json", "csv")}
    for table in tables.values():
        assert [dict(row.values) for row in table.rows] == [
            ROWS[0],
            {key: value for key, value in ROWS[1].items() if value is not None},
        ]
        assert [row.number for row in table.rows] == [1, 2]
        assert table.columns == ["video", "question", "answer", "kind"]
        assert table.digest() == tables["json"].digest()
    assert tables["jsonl"].rows[1].place == f"{tmp_path / 't.jsonl'}:2"
    assert tables["csv"].rows[1].place == f"{tmp_path / 't.csv'}:5"  # where it ends


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.jsonl", b'{"a": 1}\n{"a"', r"t\.jsonl, line 2: cannot be read"),
        ("t.jsonl", b'{"a": 1}\n[1]', r"t\.jsonl:2: got list, wanted an object of columns"),
        ("t.jsonl", b"\xff\xfe", r"t\.jsonl: cannot be read"),
        ("t.jsonl", b"", r"t\.jsonl: got no rows"),
        ("t.json", b"{}", r"t\.json: got dict, wanted a list"),
        ("t.json", b'[{"a": 1, "a": 2}]', r"got 'a' twice"),
        ("t.csv", b"a,b\n", r"t\.csv: got no rows"),
        ("t.csv", b"a,a\n1,2\n", r"t\.csv, line 1: cannot be read \(got columns"),
        ("t.csv", b"a,b\n1,2\n1,2,3\n", r"t\.csv, line 3: cannot be read \(got 3 cells, wanted 2"),
        ("t.csv", b'a,b\n"1', r"t\.csv, line 2: cannot be read"),
        ("t.csv", b"a\n" + b"x" * 200_000, r"t\.csv, line 2: cannot be read \(field larger"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^FILE: .*{told}"):
        read_table(tmp_path / name, name="FILE")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("t.jsonl", "t.csv"):
        with pytest.raises(ValueError, match=rf"table: .*{name}: cannot be read"):
            read_table(tmp_path / name)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"t\.parquet is parquet.*pip install pyarrow"):
        read_table(tmp_path / "t.parquet")


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "t.parquet"
    rows = [{"a": 1, "b": ["x", "y"], "c": b"123"}, {"a": None, "b": [], "c": None}]
    parquet.write_table(arrow.Table.from_pylist(rows), file)
    table = read_table(file)
    assert [dict(row.values) for row in table.rows] == [
        {"a": 1, "b": ["x", "y"], "c": "3 bytes"},
        {"b": []},
    ]
    assert table.rows[1].place == f"{file}[1]"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"t\.parquet: cannot be read"):
        read_table(file)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ({1: (1, [float("nan"), float("inf")])}, {"1": [1, [None, None]]}),
        (b"abc", "3 bytes"),
        (date(2024, 12, 12), "2024-12-12"),
        (True, True),
    ],
)
def test_plain_values_are_those_of_json(value: Any, wanted: Any) -> None:
    assert plain(value) == wanted
    json.dumps(plain(value), allow_nan=False)


def test_absolute_paths_stay_in_the_folder_where_they_must(tmp_path: Path) -> None:
    inside = str(tmp_path / "a" / "b.mp4")
    assert media_path("video", inside, tmp_path, absolute=False) == Path(inside)
    for path in ("/else/b.mp4", f"{tmp_path}x/b.mp4", f"{tmp_path}/../b.mp4"):
        assert media_path("video", path, tmp_path, outside=True, absolute=False)
        with pytest.raises(RowError, match="leaves the media folder"):
            media_path("video", path, tmp_path, absolute=False)
    here = os.path.relpath(tmp_path)
    assert media_path("video", inside, Path(here), absolute=False) == Path(inside)


pieces = st.sampled_from(
    [
        b'{"a": 1}',
        b"\n",
        b"a,b",
        b'"',
        b",",
        b"\r\n",
        b"[",
        b"]",
        b"{",
        b"}",
        b"1",
        b"\0",
        b"\xef\xbb\xbf",
    ]
)


@given(
    content=st.binary(max_size=60) | st.lists(pieces, max_size=12).map(b"".join),
    name=st.sampled_from(["t.jsonl", "t.json", "t.csv", "t.tsv"]),
)
def test_any_file_is_a_table_or_an_error(content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(content)
        try:
            table = read_table(file)
        except ValueError as error:
            assert str(file) in str(error)
            return
        assert len(table.digest()) == 64 and table.rows[0].number == 1
        json.dumps([dict(row.values) for row in table.rows], allow_nan=False)
