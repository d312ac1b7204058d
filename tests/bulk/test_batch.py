"""Tables of videos asked of a model: nothing is lost, nothing twice, and nothing bad stops it."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from json_lines import read, write
from rows import bad, threads, timeless, videos, warned

import bvllm_adapters as bvllm
from bvllm_adapters.bulk import answers as module
from bvllm_adapters.bulk.answers import AskRows
from bvllm_adapters.cli.main import main
from bvllm_adapters.tables.results import Results
from bvllm_adapters.tables.table import read_table
from bvllm_qwen2.tiny import tiny_model

VIDEOS, EACH = 4, 2
ROWS = VIDEOS * EACH
FEW = {"max_new_tokens": 3}


@pytest.fixture(scope="module")
def tiny() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few videos and a table of questions about each, in no order."""
    folder = tmp_path_factory.mktemp("videos")
    rows = videos(folder, VIDEOS, each=EACH)
    random.Random(0).shuffle(rows)
    write(folder / "table.jsonl", rows)
    return folder


def run(tiny: Any, table: Any, **settings: Any) -> list[dict[str, Any]]:
    return bvllm.batch(tiny[0], table, processor=tiny[1], **{**FEW, **settings})


def test_rows_are_what_asking_gives(tiny: Any, folder: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    out = tmp_path / "answers.jsonl"
    found = run(tiny, folder / "table.jsonl", out=out, progress=lambda *of: told.append(of))
    lines = [json.loads(line) for line in (folder / "table.jsonl").read_text().splitlines()]
    assert [row["id"] for row in found] == [line["id"] for line in lines]
    assert sorted(read(out), key=lambda row: row["row"]) == found
    assert told == [(done, len(lines)) for done in range(len(lines) + 1)]
    for number, (row, line) in enumerate(zip(found, lines, strict=True), 1):
        answer = bvllm.ask(tiny[0], folder / line["video"], line["question"], processor=tiny[1],
                           do_sample=False, **FEW)  # fmt: skip
        assert (row["row"], row["video"]) == (number, line["video"])
        assert (row["question"], row["columns"]) == (line["question"], {"kind": line["kind"]})
        assert row["answer"] == answer.text
        assert row["tokens"] == answer.trace.num_tokens <= row["max_tokens"] == 32
        shown = [(f["frame"], f["second"], f["tokens"]) for f in row["frames"]]
        assert shown == [(f.frame, round(f.second, 3), f.tokens) for f in answer.trace.frames]
        assert row["frames_decoded"] == answer.trace.frames_decoded and row["seconds"] > 0


def test_a_row_does_not_depend_on_its_neighbours(tiny: Any, folder: Path) -> None:
    wanted = timeless(run(tiny, folder / "table.jsonl", workers=0))
    ways: list[dict[str, Any]] = [{"workers": 3}, {"batch_size": 4, "workers": 2}]
    ways += [{"batch_size": 99, "workers": 0, "encoding": bvllm.Encoding(patches="again")}]
    for settings in ways:
        assert timeless(run(tiny, folder / "table.jsonl", **settings)) == wanted
    halves = [run(tiny, folder / "table.jsonl", rows=f"{i}::2", batch_size=2) for i in (0, 1)]
    assert timeless(sorted(halves[0] + halves[1], key=lambda row: row["row"])) == wanted


def test_in_bfloat16_too_reading_ahead_changes_nothing(folder: Path) -> None:
    model, processor = tiny_model()
    half = (model.to(torch.bfloat16), processor)
    wanted = timeless(run(half, folder / "table.jsonl", workers=0))
    assert timeless(run(half, folder / "table.jsonl", workers=3)) == wanted
    together = timeless(run(half, folder / "table.jsonl", batch_size=8))
    assert [row["frames"] for row in together] == [row["frames"] for row in wanted]


def test_each_video_is_opened_once_and_few_are_open(
    tiny: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[Path] = []
    room: list[int] = []
    open_video = module.open_video

    def opened(model: Any, path: Path, *, encoding: Any, **settings: Any) -> Any:
        paths.append(path)
        room.append(encoding.host_bytes)
        return open_video(model, path, encoding=encoding, **settings)

    monkeypatch.setattr(module, "open_video", opened)
    encoding = bvllm.Encoding(host_bytes=700)
    run(tiny, folder / "table.jsonl", batch_size=5, workers=2, encoding=encoding)
    assert sorted(paths) == [folder / f"{n}.mp4" for n in range(VIDEOS)]
    assert set(room) == {100}


@pytest.mark.parametrize(
    ("good", "spoiled"),
    [
        pytest.param(8, 23, id="of each kind"),
        pytest.param(180, 20, id="of 200", marks=pytest.mark.slow),
    ],
)
def test_bad_files_never_stop_it(good: int, spoiled: int, tiny: Any, tmp_path: Path) -> None:
    rows: list[Any] = videos(tmp_path, good)
    rows[3]["video"] = warned(tmp_path)
    rows += bad(tmp_path)[:spoiled]
    random.Random(1).shuffle(rows)
    why = {i: row[1] for i, row in enumerate(rows, 1) if isinstance(row, tuple)}
    rows = [row[0] if isinstance(row, tuple) else row for row in rows]
    table, out, count = write(tmp_path / "table.jsonl", rows), tmp_path / "a.jsonl", len(rows)
    share = len(why) / count
    assert len(why) == spoiled
    found = run(tiny, table, out=out, batch_size=8, workers=2, max_errors=share)
    assert [row["row"] for row in found] == [*range(1, count + 1)]
    assert {row["row"] for row in found if "error" in row} == why.keys()
    for row in found:
        if "error" in row:
            assert row["error"].startswith(f"{table}:{row['row']}: ") and "\n" not in row["error"]
            assert why[row["row"]] in row["error"]
        else:
            assert row["answer"] and row["frames"]
            assert ("warnings" in row) == (row["video"] == "damaged.mp4")
    assert sum("warnings" in row for row in found) == 1
    assert run(tiny, table, out=out, max_errors=share) == found
    fewer = share / 2
    with pytest.raises(
        ValueError, match=rf"of {count} rows failed, more than max_errors={fewer:g}"
    ):
        run(tiny, table, max_errors=fewer, workers=2)
    assert not threads()


def test_rows_that_failed_are_asked_again_when_wanted(tiny: Any, tmp_path: Path) -> None:
    rows = videos(tmp_path, 2)
    (tmp_path / "1.mp4").rename(tmp_path / "away.mp4")
    table, out = write(tmp_path / "table.jsonl", rows), tmp_path / "answers.jsonl"
    before = run(tiny, table, out=out)
    assert [("error" in row) for row in before] == [False, True]
    (tmp_path / "away.mp4").rename(tmp_path / "1.mp4")
    assert run(tiny, table, out=out) == before
    after = run(tiny, table, out=out, retry_errors=True)
    assert after[0] == before[0] and "error" not in after[1]
    assert bvllm.read_results(out) == after and len(read(out)) == 3


# Stopped, and gone on.


class Killed(BaseException):
    pass


@pytest.mark.parametrize("batch_size", [1, 4])
def test_killed_at_any_row_it_goes_on(
    batch_size: int, tiny: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = timeless(run(tiny, folder / "table.jsonl"))
    append, random_ = Results.append, random.Random(batch_size)

    def killing(self: Results, row: Any) -> None:
        moment = random_.randrange(4)
        if moment == 0:  # while the line is written
            assert self.file is not None
            with open(self.file, "ab") as file:
                file.write(json.dumps(row).encode()[: random_.randrange(40)])
            raise Killed
        append(self, row)
        if moment == 1:
            raise Killed

    monkeypatch.setattr(Results, "append", killing)
    out, kills = tmp_path / "answers.jsonl", 0
    while True:
        try:
            found = run(tiny, folder / "table.jsonl", out=out, batch_size=batch_size)
            break
        except Killed:
            kills += 1
            assert kills < 99, "it does not go on"
    assert kills > 2 and timeless(found) == wanted
    assert sorted(row["row"] for row in read(out)) == [row["row"] for row in wanted]


SCRIPT = """
import sys
import bvllm_adapters as bvllm
from bvllm_qwen2.tiny import tiny_model
model, processor = tiny_model()
bvllm.batch(model, sys.argv[1], processor=processor, out=sys.argv[2], max_new_tokens=3,
            batch_size=2)
"""


@pytest.mark.parametrize(
    "kills", [pytest.param(1, id="once"), pytest.param(8, id="often", marks=pytest.mark.slow)]
)
def test_a_process_that_is_killed_goes_on(kills: int, tiny: Any, tmp_path: Path) -> None:
    count = 24 if kills == 1 else 120
    table = write(tmp_path / "table.jsonl", videos(tmp_path, count))
    out, had = tmp_path / "answers.jsonl", 0
    for kill in range(kills):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(table), str(out)])
        while process.poll() is None and (not out.exists() or len(read(out)) < had + 3 + kill):
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert len(read(out)) >= had
        had = len(read(out))
    assert 3 <= had < count, "it was not killed in between"
    left = read(out)
    found = run(tiny, table, out=out)
    assert read(out)[:had] == left
    assert sorted(row["row"] for row in read(out)) == [*range(1, count + 1)]
    assert timeless(found) == timeless(run(tiny, table))


def test_a_full_disk_is_one_error_and_loses_nothing(
    tiny: Any, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    wanted = run(tiny, folder / "table.jsonl", out=out)
    whole, size = out.read_bytes(), out.stat().st_size
    out.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        told = r"out: .*answers\.jsonl: cannot be written \(File too large\); what is done is kept"
        with pytest.raises(OSError, match=told):
            run(tiny, folder / "table.jsonl", out=out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept = read(out)
    assert 0 < len(kept) < len(wanted) and out.read_bytes().endswith(b"\n")
    assert out.stat().st_size <= size // 2 and whole.split(b"\n")[0] in out.read_bytes()
    assert timeless(run(tiny, folder / "table.jsonl", out=out)) == timeless(wanted)
    assert read(out)[: len(kept)] == kept


def test_a_folder_that_cannot_be_written_is_one_error(
    tiny: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "open_video", None)  # nothing is read before it is found out
    table = read_table(folder / "table.jsonl")
    with tempfile.TemporaryDirectory() as closed:
        Path(closed).chmod(0o555)
        root = os.geteuid() == 0
        try:
            if root:  # who may write everywhere
                os.seteuid(65534)
            with pytest.raises(OSError, match=r"out: .*a\.jsonl: cannot be written \(Permission"):
                run(tiny, table, media=folder, out=Path(closed) / "a.jsonl")
        finally:
            if root:
                os.seteuid(0)


def test_a_device_that_broke_stops_it(
    tiny: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(torch, "AcceleratorError"):
        pytest.skip("this torch does not tell such errors apart")
    ask_batch = module.ask_batch
    asked: list[int] = []

    def breaking(items: Any, **settings: Any) -> Any:
        asked.append(1)
        if len(asked) > 2:
            raise torch.AcceleratorError("an illegal memory access was encountered")
        return ask_batch(items, **settings)

    monkeypatch.setattr(module, "ask_batch", breaking)
    with pytest.raises(torch.AcceleratorError, match="illegal memory"):
        run(tiny, folder / "table.jsonl", out=tmp_path / "a.jsonl")
    assert len(asked) == 3 and ["error" in row for row in read(tmp_path / "a.jsonl")] == [False] * 2


def test_one_row_of_a_batch_fails_alone(
    tiny: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_batch = module.ask_batch

    def failing(items: Any, **settings: Any) -> Any:
        if any(question == "Where?" for _, question in items):
            raise torch.OutOfMemoryError("no room")
        return ask_batch(items, **settings)

    wanted = run(tiny, folder / "table.jsonl")
    monkeypatch.setattr(module, "ask_batch", failing)
    found = run(tiny, folder / "table.jsonl", batch_size=6)
    for row, other in zip(found, wanted, strict=True):
        if row["question"] == "Where?":
            assert row["error"].endswith(f":{row['row']}: OutOfMemoryError: no room")
        else:
            assert row["answer"] == other["answer"]


# Tables, and shares of them.


def test_any_table_is_the_same(tiny: Any, folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [json.loads(line) for line in (folder / "table.jsonl").read_text().splitlines()][:3]
    with open(tmp_path / "t.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    wanted = timeless(run(tiny, write(tmp_path / "t.jsonl", rows), media=folder))
    assert timeless(run(tiny, rows, media=folder)) == wanted
    assert timeless(run(tiny, tmp_path / "t.parquet", media=folder)) == wanted
    texts = timeless(run(tiny, tmp_path / "t.csv", media=folder))
    assert [row.pop("columns") for row in texts] == [{"kind": str(row["kind"])} for row in rows]
    assert texts == [{k: v for k, v in row.items() if k != "columns"} for row in wanted]


def test_a_folder_of_videos_with_one_question(tiny: Any, tmp_path: Path) -> None:
    videos(tmp_path, 3)
    (tmp_path / "more").mkdir()
    (tmp_path / "2.mp4").rename(tmp_path / "more" / "2.MP4")
    for name in ("notes.txt", ".hidden.mp4", "more/2.srt"):
        (tmp_path / name).write_text("no video")
    (tmp_path / "broken.mov").write_text("no video")
    found = run(tiny, tmp_path, question="Who?")
    assert [row["video"] for row in found] == ["0.mp4", "1.mp4", "broken.mov", "more/2.MP4"]
    assert [row.get("error", "")[:9] for row in found] == ["", "", str(tmp_path)[:9], ""]
    assert "broken.mov" in found[2]["error"] and {row["question"] for row in found} == {"Who?"}
    with pytest.raises(ValueError, match=r"none of 4 rows .*question: got None, wanted a text"):
        run(tiny, tmp_path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="which holds no videos"):
        run(tiny, tmp_path / "nothing", question="Who?")


def test_shares_together_are_the_whole(tiny: Any, folder: Path, tmp_path: Path) -> None:
    table = folder / "table.jsonl"
    wanted = timeless(run(tiny, table))
    for kind in ("rows", "videos"):
        files = [tmp_path / f"{kind}{i}.jsonl" for i in range(VIDEOS + 1)]
        counts = []
        for i, file in enumerate(files):
            found = run(tiny, table, out=file, **{kind: f"{i}::{VIDEOS + 1}"})
            counts.append(len(found))
            assert kind == "rows" or len({row["video"] for row in found}) in (0, 1)
        assert sum(counts) == len(wanted) and timeless(bvllm.read_results(*files)) == wanted
    assert counts == [EACH] * VIDEOS + [0]
    out = tmp_path / "one.jsonl"
    for share in ("0:5", slice(5, None)):
        found = run(tiny, table, out=out, rows=share)
    assert timeless(bvllm.read_results(out)) == wanted and len(found) == ROWS - 5


def test_results_of_something_else_are_refused(tiny: Any, folder: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "answers.jsonl", folder / "table.jsonl"
    found = run(tiny, table, out=out, rows=":2")
    others: list[tuple[dict[str, Any], str]] = [
        ({"fps": 2.0}, r"fps 1\.0 there, 2\.0 now"),
        ({"max_tokens": 8}, "max_tokens None there, 8 now"),
        ({"max_new_tokens": 4}, "max_new_tokens 3 there, 4 now"),
        ({"encoding": bvllm.Encoding(skip_similar=2.0)}, "skip_similar None there"),
        ({"media": tmp_path}, "media '"),
        ({"question": "Who?"}, "question None there"),
    ]
    for settings, told in others:
        with pytest.raises(ValueError, match=told):
            run(tiny, table, out=out, rows=":2", **settings)
    other = tiny_model(seed=1)
    with pytest.raises(ValueError, match=r"model\.weights '"):
        run(other, table, out=out, rows=":2")
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    fewer = write(folder / "fewer.jsonl", rows[:-1])
    with pytest.raises(ValueError, match="table '"):
        run(tiny, fewer, out=out, rows=":2")
    same = {"workers": 0, "batch_size": 2, "max_errors": 0.1}
    assert run(tiny, table, out=out, rows=":2", **same) == found


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"workers": -1}, "workers: got -1"),
        ({"max_tokens": 0}, "max_tokens: got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"max_errors": 2}, "max_errors: got 2"),
        ({"fps": 0}, "fps: got 0"),
        ({"max_frames": 0}, "max_frames: got 0"),
        ({"question": 3}, "question: got int, wanted a string"),
        ({"question": "\ud800"}, "question: got half a character"),
        ({"rows": "1/8"}, "rows: got '1/8', wanted a slice, such as 1::8"),
        ({"videos": "0::0"}, "videos: got '0::0'"),
        ({"rows": 3}, "rows: got 3"),
        ({"rows": slice(None, None, 0)}, "rows: got slice(None, None, 0), wanted a slice of"),
        ({"videos": slice("a")}, "videos: got slice(None, 'a', None), wanted a slice of"),
        ({"rows": "0::2", "videos": "0::2"}, "rows: got '0::2' beside videos='0::2'"),
        ({"out": "/nowhere/a.jsonl"}, "out: got /nowhere/a.jsonl, wanted a file in a folder"),
    ],
)
def test_wrong_arguments_are_named(
    settings: dict[str, Any], told: str, tiny: Any, folder: Path
) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        run(tiny, folder / "table.jsonl", **settings)
    assert told in str(error.value)


def test_wrong_tables_are_named(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"table: .*gone\.jsonl: cannot be read"):
        run(tiny, tmp_path / "gone.jsonl")
    with pytest.raises(ValueError, match="table: got no rows"):
        run(tiny, [])
    with pytest.raises(TypeError, match="table: got str in row 1, wanted a mapping"):
        run(tiny, ["a.mp4"])
    with pytest.raises(ValueError, match=r"none of 1 rows .*query: got 'a man', wanted None"):
        run(tiny, [{"video": "a.mp4", "question": "Who?", "query": "a man"}])


def test_a_row_at_a_time_for_whoever_has_a_cluster(tiny: Any, folder: Path) -> None:
    table = read_table(folder / "table.jsonl")
    ask = AskRows(tiny[0], tiny[1], media=folder, **FEW)
    wanted = timeless(run(tiny, table))
    found = [row for of in (table.rows[:4], table.rows[4:]) for row in ask(of)]
    assert timeless(sorted(found, key=lambda row: row["row"])) == wanted
    json.dumps(ask.of)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "answers.jsonl"
    asked = ["batch", str(folder / "table.jsonl"), "-o", str(out), "--max-tokens", "12"]
    asked += ["--max-new-tokens", "3", "--device", "cpu", "--batch-size", "4"]
    assert main([*asked, "--videos", "0::2"]) == 0
    told = capsys.readouterr()
    assert (
        told.out == f"4 rows of the table's {ROWS} in {out}, 4 without an error\n" and not told.err
    )
    assert main(asked) == 0
    assert capsys.readouterr().out == f"{ROWS} rows in {out}, {ROWS} without an error\n"
    assert all(row["tokens"] <= row["max_tokens"] == 12 for row in read(out))
    assert len(read(out)) == ROWS
    (folder / "broken.mp4").write_text("no video")
    assert main(["batch", str(folder), "Who?", "-o", str(tmp_path / "f.jsonl")]) == 0
    told = capsys.readouterr()
    (folder / "broken.mp4").unlink()
    assert f"{VIDEOS + 1} rows in" in told.out and f"{VIDEOS} without an error" in told.out
    assert told.err.startswith("bvllm: 1 rows failed; the first: ") and "broken.mp4" in told.err


def test_a_log_gets_lines_with_rate_and_time_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("bvllm_adapters.cli.progress.EACH_SECONDS", 0.0)
    asked = ["batch", str(folder / "table.jsonl"), "-o", str(tmp_path / "a.jsonl")]
    asked += ["--max-new-tokens", "3", "--device", "cpu"]
    assert main([*asked, "--rows", ":2"]) == main(asked) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [re.search(r"(\d+/\d+) \[", line)[1] for line in lines] == [  # type: ignore[index]
        *(f"{done}/2" for done in range(3)), *(f"{done}/{ROWS}" for done in range(2, ROWS + 1)),
    ]  # fmt: skip
    assert re.search(r"4/8 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+(row/s|s/row)\]", lines[5])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gone.jsonl", "-o", "a.jsonl"], "table: gone.jsonl: cannot be read"),
        (["TABLE", "-o", "/nowhere/a.jsonl"], "--out: got /nowhere/a.jsonl"),
        (["TABLE", "-o", "/dev/full"], "--out: got /dev/full, wanted a file"),
        (["TABLE", "-o", "A", "--rows", "8"], "rows: got '8', wanted a slice"),
        (["TABLE", "-o", "A", "--media", "/nowhere"], "rows failed"),
        (["FOLDER", "-o", "A"], "TABLE: none of 4 rows can be taken; the first: "),
    ],
)
def test_problems_of_the_command_are_one_line(
    arguments: list[str], told: str, folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    places = {"TABLE": str(folder / "table.jsonl"), "FOLDER": str(folder), "A": str(tmp_path / "a")}
    assert main(["batch", *(places.get(one, one) for one in arguments)]) == 1
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
