"""Conversations as they are published, and rows that are not as they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import talk

from bvllm_adapters.training.conversations import Medium, RowError, parse
from bvllm_adapters.training.rows import Source, read_rows, sources_of

MEDIA = Path("media")


def row(**fields: Any) -> Any:
    return parse({"id": "0", "conversations": talk("q", "a")} | fields, MEDIA, "file[0]")


def test_llava() -> None:
    raw = {
        "id": "000000033471",
        "image": "coco/train2017/000000033471.jpg",
        "conversations": talk("What colour is the bus?\n<image>", "Red.", "And the sky?", "Blue."),
    }
    found = parse(raw, MEDIA, "llava.json[0]")
    assert found.turns == ("<image>\nWhat colour is the bus?", "Red.", "And the sky?", "Blue.")
    assert found.media == (Medium("image", MEDIA / "coco/train2017/000000033471.jpg"),)
    assert found.question == "What colour is the bus?"


def test_valley_and_video_llava() -> None:
    found = row(video="1.mp4", conversations=talk("Describe it.\n<video>", "A dog."))
    assert found.turns == ("<video>\nDescribe it.", "A dog.")
    assert found.media == (Medium("video", MEDIA / "1.mp4"),)


def test_llama_vid_says_image_of_videos() -> None:
    found = row(video="1.mp4", conversations=talk("<image>\nWhat is it?", "A dog."))
    assert found.turns[0] == "<video>\nWhat is it?"
    assert found.media[0].kind == "video"


def test_words_alone() -> None:
    found = row()
    assert (found.turns, found.media, found.question) == (("q", "a"), (), "q")


def test_several_media_stay_where_they_stand() -> None:
    found = row(
        image=["a.jpg", "b.jpg"],
        video="c.mp4",
        conversations=talk("Is <image> in <video> or in <image>?", "No.", "Sure?", "Yes."),
    )
    assert found.turns[0] == "Is <image> in <video> or in <image>?"
    assert [medium.path.name for medium in found.media] == ["a.jpg", "c.mp4", "b.jpg"]
    assert found.question == "Is  in  or in ?"


def test_media_without_a_tag_go_first() -> None:
    assert row(image="a.jpg", conversations=talk("What?", "A dog.")).turns[0] == "<image>\nWhat?"


def test_what_has_no_answer_or_no_question_is_left_out() -> None:
    turns = [{"from": "gpt", "value": "Hello."}, *talk("q", "a"), *talk("and?")]
    assert row(conversations=turns).turns == ("q", "a")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conversations": None}, "conversations: got NoneType, wanted a list"),
        ({"conversations": "q"}, "conversations: got str, wanted a list"),
        ({"conversations": []}, "got no question with an answer"),
        ({"conversations": talk("q")}, "got no question with an answer"),
        ({"conversations": [{"from": "user", "value": "q"}]}, r"conversations\[0\]: got"),
        ({"conversations": [{"from": "human"}]}, r"conversations\[0\]: got"),
        ({"conversations": [*talk("q"), *talk("q")]}, "two turns of 'human' in a row"),
        ({"conversations": talk("q", "an <image>"), "image": "a"}, "in an answer"),
        ({"conversations": talk("<image>", "a")}, "image: got 0, wanted 1"),
        ({"conversations": talk("<image><image>", "a"), "image": "a"}, "image: got 1, wanted 2"),
        ({"image": "a", "video": "b"}, "image: got 1, wanted 0"),
        ({"image": 3}, "image: got 3, wanted a path"),
        ({"video": [""]}, "video: got"),
        (
            {"conversations": [*talk("q", "a"), {"from": "system", "value": "s"}]},
            r"conversations\[2\]: got a turn of 'system', wanted it first",
        ),
        (
            {"conversations": [{"from": "system", "value": "s"}] * 2 + talk("q", "a")},
            r"conversations\[1\]: got a turn of 'system', wanted it first",
        ),
        (
            {"conversations": [{"from": "system", "value": "<image>"}, *talk("q", "a")]},
            "in a turn of 'system'",
        ),
        ({"conversations": [{"from": "system", "value": 3}]}, r"conversations\[0\]: got"),
        ({"conversations": [{"from": "system", "value": "s"}]}, "got no question with an answer"),
        ({"conversations": talk("q\udc80", "a")}, r"conversations\[0\]: got half a character"),
    ],
)
def test_malformed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        row(**fields)


def test_a_system_turn_stands_first() -> None:
    found = row(conversations=[{"from": "system", "value": " Be short. "}, *talk("q", "a")])
    assert (found.system, found.turns, found.question) == ("Be short.", ("q", "a"), "q")
    assert row().system is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../a.mp4", "leaves the media folder"),
        ("b/../../a.mp4", "leaves the media folder"),
        ("b\\..\\..\\a.mp4", "leaves the media folder"),
        ("b/../../media/a.mp4", "leaves the media folder"),
        ("..", "leaves the media folder"),
        ("a\0.mp4", "has a NUL in it"),
        ("a" * 256, "is too long"),
        ("é" * 128, "is too long"),
        ("a/" * 2048, "is too long"),
        ("http://host/a.mp4", "is an address"),
        ("HTTPS://host/a.mp4", "is an address"),
        ("file:///etc/passwd", "is an address"),
        ("file:a.mp4", "is an address"),
        ("concat:a.mp4|b.mp4", "is an address"),
        ("pipe:0", "is an address"),
        ("data:video/mp4;base64,AAAA", "is an address"),
        ("/dev/zero", "is the system's"),
        ("/dev/../dev/video0", "is the system's"),
        ("/proc/self/environ", "is the system's"),
        ("/sys/kernel", "is the system's"),
        ("a\ud800.mp4", "is no Unicode"),
    ],
)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_media_that_a_row_may_not_name(kind: str, path: str, message: str) -> None:
    with pytest.raises(RowError, match=f"{kind}: got .*{message}"):
        row(**{kind: path})


def test_media_that_a_row_may_name() -> None:
    for path in ("a.mp4", "b/../a.mp4", "./clip:1.mp4", "..a/b..c.mp4", "/elsewhere/../a.mp4",
                 "/dev/shm/a.mp4", "C/a.mp4", "é" * 127):  # fmt: skip
        assert row(video=path).media[0].path == MEDIA / path
    outside = {"video": "../a.mp4", "conversations": talk("q", "a")}
    assert parse(outside, MEDIA, "", outside=True).media[0].path == MEDIA / "../a.mp4"
    with pytest.raises(RowError, match="is the system's"):
        parse({**outside, "video": "../" * 30 + "dev/zero"}, MEDIA, "", outside=True)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    from bvllm_adapters.training.samples import Samples, Skipped

    os.mkfifo(tmp_path / "pipe.mp4")
    found = row(video=str(tmp_path / "pipe.mp4"))

    class Host:
        max_media = None
        placeholders = (-1,)
        end_ids = ()

        def prompt(self, turns: Any) -> str:
            return " ".join(turns)

        def ids(self, prompt: str) -> list[int]:
            return [-1 if word == "<video>" else 1 for word in prompt.split()]

    skipped: Any = Samples([found], Host())[0, 0]  # type: ignore[arg-type]
    assert isinstance(skipped, Skipped)
    assert "got a device or a pipe" in str(skipped)


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        {"id": 7, "video": "a.mp4", "conversations": talk("<video>é\u2028", "a")},
        "nonsense",
        {"conversations": talk("q", "a")},
    ]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    named, unnamed = tmp_path / "rows.jsonl", tmp_path / "rows.json"
    named.write_text(text + "\n\n")
    unnamed.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps(lines))
    same = tmp_path / "list.jsonl"
    same.write_text(json.dumps(lines, indent=1))
    read = {file: read_rows([Source(file, tmp_path)]) for file in (named, unnamed, whole, same)}
    for rows in read.values():
        assert len(rows) == 2 and len(rows.malformed) == 1
        assert rows[0].turns == read[whole][0].turns
        assert rows.digest() == read[whole].digest()
    assert read[named][1].name == f"{named}:3"
    assert read[named].malformed[0].startswith(f"{named}:2: got str")
    assert read[unnamed][0].name == f"{unnamed}:1 (id 7)"
    assert len(read_rows([Source(_written(tmp_path / "one.jsonl", lines[2]), tmp_path)])) == 1


def _written(file: Path, value: Any) -> Path:
    file.write_text(json.dumps(value))
    return file


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.jsonl", b'{"a": 1}\n{"b"', r"rows\.jsonl, line 2: cannot be read"),
        ("rows.jsonl", b"nonsense\n{}", r"rows\.jsonl, line 1: cannot be read"),
        ("rows.json", b'{"a": 1}\n{"b"', r"rows\.json, line 2: cannot be read"),
        ("rows.json", b"[1, ", r"rows\.json: cannot be read \(.*line 1"),
        ("rows.json", b"\xff\xfe[]", r"rows\.json: cannot be read"),
        ("rows.json", b"[" * 100_000, r"rows\.json: cannot be read \(it is nested too deeply"),
        ("rows.jsonl", b'{"a":' * 9999, r"line 1: cannot be read \(it is nested too deeply"),
        ("rows.json", b'[{"id": 1, "id": 2}]', r"rows\.json: .*got 'id' twice"),
        ("rows.json", b"[" + b"9" * 5000 + b"]", r"rows\.json: cannot be read \(Exceeds"),
        ("rows.json", b"", r"rows\.json: cannot be read"),
        ("rows.json", b"3", r"rows\.json: got int, wanted a list"),
    ],
)
def test_damaged_files_are_named(name: str, text: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(text)
    with pytest.raises(ValueError, match=f"validation: .*{message}"):
        read_rows([Source(file, tmp_path)], name="validation")


def test_files_with_media_of_their_own(tmp_path: Path) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    good = {"id": 7, "video": "a.mp4", "conversations": talk("<video>é", "a")}
    one.write_text(json.dumps([good, "nonsense", {"id": "bad"}]))
    other.write_text(json.dumps([{"conversations": talk("x", "y")}, good]))
    rows = read_rows(sources_of([{"file": str(one), "media": "/videos"}, {"file": str(other)}]))
    assert [found.name for found in rows] == [
        f"{one}[0] (id 7)",
        f"{other}[0]",
        f"{other}[1] (id 7)",
    ]
    assert [found.media[0].path for found in rows if found.media] == [
        Path("/videos/a.mp4"),
        tmp_path / "a.mp4",
    ]
    assert rows[0].question == "é"
    assert len(rows.malformed) == 2
    assert rows.malformed[0].startswith(f"{one}[1]: got str")
    assert rows.malformed[1].startswith(f"{one}[2] (id bad): conversations")
    with pytest.raises(IndexError):
        rows[3]


@pytest.mark.parametrize("text", ["{", '{"a": 1}', None])
def test_no_list_of_rows(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=r"data: .*rows\.json"):
        read_rows([Source(file, tmp_path)])


@pytest.mark.parametrize("text", ["<vid<video>eo>What?", "<vid<image>eo><video>What?"])
def test_tags_that_leaving_out_others_would_form(text: str) -> None:
    """One medium, one tag: what is left of a question holds none."""
    if "<image>" in text:
        with pytest.raises(RowError, match="got 1, wanted 2, one for each tag"):
            row(conversations=talk(text, "a"), video="a.mp4")
        return
    found = row(conversations=talk(text, "a"), video="a.mp4")
    assert found.turns[0] == "<video>\nWhat?" and found.question == "What?"
