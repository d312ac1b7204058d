"""Frames for a model that cannot be opened: chosen, as files, as messages to a server."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media import number, numbers, picture, write_damaged, write_video
from PIL import Image
from tiny_scouts import tiny_clip

import bvllm_adapters as bvllm
from bvllm_adapters.cli.main import main
from bvllm_adapters.evaluation.needle import make_haystack
from bvllm_adapters.selectors import export, frames_of, looking
from bvllm_adapters.selectors.export import messages, save_frames, times
from bvllm_adapters.selectors.names import BLIND, CHOOSING, named_selector
from bvllm_adapters.video.frames import FrameSource, SourceChanged, VideoWarning

ROOT = Path(__file__).parents[1]
CLIP = str(ROOT / "examples" / "big_buck_bunny.mp4")
NAMES = [name for name in (*CHOOSING, *BLIND) if name != "relevance"]


@pytest.fixture(scope="module")
def scout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("scout"))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds, picture k at second k / 10."""
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4")


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_those_that_were_read_at_their_times(name: str, video: Path) -> None:
    whole = bvllm.read_video(video, fps=None)
    chosen = bvllm.select_frames(video, "Who?", num_frames=7, selector=name, fps=None)
    assert isinstance(chosen, bvllm.Video)
    assert chosen.frames.shape == (7, 64, 96, 3) and chosen.frames.dtype == np.uint8
    assert (np.diff(chosen.index) > 0).all()
    assert (chosen.frames == whole.frames[chosen.index]).all()
    assert (chosen.seconds == whole.seconds[chosen.index]).all()
    assert numbers(chosen.frames) == chosen.index.tolist()
    assert (chosen.source, chosen.duration, chosen.frame_count, chosen.is_image) == (
        whole.source, whole.duration, whole.frame_count, False,
    )  # fmt: skip
    if name in BLIND:
        assert chosen.scores is None
    else:
        assert chosen.scores is not None and chosen.selection.scores is not None
        assert chosen.scores.shape == (7,) and len(chosen.selection.scores) == 40
        assert (chosen.scores == chosen.selection.scores.numpy()[chosen.index]).all()


def test_coverage_is_what_its_thumbnails_say(video: Path) -> None:
    whole = bvllm.read_video(video, fps=None)
    selector = bvllm.CoverageSelector()
    cls = selector.see(torch.from_numpy(whole.frames).permute(0, 3, 1, 2).float() / 255)
    wanted = selector(cls, "", seconds=torch.from_numpy(whole.seconds), num_frames=6)
    chosen = bvllm.select_frames(video, num_frames=6, fps=None, selector=selector)
    assert chosen.index.tolist() == wanted.frame.tolist()


def test_by_default_it_finds_needles_where_even_frames_do_not() -> None:
    found = dict.fromkeys(["coverage", "uniform"], 0)
    for seed in range(6):
        haystack = make_haystack([5, seed], num_frames=120, needles=6)
        frames = np.stack([*haystack.render(range(120), 64)])
        for name in found:
            index = bvllm.select_frames(frames, num_frames=16, selector=name).index
            found[name] += sum(bool({*needle.seconds} & {*index}) for needle in haystack.needles)
    assert found["coverage"] > 1.5 * found["uniform"]


def test_everything_that_can_be_read_is_taken(video: Path, tmp_path: Path) -> None:
    frames = np.stack([picture(i) for i in range(12)])
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{i}.png")
    images = [Image.fromarray(frame) for frame in frames]
    for source in (folder, frames, images, bvllm.read_video(frames)):
        chosen = bvllm.select_frames(source, num_frames=4)
        assert len(chosen.frames) == 4 and numbers(chosen.frames) == chosen.index.tolist()
    cut = bvllm.select_frames(video, num_frames=3, fps=10, start=1, end=2)
    assert ((cut.seconds >= 1) & (cut.seconds < 2)).all()
    few = bvllm.select_frames(video, num_frames=30, fps=10, max_frames=5)
    assert len(few.frames) == 5 and few.index.tolist() == [0, 1, 2, 3, 4]
    again = bvllm.select_frames(cut, num_frames=2, selector="uniform")
    assert len(again.frames) == 2 and {*again.seconds} <= {*cut.seconds}


def test_an_image_is_that_image(tmp_path: Path, scout: Path) -> None:
    Image.fromarray(picture(9)).save(tmp_path / "image.png")
    for selector in ("coverage", "random", named_selector("relevance", scout)):
        chosen = bvllm.select_frames(tmp_path / "image.png", "Who?", selector=selector)
        assert chosen.is_image and numbers(chosen.frames) == [9] and chosen.index.tolist() == [0]
    content = messages(chosen, "Who?")[0]["content"]
    assert [part["type"] for part in content] == ["image_url", "text"]


def test_the_question_chooses_by_a_scout(video: Path, scout: Path) -> None:
    selector = bvllm.RelevanceSelector.from_pretrained(scout)
    how: dict[str, Any] = {"num_frames": 5, "fps": None, "selector": selector}
    one = bvllm.select_frames(video, "What is the man doing?", **how)
    other = bvllm.select_frames(video, "Where is the banana?", **how)
    assert one.selection.scores is not None and other.selection.scores is not None
    assert not torch.allclose(one.selection.scores, other.selection.scores, atol=0.05)
    said = bvllm.select_frames(video, "Who?", query="What is the man doing?", **how)
    assert torch.equal(said.selection.scores, one.selection.scores)  # type: ignore[arg-type]
    assert bvllm.select_frames(video, "Who? " * 40, **how).selection.note is not None


def test_little_is_held_and_every_frame_is_seen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few frames give what one of all does; only the chosen are read again."""
    frames = np.stack([picture(i) for i in range(60)])
    wanted = bvllm.select_frames(frames, num_frames=6).index.tolist()
    asked: list[list[int]] = []
    seen: list[int] = []
    read = FrameSource.of(bvllm.read_video(frames)).read

    def noting(positions: Any) -> Any:
        asked.append(positions.tolist())
        return read(positions)

    class Selector(bvllm.CoverageSelector):
        def see(self, frames: torch.Tensor) -> torch.Tensor:
            seen.append(len(frames))
            return super().see(frames)

    video = bvllm.read_video(frames)
    monkeypatch.setattr(looking, "MOST_VALUES", 7 * frames[0].size)
    monkeypatch.setattr(frames_of, "open_source", lambda *_, **__: FrameSource(
        video.seconds, video.source, False, 60, 60.0, noting,
    ))  # fmt: skip
    calls: list[tuple[int, int]] = []
    chosen = bvllm.select_frames(
        frames, num_frames=6, selector=Selector(), progress=lambda *done: calls.append(done)
    )
    assert chosen.index.tolist() == wanted
    assert asked == [list(range(60)), wanted]
    assert max(seen) <= 7 and sum(seen) == 60
    assert calls == [(i, 66) for i in range(1, 67)]
    asked.clear()
    bvllm.select_frames(frames, num_frames=6, selector="uniform")
    assert len(asked) == 1 and len(asked[0]) == 6


def test_a_damaged_file_gives_what_it_holds(tmp_path: Path) -> None:
    path = write_damaged(tmp_path / "damaged.mp4", at=20)
    with pytest.warns(VideoWarning, match="could"):
        whole = bvllm.read_video(path, fps=None)
    with pytest.warns(VideoWarning, match="could"):
        chosen = bvllm.select_frames(path, num_frames=8, fps=None)
    assert (chosen.frames == whole.frames[chosen.index]).all()
    assert 20 not in numbers(chosen.frames)


def test_damage_that_shows_late_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it shows while all frames are read or while the chosen ones are."""
    frames = np.stack([picture(i) for i in range(20)])
    good = FrameSource.of(bvllm.read_video(frames))
    for fails_at in (1, 2):
        reads = [0]

        def read(positions: Any, reads: list[int] = reads, fails_at: int = fails_at) -> Any:
            reads[0] += 1
            for i, frame in enumerate(good.read(positions)):
                if reads[0] == fails_at and i == 3:
                    raise SourceChanged(good)
                yield frame

        bad = FrameSource(good.seconds, "bad", False, 20, 20.0, read)
        monkeypatch.setattr(frames_of, "open_source", lambda *_, bad=bad, **__: bad)
        chosen = bvllm.select_frames(frames, num_frames=5)
        assert reads[0] == fails_at and numbers(chosen.frames) == chosen.index.tolist()
    monkeypatch.undo()


def test_a_video_that_changes_meanwhile_is_told(video: Path, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(video.read_bytes())

    class Changing(bvllm.CoverageSelector):
        def forward(self, *given: Any, **more: Any) -> Any:
            write_video(path, size=(96, 64), options={"crf": "40"})
            return super().forward(*given, **more)

    with pytest.raises(bvllm.VideoError, match="has changed since its frames were looked at"):
        bvllm.select_frames(path, num_frames=4, fps=None, selector=Changing())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_frames": 0}, ValueError, "num_frames: got 0"),
        ({"num_frames": "3"}, TypeError, "num_frames: got '3'"),
        ({"question": None}, TypeError, "question: got NoneType, wanted a string"),
        ({"selector": "magic"}, ValueError, "selector: got 'magic', wanted one of"),
        ({"selector": "relevance"}, ValueError, "wanted scout="),
        ({"selector": 3}, TypeError, "selector: got a int, wanted a name or a selector"),
        ({"selector": torch.nn.Linear(1, 1)}, TypeError, "selector: got a Linear"),
        ({"query": "who"}, ValueError, "query: got 'who', wanted None, as a CoverageSelector"),
        ({"fps": 0}, ValueError, "fps: got 0"),
        ({"start": 99}, ValueError, "start: got 99"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], error: type[Exception], message: str, video: Path
) -> None:
    with pytest.raises(error, match=message):
        bvllm.select_frames(video, **arguments)


def test_a_selector_of_a_models_features_is_refused(video: Path) -> None:
    with pytest.raises(ValueError, match="wanted one that sees frames itself"):
        bvllm.select_frames(video, selector=bvllm.CoverageSelector(by="tower"))
    with pytest.raises(bvllm.VideoError, match="nowhere"):
        bvllm.select_frames("nowhere.mp4")


# Files.


def saved(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "frames.json").read_text(encoding="utf-8"))
    return found


def test_select_writes_files_and_a_list(video: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    asked = ["select", str(video), "Who?", "--frames", "6", "--fps", "10", "--out", str(out)]
    assert main(asked) == 0
    told = capsys.readouterr()
    listed = saved(out)
    chosen = bvllm.select_frames(video, "Who?", num_frames=6, fps=10)
    assert chosen.scores is not None
    names = [f"frame_000{i}.jpg" for i in range(1, 7)]
    assert {file.name for file in out.iterdir()} == {"frames.json", *names}
    assert [frame["file"] for frame in listed["frames"]] == names
    assert [frame["seconds"] for frame in listed["frames"]] == chosen.seconds.tolist()
    assert [frame["index"] for frame in listed["frames"]] == chosen.index.tolist()
    assert [frame["score"] for frame in listed["frames"]] == chosen.scores.tolist()
    assert listed["question"] == "Who?" and listed["video"] == str(video)
    assert listed["duration"] == chosen.duration and listed["note"] is None
    for name, index in zip(names, chosen.index.tolist(), strict=True):
        with Image.open(out / name) as image:
            assert image.format == "JPEG" and number(np.asarray(image)) == index
        assert name in told.out
    assert f"6 frames in {out}" in told.out


def test_a_folder_that_holds_files_is_left_alone_unless_forced(
    video: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    first = ["select", str(video), "--fps", "10", "--frames", "6", "--out", str(out)]
    assert main(first) == 0
    (out / "mine.txt").write_text("kept")
    fewer = ["select", str(video), "--fps", "10", "--frames", "3", "--out", str(out)]
    assert main(fewer) == 1
    assert "which holds files, wanted a new or empty one" in capsys.readouterr().err
    assert len(saved(out)["frames"]) == 6
    assert main([*fewer, "--force"]) == 0
    assert {file.name for file in out.iterdir()} == {
        "mine.txt", "frames.json", "frame_0001.jpg", "frame_0002.jpg", "frame_0003.jpg",
    }  # fmt: skip
    assert len(saved(out)["frames"]) == 3
    assert main(["select", str(video), "--out", str(out / "mine.txt")]) == 1
    assert "which is a file" in capsys.readouterr().err


def test_frames_are_saved_whole_or_not_at_all(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = bvllm.select_frames(video, num_frames=5, fps=10)
    made: list[int] = []
    jpeg = export.jpeg

    def failing(frame: Any, size: Any) -> bytes:
        made.append(1)
        if len(made) == 4:
            raise OSError("no space left")
        found: bytes = jpeg(frame, size)
        return found

    monkeypatch.setattr(export, "jpeg", failing)
    with pytest.raises(OSError, match="no space left"):
        save_frames(chosen, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    monkeypatch.undo()
    assert len(save_frames(chosen, tmp_path / "out")) == 5


def test_size_is_the_longest_edge_and_nothing_grows(video: Path, tmp_path: Path) -> None:
    chosen = bvllm.select_frames(video, num_frames=2, fps=10)
    for size, wanted in ((48, (48, 32)), (500, (96, 64)), (None, (96, 64))):
        save_frames(chosen, tmp_path / str(size), size=size)
        with Image.open(tmp_path / str(size) / "frame_0001.jpg") as image:
            assert image.size == wanted
    with pytest.raises(ValueError, match="size: got 3, wanted an int >= 16"):
        save_frames(chosen, tmp_path / "small", size=3)


def test_select_by_a_scout(video: Path, scout: Path, tmp_path: Path, capsys: Any) -> None:
    few = ["--fps", "10", "--frames", "4", "--device", "cpu"]
    question = "What is the man doing? A. sings B. runs"
    by_scout = ["select", str(video), question, *few, "--scout", str(scout), "--out"]
    assert main([*by_scout, str(tmp_path / "relevance")]) == 0
    selector = bvllm.RelevanceSelector.from_pretrained(scout)
    wanted = bvllm.select_frames(video, question, num_frames=4, fps=10, selector=selector)
    listed = saved(tmp_path / "relevance")["frames"]
    assert [frame["index"] for frame in listed] == wanted.index.tolist()
    for name in ("top-k", "best-of-bins", "inverse-transform", "coverage"):
        assert main([*by_scout, str(tmp_path / name), "--selector", name]) == 0
        assert len(saved(tmp_path / name)["frames"]) == 4
    capsys.readouterr()
    long = ["--query", "the man in red " * 20]
    assert main([*by_scout, str(tmp_path / "long"), *long]) == 0
    assert "so the question was read in" in capsys.readouterr().err
    assert "parts" in saved(tmp_path / "long")["note"]
    refused = [
        (["", "--scout", str(scout)], "question: got none, wanted one"),
        (["?", "--selector", "relevance"], "wanted scout="),
        (["?", "--query", "a man"], "query: got 'a man', wanted None"),
        (["?", "--selector", "magic"], "selector: got 'magic'"),
        (["?", "--selector", "uniform", "--scout", str(scout)], "looks at no frame"),
        (["?", "--scout", str(tmp_path / "none")], "not a folder"),
        (["?", "--size", "2"], "size: got 2"),
    ]
    for more, message in refused:
        asked = ["select", str(video), *more, *few]
        assert main([*asked, "--out", str(tmp_path / "refused")]) == 1
        assert message in capsys.readouterr().err
    assert main(["select", str(video), "--frames", "0", "--out", str(tmp_path / "refused")]) == 1
    assert "frames: got 0" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    "arguments", [["a.mp4"], ["a.mp4", "?", "--out", "a", "--messages", "b"], []]
)
def test_one_place_to_write_to_is_needed(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["select", *arguments])
    assert "bvllm: " in capsys.readouterr().err


# Messages to a server.


class Refused(ValueError):
    """A request that does not follow the published format."""


def times_and_images(request: Any) -> tuple[list[float], list[Any], str]:
    """What a request of chat completions holds, read as strictly as its documentation has it."""

    def check(right: bool, what: str) -> None:
        if not right:
            raise Refused(what)

    check(isinstance(request, dict) and {*request} <= {"model", "messages", "max_tokens"}, "fields")
    check(isinstance(request.get("model"), str), "model")
    given = request.get("messages")
    check(isinstance(given, list) and len(given) == 1, "messages")
    (message,) = given
    check({*message} == {"role", "content"} and message["role"] == "user", "message")
    seconds: list[float] = []
    images: list[Any] = []
    texts: list[str] = []
    check(isinstance(message["content"], list) and bool(message["content"]), "content")
    for part in message["content"]:
        if part.get("type") == "text":
            check({*part} == {"type", "text"} and isinstance(part["text"], str), "text part")
            check(bool(part["text"]), "empty text")
            texts.append(part["text"])
            continue
        check(part.get("type") == "image_url" and {*part} == {"type", "image_url"}, "image part")
        check({*part["image_url"]} <= {"url", "detail"}, "image_url")
        head, _, data = part["image_url"]["url"].partition(",")
        check(head == "data:image/jpeg;base64", "data URL")
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        image.load()
        check(image.format == "JPEG", "JPEG")
        images.append(image)
        told = re.fullmatch(r"(\d+\.\d+) seconds:", texts.pop() if texts else "")
        check(told is not None, "a time before each image")
        assert told is not None
        seconds.append(float(told[1]))
    check(len({image.size for image in images}) == 1, "one size")
    check(all(a < b for a, b in pairwise(seconds)), "times ascend")
    check(len(texts) == 1 and message["content"][-1] == {"type": "text", "text": texts[0]}, "last")
    return seconds, images, texts[0]


@contextmanager
def server() -> Iterator[str]:
    """The address of one that takes chat completions, and tells what it saw."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                if self.path != "/v1/chat/completions":
                    raise Refused("path")
                if self.headers["Content-Type"] != "application/json":
                    raise Refused("Content-Type")
                seconds, images, question = times_and_images(json.loads(body))
                saw = {
                    "numbers": [number(np.asarray(image)) for image in images],
                    "seconds": seconds,
                    "size": images[0].size,
                    "question": question,
                }
                content, code = json.dumps(saw), 200
            except (ValueError, KeyError, AttributeError) as error:
                content, code = f"refused: {error!r}", 400
            choice = {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": content},
            }
            answer = json.dumps({"object": "chat.completion", "choices": [choice]}).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *words: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}/v1"
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def complete(address: str, given: Any) -> dict[str, Any]:
    """What a client of OpenAI's posts, and what it takes from the answer."""
    body = json.dumps({"model": "any", "messages": given, "max_tokens": 16}).encode()
    request = urllib.request.Request(
        f"{address}/chat/completions", body, {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as response:
        content = json.load(response)["choices"][0]["message"]["content"]
    found: dict[str, Any] = json.loads(content)
    return found


def test_messages_feed_a_server(video: Path, tmp_path: Path, capsys: Any) -> None:
    asked = ["select", str(video), "Who is there?", "--fps", "10", "--frames", "6", "--size", "80"]
    chosen = bvllm.select_frames(video, "Who is there?", num_frames=6, fps=10)
    with server() as address:
        for to in (str(tmp_path / "messages.json"), "-"):
            assert main([*asked, "--messages", to]) == 0
            told = capsys.readouterr().out
            text = told if to == "-" else Path(to).read_text(encoding="utf-8")
            saw = complete(address, json.loads(text))
            assert saw["numbers"] == chosen.index.tolist()
            assert saw["seconds"] == pytest.approx(chosen.seconds.tolist())
            assert saw["size"] == [80, 53] and saw["question"] == "Who is there?"
        for broken in (
            [],
            [{"role": "user", "content": "text"}],
            [{"role": "user", "content": json.loads(text)[0]["content"][1:]}],
            [{"role": "user", "content": json.loads(text)[0]["content"][:-1]}],
        ):
            with pytest.raises(urllib.error.HTTPError, match="400"):
                complete(address, broken)
    assert [file.name for file in tmp_path.iterdir()] == ["messages.json"]


def test_messages_replace_a_file_whole(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    file = tmp_path / "messages.json"
    file.write_text("before")

    def interrupted(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    asked = ["select", str(video), "?", "--frames", "2", "--messages", str(file)]
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", interrupted)
        assert main(asked) == 130
    assert file.read_text() == "before" and len(list(tmp_path.iterdir())) == 1
    assert main(asked) == 0
    assert len(json.loads(file.read_text())[0]["content"]) == 5


def test_large_frames_are_made_smaller_by_default(tmp_path: Path) -> None:
    path = write_video(tmp_path / "large.mp4", frames=3, fps=1, size=(1280, 720))
    found = messages(bvllm.select_frames(path, num_frames=2), "")
    parts = found[0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url"] * 2  # no question, no text
    data = parts[1]["image_url"]["url"].partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (512, 288)


def test_times_have_as_many_digits_as_tell_them_apart() -> None:
    assert times([0.0, 1.0, 12.5]) == ["0.0", "1.0", "12.5"]
    assert times([0.0, 0.033, 0.067]) == ["0.00", "0.03", "0.07"]
    assert times([]) == []
