"""Results outlive whoever writes them: cut at any byte, they go on without a row lost or twice."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bvllm_adapters.tables import results as module
from bvllm_adapters.tables.results import Results, open_to_append, read_results

OF = {"table": "abc", "fps": 1.0, "model": {"weights": "ff", "config": {"max_tokens": 8}}}
ROWS = [{"row": n, "said": f"é\u2028 {n}" * n, "right": n % 2 == 0} for n in range(1, 6)]


def run(file: Path | None, rows: list[dict[str, Any]] = ROWS) -> dict[int, dict[str, Any]]:
    """Whatever is left of all rows."""
    with Results(file, OF) as results:
        for row in rows:
            if row["row"] not in results.rows:
                results.append(row)
        return dict(results.rows)


WANTED = {row["row"]: row for row in ROWS}


def test_rows_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    assert run(None) == run(file, ROWS[:2]) | run(file) == WANTED
    head, *lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    assert json.loads(head) == {"bvllm_results": 1, "of": OF}
    assert [json.loads(line) for line in lines] == ROWS


class Killed(BaseException):
    pass


class Dies(FileIO):
    """Writes so many bytes more, and then no more."""

    left = 0

    def write(self, data: Any) -> int:
        part = bytes(data)[: Dies.left]
        Dies.left -= len(part)
        written = super().write(part)
        if len(part) < len(data):
            raise Killed
        return int(written)


@given(deaths=st.lists(st.integers(0, 400), max_size=6))
def test_killed_at_any_byte_it_goes_on(deaths: list[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        file = Path(folder) / "results.jsonl"
        for left in deaths:
            Dies.left = left
            patch.setattr(module, "open", lambda f, *_, **__: Dies(f, "a+"), raising=False)
            try:
                run(file)
            except Killed:
                pass
        patch.undo()
        assert run(file) == WANTED
        numbers = [json.loads(line)["row"] for line in file.read_bytes().split(b"\n")[1:-1]]
        assert numbers == [1, 2, 3, 4, 5]


def test_every_byte_once(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    run(file)
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        assert run(file) == WANTED
        assert file.read_bytes() == whole


def test_a_full_disk_is_one_error_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results.jsonl"
    run(file, ROWS[:2])
    before = file.read_bytes()

    class Full(FileIO):
        def write(self, data: Any) -> int:
            super().write(bytes(data)[:5])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "open", lambda f, *_, **__: Full(f, "a+"), raising=False)
    with pytest.raises(OSError, match=r"out: .*results\.jsonl: cannot be written \(No space left"):
        run(file)
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert run(file) == WANTED


def test_a_row_that_comes_again_replaces_the_first(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    with Results(file, OF) as results:
        results.append({"row": 1, "error": "gone"})
        results.append({"row": 1, "said": "here"})
    assert run(file)[1] == {"row": 1, "said": "here"}


def test_other_settings_are_told(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    run(file)
    other = {**OF, "fps": 2.0, "model": {"weights": "ff", "config": {"max_tokens": 16}}}
    told = r"fps 1\.0 there, 2\.0 now; model\.config\.max_tokens 8 there, 16 now"
    with pytest.raises(ValueError, match=told):
        Results(file, other)
    assert run(file) == WANTED


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"my thesis", "holds something else"),
        (b"my thesis\n", "holds something else"),
        (b'{"id": 1}\n', "holds something else"),
        (b'{"bvllm_results": 2, "of": {}}\n', "of format 2"),
        (b'{"bvllm_results": 1, "of": [1]}\n', "holds something else"),
    ],
)
def test_files_of_others_stay_as_they_are(content: bytes, told: str, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=told):
        Results(file, OF)
    assert file.read_bytes() == content


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"said": 1}', b"\xff", b"\0\0"])
def test_a_damaged_line_is_named(line: bytes, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    run(file, ROWS[:1])
    file.write_bytes(file.read_bytes() + line + b"\n")
    with pytest.raises(ValueError, match=r"results\.jsonl, line 3: is damaged"):
        run(file)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wanted a file in a folder that is there"):
        open_to_append(tmp_path / "no" / "results.jsonl", "--out")
    with pytest.raises(ValueError, match="wanted a file"):
        open_to_append(tmp_path, "--out")
    (tmp_path / "closed").write_text("")
    (tmp_path / "closed").chmod(0o400)
    if os.geteuid() != 0:
        with pytest.raises(OSError, match=r"--out: .*closed: cannot be written"):
            open_to_append(tmp_path / "closed", "--out")


@pytest.mark.skipif(sys.platform == "win32", reason="has no locks of this kind")
def test_two_runs_never_write_one_file(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    with Results(file, OF):
        code = (
            "import sys; from bvllm_adapters.tables.results import Results\n"
            "try: Results(sys.argv[1], {})\n"
            "except ValueError as error: print(error)"
        )
        told = subprocess.run(
            [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
        )
    assert "another process is writing" in told.stdout
    assert run(file) == WANTED


def test_half_characters_and_odd_numbers_are_kept_as_json(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    row = {"row": 1, "said": "a\ud800b", "loss": float("nan")}
    with Results(file, OF) as results:
        results.append(row)
    assert run(file, [])[1] == {"row": 1, "said": "a\ud800b", "loss": None}


def test_files_of_shards_are_read_as_one(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.jsonl" for i in range(2)]
    for i, file in enumerate(files):
        run(file, ROWS[i::2])
    with open(files[1], "ab") as file:
        file.write(b'{"row": 9, "sa')  # which is being written
    assert read_results(*files[::-1]) == ROWS
    Results(tmp_path / "other.jsonl", {**OF, "fps": 2.0}).close()
    with pytest.raises(ValueError, match=r"hold results of different things: fps 1\.0 and 2\.0"):
        read_results(*files, tmp_path / "other.jsonl")
    with pytest.raises(ValueError, match=r"files: .*gone: cannot be read"):
        read_results(tmp_path / "gone")
    with pytest.raises(ValueError, match="files: got none, wanted at least one"):
        read_results()
    (tmp_path / "text").write_text("my thesis\n")
    with pytest.raises(ValueError, match=r"files: got .*text, which holds something else"):
        read_results(tmp_path / "text")
