"""Frames chosen for a table of videos: as for one, and no row lost or twice."""

from __future__ import annotations

import json
import os
import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from json_lines import read, write
from media import number
from PIL import Image
from rows import bad, threads, timeless, videos, warned
from tiny_scouts import tiny_clip

import bvllm_adapters as bvllm
from bvllm_adapters.bulk import chosen as module
from bvllm_adapters.cli.main import main
from bvllm_adapters.selectors import export
from bvllm_adapters.selectors.frames_of import LookedAt
from bvllm_adapters.tables.results import Results

VIDEOS, EACH = 4, 2
ROWS = VIDEOS * EACH
FEW: dict[str, Any] = {"num_frames": 3, "fps": 2.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write(folder / "table.jsonl", videos(folder, VIDEOS, each=EACH))
    return folder


def run(table: Any, **settings: Any) -> list[dict[str, Any]]:
    return bvllm.select_batch(table, **{**FEW, **settings})


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.mark.parametrize("selector", ["coverage", "uniform"])
def test_rows_are_what_selecting_gives(selector: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "chosen.jsonl"
    found = run(folder / "table.jsonl", selector=selector, out=out, folder=tmp_path / "frames")
    lines = [json.loads(line) for line in (folder / "table.jsonl").read_text().splitlines()]
    assert read(out) == found and len(found) == len(lines)
    for row, line in zip(found, lines, strict=True):
        path = folder / line["video"]
        chosen = bvllm.select_frames(path, line["question"], selector=selector, **FEW)
        assert (row["id"], row["question"]) == (line["id"], line["question"])
        assert [frame["frame"] for frame in row["frames"]] == chosen.index.tolist()
        assert [frame["second"] for frame in row["frames"]] == chosen.seconds.tolist()
        scores = None if chosen.scores is None else chosen.scores.tolist()
        assert (scores is None) == ("score" not in row["frames"][0])
        assert scores is None or [frame["score"] for frame in row["frames"]] == scores
        assert (row["frames_decoded"], row["duration"]) == (len(chosen.times), chosen.duration)
        saved = tmp_path / "frames" / row["saved"]
        listed = json.loads((saved / "frames.json").read_text())["frames"]
        assert [one["seconds"] for one in listed] == chosen.seconds.tolist()
        for one, index in zip(listed, chosen.index.tolist(), strict=True):
            with Image.open(saved / one["file"]) as image:
                assert number(np.asarray(image)) == index
    assert names(tmp_path / "frames") == {f"{n:06d}" for n in range(1, ROWS + 1)}


def test_each_video_is_looked_at_once_whoever_does_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    class Counted(LookedAt):
        def __init__(self, source: Any, *more: Any) -> None:
            looked.append(source.source)
            super().__init__(source, *more)

    wanted = timeless(run(folder / "table.jsonl", workers=0))
    monkeypatch.setattr(module, "LookedAt", Counted)
    assert timeless(run(folder / "table.jsonl", workers=3)) == wanted
    assert sorted(looked) == [str(folder / f"{n}.mp4") for n in range(VIDEOS)]
    single = [run(folder / "table.jsonl", rows=f"{i}:{i + 1}")[0] for i in range(ROWS)]
    assert timeless(single) == wanted


def test_of_200_videos_20_are_bad(tmp_path: Path) -> None:
    rows: list[Any] = videos(tmp_path, 180)
    rows[3]["video"] = warned(tmp_path)
    rows += bad(tmp_path)[:20]
    random.Random(2).shuffle(rows)
    why = {i: row[1] for i, row in enumerate(rows, 1) if isinstance(row, tuple)}
    rows = [row[0] if isinstance(row, tuple) else row for row in rows]
    table, out = write(tmp_path / "table.jsonl", rows), tmp_path / "chosen.jsonl"
    found = run(table, out=out, workers=2, max_errors=0.1)
    assert [row["row"] for row in found] == [*range(1, 201)]
    assert {row["row"] for row in found if "error" in row} == why.keys() and len(why) == 20
    for row in found:
        if "error" in row:
            assert why[row["row"]] in row["error"] and "\n" not in row["error"]
        else:
            assert len(row["frames"]) == 3
            told = row.get("warnings", [])
            assert bool(told) == (row["video"] == "damaged.mp4") and len({*told}) == len(told)
    with pytest.raises(ValueError, match=r"of 200 rows failed, more than max_errors=0\.05"):
        run(table, max_errors=0.05, workers=2)
    assert not threads()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("save", ["frames", "messages"])
def test_killed_at_any_row_it_goes_on(
    save: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = timeless(run(folder / "table.jsonl", folder=tmp_path / "whole", save=save))
    append, jpeg, random_ = Results.append, export.jpeg, random.Random(3)

    def dying(of: Any, moments: int) -> Any:
        def dies(*given: Any) -> Any:
            if not random_.randrange(moments):
                raise Killed
            made = of(*given)
            if not random_.randrange(moments):
                raise Killed
            return made

        return dies

    monkeypatch.setattr(Results, "append", dying(append, 8))
    monkeypatch.setattr(export, "jpeg", dying(jpeg, 16))
    out, kills = tmp_path / "chosen.jsonl", 0
    settings = {"out": out, "folder": tmp_path / "frames", "save": save}
    while True:
        try:
            found = run(folder / "table.jsonl", **settings, workers=kills % 3)
            break
        except Killed:
            kills += 1
            assert kills < 99, "it does not go on"
    assert kills > 2 and timeless(found) == wanted
    assert sorted(row["row"] for row in read(out)) == [*range(1, ROWS + 1)]
    for file in (tmp_path / "whole").rglob("*.*"):
        twin = tmp_path / "frames" / file.relative_to(tmp_path / "whole")
        assert twin.read_bytes() == file.read_bytes()


def test_a_full_disk_is_one_error_and_loses_nothing(folder: Path, tmp_path: Path) -> None:
    out, frames = tmp_path / "chosen.jsonl", tmp_path / "frames"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(OSError, match=r"(folder|out): .*: cannot be written \(File too large"):
            run(folder / "table.jsonl", folder=frames, out=out)
        told = r"folder: .*frames/000001: cannot be written \(File too large\); what is done is"
        with pytest.raises(OSError, match=told):
            run(folder / "table.jsonl", folder=frames)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(run(folder / "table.jsonl", folder=frames, out=out)) == ROWS == len(names(frames))


def test_results_of_something_else_are_refused(folder: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "chosen.jsonl", folder / "table.jsonl"
    found = run(table, out=out)
    others: list[tuple[dict[str, Any], str]] = [
        ({"num_frames": 4}, "num_frames 3 there, 4 now"),
        ({"selector": "k-center"}, "selector.settings.novelty_seconds"),
        ({"selector": bvllm.CoverageSelector(diversity=0.25)}, r"diversity 0\.5 there, 0\.25 now"),
        ({"folder": tmp_path / "frames"}, "saved None there"),
    ]
    for settings, told in others:
        with pytest.raises(ValueError, match=told):
            run(table, out=out, **settings)
    assert run(table, out=out, workers=0) == found


def test_a_scout_reads_the_question_of_each_row(folder: Path, tmp_path: Path) -> None:
    scout = bvllm.RelevanceSelector.from_pretrained(tiny_clip(tmp_path))
    rows = [
        {"video": "0.mp4", "question": "Who is there?"},
        {"video": "0.mp4", "question": "Where?", "query": "a dog on grass"},
        {"video": "1.mp4"},
    ]
    found = run(rows, media=folder, selector=scout, question="What?")
    for row, given in zip(found, rows, strict=True):
        question = given.get("question", "What?")
        chosen = bvllm.select_frames(
            folder / given["video"], question, selector=scout, query=given.get("query"), **FEW
        )
        assert row["question"] == question and row["selector"] == "relevance"
        assert [frame["frame"] for frame in row["frames"]] == chosen.index.tolist()
    refused = run(rows, media=folder)
    assert "query: got 'a dog on grass', wanted None" in refused[1]["error"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_frames": 0}, "num_frames: got 0"),
        ({"workers": -1}, "workers: got -1"),
        ({"save": "pages"}, "save: got 'pages', wanted one of"),
        ({"size": 3}, "size: got 3"),
        ({"fps": 0}, "fps: got 0"),
        ({"selector": "magic"}, "selector: got 'magic'"),
        ({"selector": 3}, "selector: got a int"),
        ({"folder": __file__}, "which is a file, wanted a folder"),
        ({"rows": "x"}, "rows: got 'x'"),
    ],
)
def test_wrong_arguments_are_named(settings: dict[str, Any], told: str, folder: Path) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        run(folder / "table.jsonl", **settings)
    assert told in str(error.value)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["select", str(folder / "table.jsonl"), "--frames", "3", "--fps", "2"]
    frames, files = tmp_path / "frames", tmp_path / "messages"
    for to in (["--out", str(frames)], ["--messages", str(files), "--size", "32"]):
        assert main([*asked, *to]) == 0
        told = capsys.readouterr()
        assert told.out == f"{ROWS} rows in {to[1]}/results.jsonl, {ROWS} without an error\n"
        assert main([*asked, *to]) == 0 and not told.err
        capsys.readouterr()
    assert len(read(frames / "results.jsonl")) == len(read(files / "results.jsonl")) == ROWS
    row = read(frames / "results.jsonl")[3]
    assert names(frames / row["saved"]) == {
        "frames.json",
        *(f"frame_000{i}.jpg" for i in (1, 2, 3)),
    }
    parts = json.loads((files / "000004.json").read_text())[0]["content"]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    seconds = [f"{frame['second']:.1f} seconds:" for frame in row["frames"]]
    assert texts == [*seconds, row["question"]]
    times = tmp_path / "times.jsonl"
    assert main([*asked, "--times", str(times), "--videos", "1::2"]) == 0
    assert {row["video"] for row in read(times)} == {"1.mp4", "3.mp4"}
    assert main(["select", str(folder), "--times", str(tmp_path / "folder.jsonl")]) == 0
    assert len(read(tmp_path / "folder.jsonl")) == VIDEOS


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["TABLE", "--report", "a.html"], "--report: got it with a table, wanted it with one"),
        (["TABLE", "--times", "A", "--start", "1"], "--start: got it with a table"),
        (["TABLE", "--messages", "-"], "--messages: got - with a table, wanted a folder"),
        (["TABLE", "--out", "FOLDER"], "which holds files, but no results.jsonl to go on with"),
        (["TABLE", "--out", "TABLE"], "--out: got", ),
        (["TABLE", "--times", "/nowhere/a"], "out: got /nowhere/a, wanted a file in a folder"),
        (["gone.csv", "--times", "A"], "table: gone.csv: cannot be read"),
        (["VIDEO", "--times", "A"], "--times: got it with one video, wanted it with a table"),
        (["VIDEO", "--out", "A", "--rows", "0::2"], "--rows: got it with one video"),
        (["FOLDER", "--times", "A", "--scout", "SCOUT"], "question: got none for"),
    ],
)  # fmt: skip
def test_problems_of_the_command_are_one_line(
    arguments: list[str], told: str, folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    places = {"TABLE": folder / "table.jsonl", "FOLDER": folder, "A": tmp_path / "a.jsonl",
              "VIDEO": folder / "0.mp4"}  # fmt: skip
    assert main(["select", *(str(places.get(one, one)) for one in arguments)]) == 1
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "a.jsonl").exists()


def test_a_folder_of_images_is_one_video(tmp_path: Path, capsys: Any) -> None:
    for i in range(4):
        Image.new("RGB", (32, 32), (i * 60, 0, 0)).save(tmp_path / f"{i}.png")
    asked = ["select", str(tmp_path), "--frames", "2", "--out", str(tmp_path / "out")]
    assert main(asked) == 0
    assert "2 frames in" in capsys.readouterr().out and os.path.isdir(tmp_path / "out")
