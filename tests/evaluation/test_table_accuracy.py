"""Questions of one's own asked of the model that ships, about its own kind of video."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from json_lines import read, write

import bvllm_adapters as bvllm
from bvllm_adapters.bulk import answers
from bvllm_adapters.cli.main import main
from bvllm_adapters.evaluation import evaluate_file
from bvllm_adapters.evaluation.needle import DEMO_VIDEO, make_haystack
from bvllm_adapters.hosts.find import find_host
from bvllm_adapters.hosts.turns import messages
from bvllm_qwen2.chat import VIDEO_TOKEN

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 24


@pytest.fixture(scope="module")
def demo() -> Any:
    return find_host("BvllmQwen2ForConditionalGeneration").demo()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of the needle task and a table of the questions about them."""
    folder = tmp_path_factory.mktemp("own")
    rows = []
    for number in range(4):
        haystack = make_haystack([5, number], num_frames=SECONDS, needles=4)
        haystack.write(folder / f"{number}.mp4")
        for question in haystack.questions:
            row = {"id": f"{number}-{question.kind}", "video": f"{number}.mp4"}
            rows.append({**row, "question": question.text, "answer": question.answer,
                         "kind": question.kind})  # fmt: skip
    write(folder / "open.jsonl", rows)
    colors = ["red", "blue", "green", "yellow"]
    for row in rows:
        others = [c for c in (colors if row["kind"] == "color" else "1234") if c != row["answer"]]
        row["options"] = [*others[:1], row["answer"], *others[1:3]]
    write(folder / "options.jsonl", rows)
    return folder


def timeless(rows: Any) -> list[dict[str, Any]]:
    """Rows without what differs from run to run."""
    out = []
    for row in rows:
        row = {**row, "seconds": 0}
        if "trace" in row:
            kept = {k: v for k, v in row["trace"].items() if k not in ("seconds", "tower_passes")}
            row["trace"] = kept
        out.append(row)
    return out


def run(demo: Any, file: Path, **settings: Any) -> Any:
    settings = {"instruction": "", "max_new_tokens": 8, **settings}
    return evaluate_file(demo[0], file, processor=demo[1], **settings)


def test_rows_are_what_asking_gives(demo: Any, folder: Path, tmp_path: Path) -> None:
    found = run(demo, folder / "open.jsonl", group="kind", out=tmp_path / "r.jsonl")
    lines = (folder / "open.jsonl").read_text().splitlines()
    assert len(found.rows) == len(lines) and read(tmp_path / "r.jsonl") == found.rows
    for row, line in zip(found.rows, map(json.loads, lines), strict=True):
        answer = bvllm.ask(demo[0], folder / line["video"], line["question"], processor=demo[1],
                           max_new_tokens=8, do_sample=False)  # fmt: skip
        assert (row["said"], row["id"]) == (answer.text, line["id"])
        assert row["right"] == (answer.text.lower() == line["answer"].lower())
        assert row["columns"] == {"kind": line["kind"]}
        assert row["tokens"] == answer.trace.num_tokens <= row["max_tokens"] == 16
        shown = [(f["frame"], f["second"], f["tokens"]) for f in row["trace"]["frames"]]
        assert shown == [(f.frame, round(f.second, 3), f.tokens) for f in answer.trace.frames]
    whole = found.summary.whole
    assert whole.accuracy == sum(row["right"] for row in found.rows) / len(found.rows) > 0.7
    assert whole.low <= whole.accuracy <= whole.high and (whole.rows, whole.videos) == (
        len(lines),
        4,
    )
    groups = found.summary.groups
    assert sum(part.rows for part in groups.values()) == len(lines)
    assert set(groups) == {row["columns"]["kind"] for row in found.rows}
    told = str(found)
    assert f"accuracy  {whole.accuracy:.3f}, 95 % interval {whole.low:.3f} - " in told
    assert "of a budget of 16: never above it" in told and "\ncolor  " in told
    json.dumps(found.summary.to_dict())


def test_batches_change_nothing_and_each_video_is_opened_once(
    demo: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[Path] = []
    open_video = answers.open_video

    def opened(model: Any, path: Path, **settings: Any) -> Any:
        paths.append(path)
        return open_video(model, path, **settings)

    monkeypatch.setattr(answers, "open_video", opened)
    rows = [json.loads(line) for line in (folder / "open.jsonl").read_text().splitlines()]
    mixed = write(folder / "mixed.jsonl", sorted(rows, key=lambda row: row["kind"]))
    alone = run(demo, mixed)
    assert sorted(paths) == [folder / f"{n}.mp4" for n in range(4)]
    assert timeless(run(demo, mixed, batch_size=7).rows) == timeless(alone.rows)


def test_by_likelihood_the_probabilities_are_the_models_own(demo: Any, folder: Path) -> None:
    model, processor = demo
    rows = [json.loads(line) for line in (folder / "options.jsonl").read_text().splitlines()]
    rows[0]["options"] += ["top left or bottom right"]  # the others are of one token
    found = run(demo, write(folder / "words.jsonl", rows), by="likelihood", batch_size=3)
    assert found.summary.whole.accuracy > 0.7
    assert found.summary.by_length is not None and "by likelihood over length" in str(found)
    row = found.rows[0]
    video = bvllm.open_video(model, folder / row["video"], processor=processor)
    turns = messages([f"{VIDEO_TOKEN}\n{row['question']}"], None)
    prompt = processor.tokenizer(processor.apply_chat_template(turns, add_generation_prompt=True))
    for option, total in zip(row["options"], row["likelihoods"], strict=True):
        ids = processor.tokenizer.encode(option, add_special_tokens=False)
        whole = torch.tensor([[*prompt["input_ids"], *ids]])
        with torch.no_grad():  # one forward() over prompt and option
            tokens = model.balanced_tokenizer([video.features], [row["question"]])
            inputs = model.splice(whole, tokens).inputs_embeds
            logits = model.language_model(inputs_embeds=inputs).logits[0, -len(ids) - 1 : -1]
        wanted = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum()
        assert total == pytest.approx(float(wanted), abs=1e-4)
    greedy = video.ask(row["question"], max_new_tokens=8, do_sample=False)
    assert row["predicted"] == greedy.text


def test_by_letter_with_options_turned(demo: Any, folder: Path) -> None:
    """The demo's model knows no letters: its words say which option it means, where they do."""
    found = run(demo, folder / "options.jsonl", circular=True, batch_size=4)
    for row in found.rows:
        assert row["prompts"] == len(row["options"]) and row["tokens"] <= row["max_tokens"]
        assert len(row["said"]) == len(row["predicted"]) == len(row["options"])
        assert row["right"] == all(meant == row["answer"] for meant in row["predicted"])
        assert row.get("unparsed", False) == (None in row["predicted"])
        assert row["right_times"] == sum(meant == row["answer"] for meant in row["predicted"])
    assert f"{found.summary.each_time:.3f} of all orders" in str(found)
    once = run(demo, folder / "options.jsonl")
    assert [row["said"] for row in once.rows] == [row["said"][0] for row in found.rows]
    assert once.summary.unparsed == sum("unparsed" in row for row in once.rows)


def test_rows_that_fail_are_told_and_counted(demo: Any, folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (folder / "open.jsonl").read_text().splitlines()][:4]
    (folder / "text.mp4").write_text("no video")
    bad = [
        {**rows[0], "video": "text.mp4"},
        {**rows[0], "video": "gone.mp4"},
        {**rows[0], "video": "../x.mp4"},
        {key: value for key, value in rows[0].items() if key != "answer"},
    ]
    file = write(folder / "bad.jsonl", [*bad, *rows, *rows])
    out = tmp_path / "r.jsonl"
    found = run(demo, file, out=out)
    errors = [row["error"] for row in found.rows[:4]]
    assert "text.mp4" in errors[0] and errors[0].startswith(f"{file}:1: ")
    assert "gone.mp4" in errors[1] and "leaves the media folder" in errors[2]
    assert errors[3] == f"{file}:4: answer: got none, wanted the right one"
    assert (found.summary.errors, found.summary.whole.rows) == (4, 8)
    assert "errors    4, not counted; " in str(found)
    assert run(demo, file, out=out).rows == found.rows
    (folder / "gone.mp4").write_bytes((folder / "0.mp4").read_bytes())
    again = run(demo, file, out=out, retry_errors=True)
    (folder / "gone.mp4").unlink()
    assert again.summary.errors == 3 and "error" not in again.rows[1]
    with pytest.raises(ValueError, match=r"4 of 12 rows failed, more than max_errors=0\.25"):
        run(demo, file, max_errors=0.25)
    with pytest.raises(ValueError, match=r"none of 1 rows can be taken; the first: .*:1: answer"):
        run(demo, write(folder / "none.jsonl", bad[3:]))


def test_one_row_of_a_batch_fails_alone(demo: Any, folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "options.jsonl").read_text().splitlines()][:3]
    rows[1]["options"][0] = processor_eos = demo[1].tokenizer.eos_token
    found = run(demo, write(folder / "eos.jsonl", rows), by="likelihood", batch_size=99)
    assert ["error" in row for row in found.rows] == [False, True, False]
    assert (
        f"likelihood: got '{processor_eos}', wanted a text without special"
        in found.rows[1]["error"]
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"by": "ear"}, "by: got 'ear', wanted one of"),
        ({"by": "likelihood", "circular": True}, "circular: got it with by='likelihood'"),
        ({"group": "size"}, "group: got 'size', wanted one of the columns"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"max_tokens": 0}, "max_tokens: got 0"),
        ({"max_errors": 2}, "max_errors: got 2"),
        ({"seed": -1}, "seed: got -1"),
        ({"fps": 0}, "fps: got 0"),
        ({"max_frames": 0}, "max_frames: got 0"),
        ({"out": "/nowhere/r.jsonl"}, "out: got /nowhere/r.jsonl, wanted a file in a folder"),
    ],
)
def test_wrong_arguments_are_named(
    settings: dict[str, Any], told: str, demo: Any, folder: Path
) -> None:
    with pytest.raises(ValueError) as error:
        run(demo, folder / "open.jsonl", **settings)
    assert told in str(error.value)


def test_a_query_for_a_selector_that_reads_none_is_an_error(demo: Any, folder: Path) -> None:
    row = {"video": "0.mp4", "question": "Who?", "answer": "x", "query": "a man"}
    with pytest.raises(ValueError, match=r"query\.jsonl:1: query: got 'a man', wanted None"):
        run(demo, write(folder / "query.jsonl", [row]))


def test_results_of_another_model_or_table_are_refused(
    demo: Any, folder: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (folder / "open.jsonl").read_text().splitlines()][:2]
    file, out = write(folder / "two.jsonl", rows), tmp_path / "r.jsonl"
    found = run(demo, file, out=out)
    with pytest.raises(ValueError, match=r"fps 1\.0 there, 2\.0 now; max_tokens None there, 8 now"):
        run(demo, file, out=out, fps=2.0, max_tokens=8)
    weight = demo[0].balanced_tokenizer.projection[0].weight
    with torch.no_grad():
        before = weight.clone()
        weight.mul_(2)
        with pytest.raises(ValueError, match=r"model\.weights '"):
            run(demo, file, out=out)
        weight.copy_(before)
    assert run(demo, file, out=out, batch_size=2, group="kind").rows == found.rows
    write(file, [{**rows[0], "answer": "z"}, rows[1]])
    with pytest.raises(ValueError, match="holds results of something else: table '"):
        run(demo, file, out=out)


def test_the_example_of_the_readme(demo: Any) -> None:
    found = run(demo, EXAMPLES / "questions.jsonl", group="kind")
    assert found.summary.whole is not None and found.summary.whole.accuracy == 1.0
    assert len(found.summary.groups) == 5 and found.summary.over == 0


@pytest.mark.slow  # bulk's own test of it, on which this room stands, is quick
def test_killed_runs_go_on(folder: Path, demo: Any, tmp_path: Path) -> None:
    file, out = folder / "open.jsonl", tmp_path / "r.jsonl"
    command = [
        sys.executable, "-c", "import sys; from bvllm_adapters.cli.main import main; "
        "sys.exit(main(sys.argv[1:]))", "evaluate", str(file), "--out", str(out),
        "--instruction", "", "--max-new-tokens", "8", "--device", "cpu",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not out.exists() or len(read(out)) < 3):
        time.sleep(0.005)
    process.kill()
    process.wait()
    left, told = read(out), []
    found = run(demo, file, out=out, progress=lambda *of: told.append(of))
    assert 3 <= len(left) <= len(found.rows)
    assert told == [(done, len(found.rows)) for done in range(len(left), len(found.rows) + 1)]
    assert read(out)[: len(left)] == left
    assert sorted(row["row"] for row in read(out)) == [*range(1, len(found.rows) + 1)]
    assert timeless(found.rows) == timeless(run(demo, file).rows)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, told = tmp_path / "r.jsonl", tmp_path / "summary.json"
    asked = ["evaluate", str(folder / "open.jsonl"), "--instruction", "", "--out", str(out)]
    asked += ["--group", "kind", "--json", str(told), "--max-tokens", "12", "--device", "cpu"]
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert "accuracy  " in shown and "12: never above it" in shown and str(out) in shown
    summary = json.loads(told.read_text())
    assert summary["rows"] == len(read(out)) and summary["max_tokens"] == 12
    assert main(asked) == 0 and len(read(out)) == summary["rows"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gone.jsonl"], "FILE: gone.jsonl: cannot be read"),
        (["needle", "--by", "letter"], "--by: got it with needle, wanted it with a FILE"),
        (["needle", "--max-errors", "1"], "--max-errors: got it with needle"),
        (["a.jsonl", "--needles", "3"], "--needles: got it with a.jsonl, wanted it with needle"),
        (["OPEN", "--out", "/nowhere/r.jsonl"], "--out: got /nowhere/r.jsonl"),
        (["OPEN", "--json", "/nowhere/r.json"], "--json: got /nowhere/r.json"),
        (["OPEN", "--group", "size"], "group: got 'size'"),
        (["OPEN", "--skip-similar", "-1"], "skip_similar: got -1"),
    ],
)
def test_problems_of_the_command_are_one_line(
    arguments: list[str], told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(folder / "open.jsonl") if one == "OPEN" else one for one in arguments]
    assert main(["evaluate", *arguments]) == 1
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_the_sample_video_from_a_csv(demo: Any, tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text(f"video,question,answer\n{DEMO_VIDEO},What digit is red?,six\n")
    with pytest.raises(ValueError, match="leaves the media folder"):
        run(demo, file)
    assert run(demo, file, outside_media=True).rows[0]["right"]
    assert run(demo, file, media=DEMO_VIDEO.parent).rows[0]["right"]
