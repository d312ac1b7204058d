"""A table on Ray Data, by two actors: whoever is killed, no row is lost and none done twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from media import write_video

from bvllm_adapters.cli.main import main
from bvllm_adapters.tables.results import read_results

pytest.importorskip("ray.data")
pytestmark = pytest.mark.slow  # Ray, and a model in each process, take most of a minute to begin

EXAMPLES = Path(__file__).parents[1] / "examples"
ROWS = 60
QUESTIONS = ("What digit is red?", "Where is the 5?")
FEW = ["--max-new-tokens", "3", "--max-errors", "0.1"]

# The example, but that asking about one video ends the process.
ENDING = """
import os, sys
import ray_batch

class Ending(ray_batch.Actor):
    def __init__(self, *given):
        super().__init__(*given)
        self.really = self.ask
        self.ask = self.ending

    def ending(self, rows):
        if any(row.values["video"] == "ends.mp4" for row in rows):
            os._exit(11)
        return self.really(rows)

ray_batch.Actor = Ending
sys.exit(ray_batch.main())
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two questions about each of 30 videos."""
    rows = []
    for number in range(ROWS // 2):
        write_video(tmp_path / f"{number}.mp4", frames=3 + number % 4, fps=1, size=(64, 48))
        for question in QUESTIONS:
            row = {"video": f"{number}.mp4", "question": question, "of": {"kind": number % 3}}
            rows.append(row)
    return write(tmp_path / "table.jsonl", rows)


def write(file: Path, rows: Any) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def done(out: Path) -> int:
    """Rows that are in it."""
    return max(out.read_bytes().count(b"\n") - 1, 0) if out.exists() else 0


def timeless(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_results(out)]


def by_one(table: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    """What `bvllm batch` makes of it, without what differs from run to run."""
    assert main(["batch", str(table), "-o", str(out), "--device", "cpu", *FEW, *more]) == 0
    return timeless(out)


def all_of(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


@contextmanager
def example(*arguments: Any, code: str | None = None) -> Iterator[psutil.Popen]:
    """It runs, with two actors; none of what it has started is left."""
    script = [str(EXAMPLES / "ray_batch.py")] if code is None else ["-c", code]
    path = os.pathsep.join([str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = psutil.Popen(
        [sys.executable, *script, *map(str, arguments), "--device", "cpu", "--actors", "2", *FEW],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    started: list[psutil.Process] = []
    try:
        yield process
    finally:
        started += all_of(process) if process.is_running() else []
        end(started)
        process.wait()
        process.stdout.close()


def end(processes: list[psutil.Process]) -> None:
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            one.kill()  # unless another has its number by now


def test_an_actor_is_killed_and_nothing_is_lost(table: Path, tmp_path: Path) -> None:
    """The file was begun by `bvllm batch`, too."""
    out = tmp_path / "answers.jsonl"
    by_one(table, out, "--rows", ":5")
    with example(table, "-o", out, "--together", "2") as process:
        while done(out) < 15:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.01)
        actor = next(one for one in all_of(process) if "MapWorker" in one.cmdline()[0])
        actor.kill()
        assert done(out) < ROWS, "it was not killed in between"
        told, _ = process.communicate()
    assert process.returncode == 0 and f"{ROWS} rows in {out}, {ROWS} without an error" in told
    assert done(out) == ROWS and timeless(out) == by_one(table, tmp_path / "alone.jsonl")


def test_all_of_it_is_killed_and_another_goes_on(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    with example(table, "-o", out, "--together", "1") as process:
        while done(out) < 9:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.01)
        everything = all_of(process)
        process.kill()
        process.wait()
        end(everything)
    before = done(out)
    assert 9 <= before < ROWS, "it was not killed in between"
    assert by_one(table, out) == by_one(table, tmp_path / "alone.jsonl")
    assert done(out) == ROWS


def test_a_video_that_ends_its_process_is_told_and_loses_no_other(
    table: Path, tmp_path: Path
) -> None:
    first = table.read_text().splitlines(keepends=True)[:12]
    (tmp_path / "ends.mp4").write_bytes((tmp_path / "0.mp4").read_bytes())
    first.insert(5, json.dumps({"video": "ends.mp4", "question": "Who?"}) + "\n")
    table.write_text("".join(first))
    out = tmp_path / "answers.jsonl"
    with example(table, "-o", out, "--together", "3", code=ENDING) as process:
        told, _ = process.communicate()
    assert process.returncode == 0 and f"13 rows in {out}, 12 without an error" in told, told
    rows = read_results(out)
    assert done(out) == 13 and [row["row"] for row in rows if "error" in row] == [6]
    assert rows[5]["error"] == f"{table}:6: the process that asked it ended, 2 times"


def test_actors_that_would_take_every_cpu_are_refused(table: Path, tmp_path: Path) -> None:
    """Ray would wait without a word."""
    import ray

    ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR")
    try:
        address = ray.get_runtime_context().gcs_address
        with example(table, "-o", tmp_path / "a.jsonl", "--address", address) as process:
            told, _ = process.communicate()
    finally:
        ray.shutdown()
    assert process.returncode == 1
    assert "--actors: got 2 of 1 CPUs each, wanted fewer than the 2 CPUs that are there" in told
