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
    ],
)
def test_malformed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        row(**fields)


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
