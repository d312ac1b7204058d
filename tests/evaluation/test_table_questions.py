"""Rows of somebody's own table as questions, and what is said of those that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bvllm_adapters.evaluation.table_questions import FIELDS, table_question
from bvllm_adapters.tables.media_paths import RowError
from bvllm_adapters.tables.table import TableRow, plain

MEDIA = Path("videos")


def question(by: Any = None, outside: bool = False, **values: Any) -> Any:
    row = {"video": "a.mp4", "question": "What?", "answer": "x", **values}
    row = {name: value for name, value in row.items() if value is not None}
    return table_question(TableRow(3, "t.jsonl:3", row), MEDIA, by=by, outside=outside)


@pytest.mark.parametrize(
    ("options", "answer", "texts", "right"),
    [
        (["x", "y"], "y", ("x", "y"), 1),
        (["x", "y"], "B", ("x", "y"), 1),
        (["x", "y"], "(b)", ("x", "y"), 1),
        (["x", "y"], 1, ("x", "y"), 1),
        (["x", "y"], "1", ("x", "y"), 1),
        (["2", "1"], "1", ("2", "1"), 1),
        ([2, 1], "1", ("2", "1"), 1),
        (["B", "A"], 1, ("B", "A"), 1),
        (["A. x", "B. y"], "B. y", ("x", "y"), 1),
        (["A. x", "B. y"], "y", ("x", "y"), 1),
        (["(A) x", "(B) y"], "(B) y", ("x", "y"), 1),
        ({"A": "x", "B": "y"}, "B", ("x", "y"), 1),
        ({"a1": "x", "a2": "y"}, "a2", ("x", "y"), 1),
        ('["x", "y"]', "y", ("x", "y"), 1),  # as a CSV's cell has it
        ('{"A": "x", "B": "y"}', "B", ("x", "y"), 1),
    ],
)
def test_options_and_the_right_one(
    options: Any, answer: Any, texts: tuple[str, ...], right: int
) -> None:
    found = question(options=options, answer=answer)
    assert (found.options, found.right, found.answers) == (texts, right, (texts[right],))
    assert found.by == "letter"


@pytest.mark.parametrize(
    ("answer", "answers"),
    [("x", ("x",)), (["x", "y"], ("x", "y")), (6, ("6",)), ('["x", "y"]', ("x", "y")),
     ("[sic", ("[sic",))],
)  # fmt: skip
def test_open_answers(answer: Any, answers: tuple[str, ...]) -> None:
    found = question(answer=answer)
    assert (found.by, found.options, found.answers) == ("match", (), answers)


def test_a_row_keeps_what_else_it_has() -> None:
    found = question(id=7, query="a thing", kind="short", start=2)
    assert (found.row, found.name, found.place, found.query) == (3, "7", "t.jsonl:3", "a thing")
    assert found.columns == {"kind": "short", "start": 2}
    assert found.video == MEDIA / "a.mp4"
    assert question().name == "3" and question().query is None
    assert question(by="match", options=["x", "y"]).options == ()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"video": None}, "video: got None, wanted a text"),
        ({"video": 3}, "video: got 3, wanted a text"),
        ({"video": "https://x/a.mp4"}, "video: got 'https://x/a.mp4', which is an address"),
        ({"video": "../a.mp4"}, "video: got '../a.mp4', which leaves the media folder"),
        ({"video": "/etc/a.mp4"}, "video: got '/etc/a.mp4', which leaves the media folder"),
        ({"video": "/proc/1/x", "outside": True}, "which is the system's"),
        ({"question": " "}, "question: got ' ', wanted a text"),
        ({"question": "a\ud800"}, "question: got half a character"),
        ({"query": 3}, "query: got 3, wanted a text"),
        ({"answer": None}, "answer: got none, wanted the right one"),
        ({"answer": []}, "answer: got an empty list"),
        ({"answer": [" "]}, "answer: got an empty one"),
        ({"answer": True}, "answer: got True, wanted a text"),
        ({"options": "x, y"}, "options: got 'x, y', wanted 2 to 26 texts"),
        ({"options": ["x"]}, "options: got 1, wanted 2 to 26 texts"),
        ({"options": ["x"] * 27}, "options: got 27, wanted"),
        ({"options": ["x", None]}, "options: got None, wanted"),
        ({"options": ["x", "\udc00"]}, "options: got half a character"),
        ({"options": ["y", "z"]}, "answer: got 'x', wanted one of ['y', 'z']"),
        ({"options": ["x", "x"]}, "answer: got 'x', which fits several options"),
        ({"options": ["B", "A"], "answer": "B"}, "answer: got 'B', which fits several options"),
        ({"options": ["x", "y"], "answer": 2}, "answer: got place 2, wanted one from 0 to 1"),
        ({"options": ["x", "y"], "answer": -1}, "answer: got place -1"),
        ({"options": ["x", "y"], "answer": 0.5}, "answer: got 0.5, wanted an option's text"),
        ({"by": "letter"}, "options: got None, wanted"),
        ({"by": "likelihood"}, "options: got None, wanted"),
    ],
)
def test_what_cannot_be_asked_is_told(values: dict[str, Any], told: str) -> None:
    with pytest.raises(RowError) as error:
        question(**values)
    assert told in str(error.value)


def test_videos_elsewhere_are_for_whoever_says_so() -> None:
    assert question(video="../a.mp4", outside=True).video == MEDIA / "../a.mp4"
    assert question(video="/else/a.mp4", outside=True).video == Path("/else/a.mp4")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=6,
)
likely = st.sampled_from(["a.mp4", "A", "B", "x", "[", '["x"]', ["x", "y"], {"A": "x", "B": "y"}])


@given(
    values=st.fixed_dictionaries(
        {}, optional={name: likely | anything for name in (*FIELDS, "kind")}
    ),
    by=st.sampled_from([None, "letter", "likelihood", "match"]),
)
def test_any_row_is_a_question_or_an_error(values: dict[str, Any], by: Any) -> None:
    row = TableRow(1, "t:1", {name: plain(one) for name, one in values.items() if one is not None})
    try:
        found = table_question(row, MEDIA, by=by)
    except RowError:
        return
    assert found.answers and (found.by == "match" or found.answers == (found.options[found.right],))
    json.dumps(dict(found.columns))
