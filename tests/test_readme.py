"""The snippets of README and docs/ run as they stand, and give what their comments say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [README, *(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))]
# Each once, and those that are whole: what stands on several pages is the same on all.
SNIPPETS = {
    snippet
    for page in PAGES
    for snippet in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    if "import" in snippet
}


def run(snippet, tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)  # what a snippet writes goes here
    names = {"__name__": "readme"}
    exec(compile(snippet, "<snippet>", "exec"), names)
    return names


def test_budget_tonight(tmp_path, monkeypatch, capsys):
    """With a tiny model of that class for the one that would be downloaded."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "integrations" / "transformers_hosts")
    from processors import write

    import bvllm_adapters as bvllm

    load, folder = bvllm.load, write("qwen2_5_vl", tmp_path / "model")
    loaded = []
    monkeypatch.setattr(bvllm, "load", lambda name: loaded.append(name) or load(folder))
    names = run(snippet_with("Qwen2.5-VL-7B"), tmp_path, monkeypatch)
    assert loaded == ["Qwen/Qwen2.5-VL-7B-Instruct"]
    assert names["answer"].trace.num_tokens <= 2048 == names["answer"].trace.max_tokens
    assert "by coverage" in capsys.readouterr().out


def test_select_frames(tmp_path, monkeypatch):
    chosen = run(snippet_with("frames = bvllm.select_frames"), tmp_path, monkeypatch)["frames"]
    assert len(chosen.frames) == len(chosen.seconds) == len(chosen.scores) == 4


def test_reading(tmp_path, monkeypatch):
    video = run(snippet_with("video.track"), tmp_path, monkeypatch)["video"]
    count, *picture = video.frames.shape
    assert count == len(video.seconds) > 5 and len(picture) == 3 and video.track is None


def snippet_with(text):
    (found,) = [snippet for snippet in SNIPPETS if text in snippet]
    return found


def test_wrap(tmp_path, monkeypatch, capsys):
    names = run(snippet_with("bvllm.unwrap"), tmp_path, monkeypatch)
    trace = names["answer"].trace
    assert trace.num_tokens == trace.max_tokens == 12
    assert "12 visual tokens of a budget of 12" in capsys.readouterr().out
    assert names["model"].balanced_tokenizer.config.max_tokens == 12


def test_standalone(tmp_path, monkeypatch):
    names = run(snippet_with("FrameFeatures("), tmp_path, monkeypatch)
    tokens = names["tokens"]
    assert sum(len(of) for of in tokens) == 24
    assert tokens[0].tokens.shape == (len(tokens[0]), 128)
    assert bool((tokens[0].frame.diff() >= 0).all())
    assert tokens[0].size.shape == tokens[0].frame.shape == (len(tokens[0]),)
    assert names["bvllm"].plan(names["config"], num_frames=3600) == 24


def test_property_test(tmp_path, monkeypatch):
    # hypothesis reads a test's source, which a compiled string has none of; it goes on without.
    run(snippet_with("testing.check_budget"), tmp_path, monkeypatch)


def test_open_video(tmp_path, monkeypatch):
    names = run(snippet_with("bvllm.load_video"), tmp_path, monkeypatch)
    assert len(names["video"]) == len(names["stream"]) == 6
    question = {"question": "And now?", "max_new_tokens": 8}
    assert names["stream"].ask(**question).text == names["video"].ask(**question).text


def test_scout(tmp_path, monkeypatch):
    (tmp_path / "integrations").symlink_to(ROOT / "integrations")
    answer = run(snippet_with("demo_scout"), tmp_path, monkeypatch)["answer"]
    assert answer.text == "6" and answer.trace.frames_decoded == 64
    assert 1 <= answer.trace.tower_passes <= 4


def test_the_table_of_families_is_what_is_tested(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "integrations" / "transformers_hosts")
    from table import table

    tables = r"<!-- families -->\n(.*?)<!-- end of families -->"
    found = [told for page in PAGES for told in re.findall(tables, page, re.DOTALL)]
    assert set(found) == {table()}


def test_every_snippet_has_its_test():
    assert len(SNIPPETS) == 8 + 5  # of which test_docs.py has five


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_lead_somewhere(target):
    assert (ROOT / target.partition("#")[0]).exists()
