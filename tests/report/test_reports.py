"""Reports: the trace's JSON form, pages and pictures of it, and the commands that write them."""

from __future__ import annotations

import copy
import io
import json
import pickle
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_hosts import llama_vid, native, videollama2, wrap_small

import bvllm_adapters as bvllm
from bvllm_adapters import Selection, Trace, VisualTokens
from bvllm_adapters.budget_merger import BudgetMerger
from bvllm_adapters.cli.main import main
from bvllm_adapters.context import looking
from bvllm_adapters.evaluation.needle import DEMO_VIDEO
from bvllm_adapters.report.costs import size, spent
from bvllm_adapters.report.drawing import clock, shortened
from bvllm_adapters.report.overlay import heat, heat_over, mosaic_over, strongest, token_heat
from bvllm_adapters.report.page import fragment, page
from bvllm_adapters.report.timeline import share_of_choices, timeline
from bvllm_adapters.seeing.pictures import box_of, grid_of
from bvllm_adapters.trace import FrameTrace, save
from bvllm_qwen2 import HOST
from bvllm_qwen2.tiny import tiny_model

QUESTIONS = ["Where is the 5?", "What color is the 3?"]
NASTY = '<script>alert("x")</script> & \x00 </title> \ud800 </svg><img src=http://example.org>'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def opened() -> bvllm.OpenVideo:
    model, processor = HOST.demo()
    return bvllm.open_video(model, DEMO_VIDEO, processor=processor)


@pytest.fixture(scope="module")
def looked(opened: bvllm.OpenVideo) -> list[Trace]:
    answers = opened.ask(QUESTIONS, look=True, max_new_tokens=6)
    return [answer.trace for answer in answers]


def noise(count: int, height: int = 36, width: int = 64) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


class Page(HTMLParser):
    """What is in a page; checks that what is opened is closed."""

    VOID = ("meta", "img", "link", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.words.append(data)

    def of(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.tags if tag in tags]


def checked(text: str) -> Page:
    """A page that stands alone, runs nothing and says what its pictures show."""
    found = Page(text)
    assert not found.of("script", "iframe", "object", "embed", "form")
    for tag, attributes in found.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action"):
            assert attributes.get(name, "data:").startswith("data:"), tag
    assert "url(" not in text and "@import" not in text
    for picture in found.of("svg", "image"):
        assert picture["role"] == "img" and picture["aria-label"]
    for image in found.of("img"):
        assert image["alt"]
    for part in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ElementTree.fromstring(part)
    return found


# The JSON form.


def test_json_and_back(looked):
    for trace in looked:
        form = json.loads(json.dumps(trace.to_dict()))
        assert form["format"] == "bvllm-trace/1"
        back = Trace.from_dict(form)
        assert back == trace and back.to_dict() == trace.to_dict()
        assert json.loads(json.dumps(back.to_dict())) == form
        assert str(back) == str(trace)


def test_a_trace_tells_what_happened(opened, looked):
    for question, trace in zip(QUESTIONS, looked, strict=True):
        assert trace.question == question and trace.answer
        assert Path(trace.source).name == DEMO_VIDEO.name
        assert trace.times.tolist() == opened.features.seconds.tolist()
        assert trace.query_scores.shape == (4, len(opened)) and trace.scores is None
        best = trace.query_scores.argmax(axis=1)
        assert {*best.tolist()} == {frame.frame for frame in trace.frames}
        assert trace.grid == (4, 4)
        assert np.allclose(trace.box, (0, 0, 1, 1), atol=0.02)
        assert trace.tokens_after["budget"] == trace.num_tokens
        assert trace.bytes.keys() >= {"selector", "prefill"} and min(trace.bytes.values()) > 0
        for frame in trace.frames:
            shown = np.asarray(Image.open(io.BytesIO(frame.picture)))
            assert shown.shape[2] == 3 and frame.looked.shape == (4, 16)
            assert {*frame.members} == {*range(frame.tokens)}


def test_no_look_no_pictures(opened):
    plain = opened.ask(QUESTIONS[0], max_new_tokens=2).trace
    assert plain.bytes is plain.grid is plain.box is None
    for frame in plain.frames:
        assert frame.picture is frame.members is frame.looked is None
    # They can still be had of a file, and are not taken along.
    assert all(frame.picture for frame in plain.with_pictures().frames)
    for other in (pickle.loads(pickle.dumps(plain)), copy.deepcopy(plain)):
        assert other == plain and other.pictures_later is None
        assert other.with_pictures() is other


def test_a_look_changes_no_answer(opened):
    plain, look = (opened.ask(QUESTIONS, look=on, max_new_tokens=6) for on in (False, True))
    for one, other in zip(plain, look, strict=True):
        assert one.text == other.text and one.trace.frames == other.trace.frames


def test_a_look_is_its_threads_own(opened):
    def plain() -> Any:
        return opened.ask(QUESTIONS[0], max_new_tokens=4).trace

    with ThreadPoolExecutor(2) as threads:
        others = [threads.submit(plain) for _ in range(4)]
        looks = [opened.ask(QUESTIONS[0], look=True, max_new_tokens=4).trace for _ in range(4)]
        for other, look in zip(others, looks, strict=True):
            assert other.result().frames == look.frames
            assert look.bytes and all(frame.looked is not None for frame in look.frames)
            assert other.result().bytes is None
            assert all(frame.looked is None for frame in other.result().frames)


def test_batches_and_single_questions_look_alike(opened, looked):
    batch = bvllm.ask_batch([(opened, q) for q in QUESTIONS], look=True, max_new_tokens=6)
    for trace, answer in zip(looked, batch, strict=True):
        assert answer.trace.frames == trace.frames
        for one, other in zip(trace.frames, answer.trace.frames, strict=True):
            assert one.members == other.members and one.picture == other.picture
            np.testing.assert_allclose(one.looked, other.looked, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({}, "format: got None"),
        ({"format": "bvllm-trace/2"}, "format: got 'bvllm-trace/2', wanted 'bvllm-trace/1'"),
        ({"format": "bvllm-trace/1"}, "frames: got none"),
        ([], "format: got 'list'"),
    ],
)
def test_other_forms_are_refused(form, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Trace.from_dict(form)


# Saving.


def test_saved_files(looked, tmp_path):
    for suffix in (".html", ".png", ".json", ".HTML"):
        file = tmp_path / f"report{suffix}"
        file.write_text("what was there before")
        looked[0].save(file, beside=looked[1:])
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "report.HTML", "report.html", "report.json", "report.png",
    ]  # fmt: skip
    checked((tmp_path / "report.html").read_text())
    traces = [Trace.from_dict(form) for form in json.loads((tmp_path / "report.json").read_text())]
    assert traces == looked
    image = Image.open(tmp_path / "report.png").convert("L")
    assert image.width == 2000 and len(image.getcolors()) > 50


def test_wrong_files_are_refused(looked, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"file: got .*a.pdf, wanted one that ends in .html"):
        looked[0].save(tmp_path / "a.pdf")
    (tmp_path / "b.html").mkdir()
    with pytest.raises(ValueError, match=r"file: got .*b.html, which is a folder"):
        looked[0].save(tmp_path / "b.html")
    with pytest.raises(ValueError, match=r"file: got .*a.html, wanted a file in a folder"):
        looked[0].save(tmp_path / "none" / "a.html")
    with pytest.raises(ValueError, match="traces: got none"):
        save([], tmp_path / "a.html")
    file = tmp_path / "c.html"
    file.write_text("before")
    monkeypatch.setattr("os.replace", lambda *files: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        looked[0].save(file)
    assert file.read_text() == "before"
    assert {f.name for f in tmp_path.iterdir()} == {"b.html", "c.html"}


# Pages.


def test_a_page_of_one_question(looked):
    (trace, _) = looked
    found = checked(page([trace.to_dict()]))
    words = " ".join(found.words)
    assert trace.question in words and trace.answer in words
    for frame in trace.frames:
        assert clock(frame.second) in words
    assert "budget of 16" in words and "prefill" in words
    assert re.search(r"\d [MG]iB", words)  # of the whole process
    # In the timeline and on the sheet, with a heat map over it, and one for each token.
    pictures = len(trace.frames)
    assert len(found.of("image")) == pictures * 3 + 1 + sum(f.tokens for f in trace.frames)
    (policy,) = (m for m in found.of("meta") if "http-equiv" in m)
    assert policy["content"].startswith("default-src 'none'")


def test_questions_side_by_side(looked):
    found = checked(page([trace.to_dict() for trace in looked]))
    assert len(found.of("section")) == 2
    assert len(found.of("figure")) == 1
    words = " ".join(found.words)
    assert all(question in words for question in QUESTIONS)


def test_notebooks(looked, opened):
    for trace in (looked[0], opened.ask(QUESTIONS[0], max_new_tokens=2).trace):
        text = trace._repr_html_()
        found = checked(text)
        assert not found.of("html", "head", "body") and found.of("image")
        (style,) = re.findall("<style>(.*?)</style>", text, flags=re.DOTALL)
        for rule in re.sub(r"@media print\{", "", style).split("}"):
            for selector in filter(None, rule.partition("{")[0].strip().split(",")):
                assert selector.strip().startswith(".bvllm-report")


def test_nothing_that_is_said_is_taken_for_markup(looked):
    trace = replace(looked[0], question=NASTY, answer=NASTY, source=NASTY, note=NASTY)
    for forms in ([trace], [trace, trace]):
        text = page([each.to_dict() for each in forms])
        text.encode("utf-8", "replace")
        found = checked(text)
        assert 'alert("x")' in " ".join(found.words)
    trace = replace(trace, selector=NASTY, seconds={NASTY: 1.0}, query_scores=None)
    checked(page([trace.to_dict()]))


def soft(scores: torch.Tensor | None = None) -> Trace:
    weights = torch.tensor([[0.75, 0.25, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
    tokens = VisualTokens(
        torch.zeros(3, 2),
        torch.tensor([0, 0, 0]),
        torch.tensor([2.0, 1, 1]),
        Selection(weights, torch.tensor([3.0, 1])),
        torch.tensor([0.0, 1.5, 4.0, 9.0]),
    )
    return Trace.of(tokens, max_tokens=3, seconds={"decode": 0.5}, question="", selector="learned")


def test_soft_choices_and_frames_without_tokens(tmp_path):
    trace = soft()
    assert [frame.sampled for frame in trace.frames] == [4, 4]
    assert [frame.tokens for frame in trace.frames] == [3, 0]
    form = trace.to_dict()
    words = " ".join(checked(page([form])).words)
    assert "of 2 frames" in words and "3 of 4 tokens" in words and "0 of 4 tokens" in words
    assert "8 tokens merged to 3 visual tokens of a budget of 3" in words
    label = timeline([form]).label
    assert "0:00" in label and "0:04" in label
    trace.save(tmp_path / "soft.png")
    assert Trace.from_dict(json.loads(json.dumps(form))) == trace


def test_a_frame_without_tokens_has_no_members():
    with looking():
        tokens = BudgetMerger()(torch.eye(6).reshape(2, 3, 6), 1)
    trace = Trace.of(replace(tokens, seconds=torch.arange(2.0)), max_tokens=1, seconds={})
    assert [frame.members for frame in trace.frames] == [(0, 0, 0), (None, None, None)]
    assert Trace.from_dict(json.loads(json.dumps(trace.to_dict()))).to_dict() == trace.to_dict()


def test_an_image_and_a_stream(tmp_path):
    model, processor = tiny_model()
    image = bvllm.ask(
        model, Image.fromarray(noise(1)[0]), "Who?", processor=processor, look=True,
        max_new_tokens=2,
    ).trace  # fmt: skip
    assert image.frames_decoded == 1 and image.frames[0].picture
    stream = bvllm.open_video(model, processor=processor)
    stream.push(noise(20))
    seen = stream.ask("Who?", look=True, max_new_tokens=2).trace
    assert seen.source is None and not any(frame.picture for frame in seen.frames)
    assert any(frame.looked is not None for frame in seen.frames)
    array = bvllm.ask(
        model, noise(9), "Who?", processor=processor, look=True, max_new_tokens=2
    ).trace
    assert all(frame.picture for frame in array.frames)
    for i, trace in enumerate((image, seen, array)):
        found = checked(page([trace.to_dict()]))
        assert clock(trace.frames[0].second) in " ".join(found.words)
        trace.save(tmp_path / f"{i}.png")


def test_a_file_that_has_changed_shows_no_other_pictures(tmp_path):
    model, processor = tiny_model()
    file = shutil.copy(DEMO_VIDEO, tmp_path / "clip.mp4")
    trace = bvllm.ask(
        model, file, "Who?", processor=processor, max_new_tokens=2, max_frames=8
    ).trace
    assert any(frame.picture for frame in trace.with_pictures().frames)
    with Path(file).open("ab") as more:
        more.write(b"more")
    assert not any(frame.picture for frame in trace.with_pictures().frames)
    trace.save(tmp_path / "a.html")


def test_a_training_free_selector_and_pairs_of_frames(tmp_path, monkeypatch):
    root = Path(__file__).parents[1] / "integrations" / "transformers_hosts"
    monkeypatch.syspath_prepend(root)
    from processors import write

    model = bvllm.wrap(bvllm.load(write("qwen2_5_vl", tmp_path / "model")), max_tokens=24)
    answer = bvllm.ask(model, DEMO_VIDEO, "Who?", look=True, max_new_tokens=2)
    trace = answer.trace
    assert trace.selector == "coverage" and len(trace.scores) == trace.frames_decoded == 32
    assert trace.query_scores is None and len(trace.times) == 32
    assert trace.grid is not None and trace.box is None
    for frame in trace.frames:
        assert frame.looked is None and len(frame.members) == trace.grid[0] * trace.grid[1]
        assert frame.picture
    words = " ".join(checked(page([trace.to_dict()])).words)
    assert "have their mean colour" in words and "score" in words
    bunny = "examples/big_buck_bunny.mp4"
    rows, columns = bvllm.ask(model, bunny, "Who?", look=True, max_new_tokens=2).trace.grid
    assert rows < columns  # as the picture is wide
    trace.save(tmp_path / "a.png")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [native, videollama2, llama_vid])
def test_hosts(make, dtype, tmp_path):
    model, processor = make(tmp_path / "host")
    if make is not native:
        wrap_small(model)
    model = model.to(dtype)
    opened = bvllm.open_video(model, DEMO_VIDEO, processor=processor, max_frames=6)
    plain = opened.ask(["Who?", "Where?"], max_new_tokens=2)
    look = opened.ask(["Who?", "Where?"], look=True, max_new_tokens=2)
    for one, other in zip(plain, look, strict=True):
        trace = other.trace
        assert one.text == other.text and one.trace.frames == trace.frames
        assert trace.grid is not None and trace.query_scores.shape[1] == 6
        for frame in trace.frames:
            assert frame.looked.shape == (frame.sampled, trace.grid[0] * trace.grid[1])
            np.testing.assert_allclose(frame.looked.sum(axis=1), 1, atol=1e-5)
        checked(page([trace.to_dict()]))


def test_frames_for_another_model(tmp_path, capsys):
    chosen = bvllm.select_frames(DEMO_VIDEO, "Who?", num_frames=3)
    trace = chosen.trace
    assert [frame.second for frame in trace.frames] == chosen.seconds.tolist()
    assert len(trace.times) == len(trace.scores) == 64 and trace.selector == "coverage"
    assert chosen._repr_html_() == trace._repr_html_()
    found = checked(page([trace.with_pictures().to_dict()]))
    assert len(found.of("image")) == 6 and "token" not in " ".join(found.words)
    assert Trace.from_dict(json.loads(json.dumps(trace.to_dict()))) == trace
    for selector in ("uniform", "random"):
        bvllm.select_frames(DEMO_VIDEO, num_frames=3, selector=selector).trace.save(
            tmp_path / f"{selector}.html"
        )
        checked((tmp_path / f"{selector}.html").read_text())
    out = tmp_path / "chosen.html"
    asked = ["select", str(DEMO_VIDEO), "--frames", "3", "--report"]
    assert main([*asked, str(out)]) == 0 and main([*asked, str(tmp_path / "a.gif")]) == 1
    assert "wanted one that ends in" in capsys.readouterr().err
    checked(out.read_text())


def test_the_command(tmp_path, capsys):
    out = tmp_path / "report.html"
    words = ["report", str(DEMO_VIDEO), *QUESTIONS, "--max-new-tokens", "4"]
    assert main([*words, "-o", str(tmp_path / "report.pdf")]) == 1
    assert "file: got" in capsys.readouterr().err
    assert main([*words, "-o", str(out)]) == 0
    assert f"report    {out}" in capsys.readouterr().out
    found = checked(out.read_text())
    assert "tower" in " ".join(found.words) and len(found.of("section")) == 2
    with pytest.raises(SystemExit):
        main(words)


# The parts.


def test_hours_of_video_stay_small():
    times = np.arange(7200.0)
    scores = np.random.default_rng(0).random((32, 7200), np.float32)
    frames = tuple(
        FrameTrace(i * 225, i * 225.0, {i * 225: 1.0}, 1.0, 8, sampled=32) for i in range(32)
    )
    trace = Trace(
        7200, frames, 256, 256, {"tower": 9.0}, selector="learned", times=times, query_scores=scores
    )
    one = fragment([trace.to_dict()])
    assert len(one) < 300_000
    assert "2:00:00" in one


def test_the_look_of_a_frame_and_of_a_token():
    looks = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]], np.float64)
    frame = {"looked": looks.tolist(), "members": [0, 1, 1]}
    np.testing.assert_allclose(heat(frame), [4 / 3, 8 / 3, 0, 0])
    np.testing.assert_allclose(token_heat(frame, 1), [0, 4, 0, 0])
    assert heat({"looked": None}) is None and token_heat(frame, 2) is None
    assert strongest([frame]) == pytest.approx(8 / 3) and strongest([]) == 2


def picture(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("box", "hot", "cold"),
    [
        (None, (22, 75), (37, 45)),
        ((0.25, 0, 0.75, 1), (22, 67), (22, 105)),  # of a square cut out of the middle
        ((0, -0.5, 1, 1.5), (15, 75), (45, 45)),  # of a square with margins above and below
    ],
)
def test_heat_lies_where_the_patch_is(box, hot, cold):
    grey = picture(np.full((60, 120, 3), 128, np.uint8))
    values = np.zeros(16)
    values[6] = 4.0  # of 4 x 4: the third of the second row
    made = heat_over(grey, values, 4.0, (4, 4), box)
    colours = np.ptp(np.asarray(Image.open(io.BytesIO(made))).astype(int), axis=2)
    assert colours[hot] > 60 and colours[cold] < 12
    most = np.unravel_index(colours.argmax(), colours.shape)
    assert abs(most[0] - hot[0]) < 12 and abs(most[1] - hot[1]) < 16


def test_patches_that_became_one_have_one_colour():
    array = np.zeros((40, 40, 3), np.uint8)
    array[:20] = 200
    made = Image.open(io.BytesIO(mosaic_over(picture(array), [0, 1, 0, 1], (2, 2), None)))
    pixels = np.asarray(made)
    assert abs(int(pixels[10, 10, 0]) - 100) < 8 and abs(int(pixels[30, 10, 0]) - 100) < 8
    made = np.asarray(
        Image.open(io.BytesIO(mosaic_over(picture(array), [0, 0, 1, None], (2, 2), None)))
    )
    assert abs(int(made[10, 10, 0]) - 200) < 8 and int(made[30, 30, 0]) > 150  # faint: no token


class Cutting:
    """A host that shows its tower the middle square."""

    @staticmethod
    def pixels(processor: Any, frames: Any, *, is_image: bool = False) -> torch.Tensor:
        height, width = frames.shape[1:3]
        begin = (width - height) // 2
        cut = torch.from_numpy(frames[:, :, begin : begin + height]).permute(0, 3, 1, 2).float()
        return (torch.nn.functional.interpolate(cut, (32, 32), mode="area") / 255 - 0.4) / 0.3


class Padding:
    @staticmethod
    def pixels(processor: Any, frames: Any, *, is_image: bool = False) -> torch.Tensor:
        height, width = frames.shape[1:3]
        square = torch.full((1, 3, width, width), 120.0)
        begin = (width - height) // 2
        square[:, :, begin : begin + height] = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
        return torch.nn.functional.interpolate(square, (32, 32), mode="area") / 255


@pytest.mark.parametrize(
    ("host", "wanted"), [(Cutting, (0.25, 0, 0.75, 1)), (Padding, (0, -0.5, 1, 1.5))]
)
def test_the_part_of_a_picture_that_a_tower_sees(host, wanted):
    class Sight:
        layout, processor, frames_per_look = None, None, 1

    Sight.host = host
    assert np.allclose(box_of(Sight, (64, 128)), wanted, atol=0.02)


def test_grids():
    class Layout:
        height, width = 90, 160

    assert grid_of(16) == (4, 4) and grid_of(12) is None
    assert grid_of(144, Layout) == (9, 16) and grid_of(13, Layout) is None


def test_words_and_times():
    assert [spent(s) for s in (1.5, 0.0123, 0.00012)] == ["1.50 s", "12.3 ms", "0.12 ms"]
    assert [size(n) for n in (12, 2**21, 3 * 2**30)] == ["12 B", "2 MiB", "3 GiB"]
    assert [clock(s) for s in (0, 4.04, 75.5, 59.96, 3725)] == [
        "0:00", "0:04", "1:15.5", "1:00", "1:02:05",
    ]  # fmt: skip
    assert shortened("a  b", 100, 10) == "a b" and len(shortened("a" * 99, 100, 10)) == 19
    shares = share_of_choices(np.array([[0.0, np.log(3)], [0.0, 0.0]]))
    np.testing.assert_allclose(shares, [0.375, 0.625])


# A browser.


def browse(folder: Path, *how: str) -> subprocess.CompletedProcess[str]:
    """The folder's report.html, looked at."""
    return subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--enable-logging=stderr", "--disable-background-networking", "--no-first-run",
            f"--user-data-dir={folder / 'profile'}", *how, (folder / "report.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [1280, 520])
def test_a_browser_shows_it(looked, tmp_path, width):
    """Without an error or a warning, and no wider than its window."""
    looked[0].save(tmp_path / "report.html", beside=looked[1:])
    shot = tmp_path / "shot.png"
    run = browse(tmp_path, f"--window-size={width},1600", f"--screenshot={shot}")
    assert "CONSOLE" not in run.stderr
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape[1] == width
    assert (pixels[:, -8:] == 255).all() and (pixels[:, :8] == 255).all()
    middle = pixels[100:, width // 8 : -width // 8]
    assert 0.05 < (middle != 255).any(axis=2).mean() < 0.9
    # Each question's hue is there: what is drawn, and that both are in sight.
    for hue in ((0, 114, 178), (213, 94, 0)):
        assert (pixels == hue).all(axis=2).sum() > 200


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_takes_nothing_that_is_said_for_markup(looked, tmp_path):
    trace = replace(looked[0], question=NASTY, answer=NASTY, source=NASTY, note=NASTY)
    trace.save(tmp_path / "report.html", beside=[trace])
    shown = browse(tmp_path, "--dump-dom").stdout
    found = Page(shown)
    assert not found.of("script", "img") and len(found.of("section")) == 2
    assert 'alert("x")' in " ".join(found.words)
